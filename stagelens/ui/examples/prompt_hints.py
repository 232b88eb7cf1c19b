"""What helps to ask in the form that models know: prompts of the set, and what a prompt lacks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

import streamlit as st

from stagelens.charts.style import short
from stagelens.contracts import TaskError
from stagelens.tasks.tokenizer import TOKENIZER, KeptTokenizer
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.reading import loaders
from stagelens.ui.reading.sources import MEASURED, Source, run

_PROMPT = "prompt"
_STARTS = 4
_LABEL = 70
"""Characters of a prompt on its button."""
_STYLE = (  # a label that is wider than a telephone goes on in a second line
    "<style>.st-key-prompt-starts button{max-width:100%;height:auto}"
    ".st-key-prompt-starts button *{white-space:normal;overflow-wrap:anywhere}</style>"
)
_LOOKED_AT = 200
_FEWEST = 8
"""What fewer different prompts have in common may be what they ask, and not their form."""


def starts(workspace: Workspace, key: str) -> None:
    """Prompts of the set to begin with, as buttons that put them into the box.

    Args:
        workspace: What is open.
        key: Of the box.
    """
    if _PROMPT not in workspace.examples.inputs:
        return

    def put(prompt: str) -> None:
        st.session_state[key] = prompt

    st.html(_STYLE)
    with st.container(
        horizontal=True, vertical_alignment="center", gap="small", key="prompt-starts"
    ):
        st.caption("Start from a prompt of the set:", width="content")
        ids = _of_every_group(workspace)
        for number, each in enumerate(loaders.texts(workspace.at, workspace.examples.name, ids)):
            prompt = each[_PROMPT] or ""
            if prompt.strip():
                label = components.plain(short(" ".join(prompt.split()), _LABEL))
                st.button(label, key=f"start-from-{number}", on_click=put, args=(prompt,))


def _of_every_group(workspace: Workspace) -> list[str]:
    """Examples to start from, far apart in the set: of the groups where there are several."""
    rows = loaders.examples(workspace.at, workspace.examples.name)
    parts = [rows["example_id"]] * min(_STARTS, len(rows))
    if workspace.by is not None and len(workspace.groups) > 1:
        names = rows[workspace.by].astype(object).map(str, na_action="ignore")
        parts = [rows.loc[names == group, "example_id"] for group in workspace.groups[:_STARTS]]
    picked = [each.iloc[n * len(each) // len(parts)] for n, each in enumerate(parts) if len(each)]
    return list(dict.fromkeys(picked))


def hints(workspace: Workspace, prompt: str) -> list[str]:
    """In what a prompt is unlike those that the models know, in sentences.

    Args:
        workspace: What is open.
        prompt: As it was typed; an empty one lacks nothing.
    """
    if not prompt.strip():
        return []
    found = []
    tokenizer = _tokenizer(workspace.at)
    if tokenizer is not None:
        try:
            unknown = tokenizer.unknown_note(prompt)
        except ValueError:  # the child says so, and why
            unknown = ""
        found += [f"This prompt has words that are {unknown}."] if unknown else []
    if _PROMPT in workspace.examples.inputs:
        lacks = lacking(prompt, *_form(workspace.at, workspace.examples.name))
        if lacks:
            name = workspace.examples.name
            found.append(
                f"Unlike the prompts of set {name}, it does not {lacks}: a model that knows no "
                "other form may say nothing of use."
            )
    return found


def lacking(prompt: str, begin: str, end: str) -> str:
    """What of a form a prompt does not have, as the end of "it does not ..."; empty for nothing."""
    said = prompt.strip()
    parts = [f"begin with “{begin}”"] if not said.startswith(begin) else []
    parts += [f"end with “{end}”"] if not said.endswith(end) else []
    return " or ".join(parts)


def form_of(prompts: Sequence[str]) -> tuple[str, str]:
    """Whole words that all of some prompts begin with, and that they end with; often none."""
    said = sorted({prompt.strip() for prompt in prompts} - {""})
    if len(said) < _FEWEST:
        return "", ""
    words = [re.findall(r"\s+|\S+", each) for each in said]
    begin, end = _leading(words), _leading([each[::-1] for each in words])
    return "".join(begin).strip(), "".join(end[::-1]).strip()


def _leading(rows: Sequence[Sequence[str]]) -> list[str]:
    """What all of these begin with."""
    return [
        each[0] for each in takewhile(lambda each: len(set(each)) == 1, zip(*rows, strict=False))
    ]


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=MEASURED)
def _form(at: Source, set_name: str) -> tuple[str, str]:
    ids = loaders.examples(at, set_name)["example_id"]
    some = ids.iloc[:: max(len(ids) // _LOOKED_AT, 1)].tolist()
    texts = [each[_PROMPT] or "" for each in loaders.texts(at, set_name, some)]
    # What a prompt has is short, whatever the rest of it.
    return form_of(texts)


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=MEASURED)
def _tokenizer(at: Source) -> KeptTokenizer | None:
    """That of the run's task, without the task, which would load torch; None without one."""
    assets = run(at).task_assets()
    try:
        return KeptTokenizer(assets) if TOKENIZER in assets else None
    except TaskError:  # the child says so, and what to do
        return None
