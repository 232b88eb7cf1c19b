"""Signing in with OpenID Connect, where the server requires it; off by default."""

from __future__ import annotations

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError

from . import settings


def gate() -> None:
    """Stop the page here until somebody has signed in, where the server requires it."""
    if not settings.sign_in() or signed_in():
        return
    st.title("Sign in to StageLens", anchor=False)
    if _configured():
        st.button("Sign in", icon=":material/login:", type="primary", on_click=st.login)
    else:
        # Refusing is the safe side: without a provider the page must not open to everybody.
        st.error(
            "This server asks people to sign in (STAGELENS_SIGN_IN), but no provider is set up: "
            "write an [auth] section into .streamlit/secrets.toml and start the dashboard again.",
            icon=":material/lock:",
        )
    st.stop()


def way_out() -> None:
    """The button that signs out, where people sign in."""
    if settings.sign_in():
        st.button("Sign out", icon=":material/logout:", type="tertiary", on_click=st.logout)


def signed_in() -> bool:
    """Whether the provider has said who this is."""
    # By get: without an [auth] section the key is missing.
    return bool(st.user.get("is_logged_in"))


def _configured() -> bool:
    try:
        # Without a secrets.toml even this question raises.
        return "auth" in st.secrets
    except StreamlitSecretNotFoundError:
        return False
