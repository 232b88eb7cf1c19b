"""What is asked for an own example: an image file, texts, and the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import streamlit as st

from stagelens.runs.sets.uploads import MOST_PIXELS
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import inputs
from stagelens.ui.reading import scored
from stagelens.ui.server import settings

from . import live_answers
from .live_answers import Question

_KINDS = ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm")
_MANY = 200
"""With more classes than this, the label is typed instead of picked from a list."""
_UPLOAD = live_answers.widget("upload")
_LABEL = live_answers.widget("label")
_FORM = live_answers.widget("form")
ANSWERS = ("prompt",)
"""Stands for a prompt that models answer, in as many tokens as they like."""
_FORM_NAMES = {
    ("prompt", "completion", "rejected"): "Prompt and completion",
    ("text",): "Whole text",
    ANSWERS: "Answers to a prompt",
}
"""Input fields that are asked for together, and the name of that choice."""
_HELP = {
    "completion": "The text that follows the prompt. The two are joined as they are, so a "
    "completion that follows a space must begin with that space.",
    "rejected": "Optional: another completion of the same prompt, to compare the first one with.",
}
STAYS = "It stays in this server's memory while your session lasts."


def image_box(workspace: Workspace) -> str | None:
    """The upload of an image; returns the label chosen for it."""
    left, right = st.columns([2, 1])
    with left:
        upload()
    with right:
        return label(workspace)


def upload() -> None:
    """The upload of an image; it is asked about at once."""

    def take() -> None:
        # None once the file is removed: then nothing is asked. A browser may send a whole path.
        file = st.session_state[_UPLOAD]
        live_answers.put(file and Question({"image": file.getvalue()}, PurePath(file.name).name))

    st.file_uploader(
        "An image of your own",
        type=list(_KINDS),
        key=_UPLOAD,
        disabled=settings.read_only(),
        on_change=take,
        help=settings.READ_ONLY
        if settings.read_only()
        else f"{STAYS} Up to 10 MB and {MOST_PIXELS // 10**6} million pixels; it is converted "
        f"to what the model takes. {_memory_help()}",
    )


def text_box(workspace: Workspace, fields: Sequence[str]) -> str | None:
    """The fields for texts; returns the label chosen for them."""

    def take() -> None:
        typed = {field: st.session_state[live_answers.widget(field)] for field in fields}
        content = {field: text for field, text in typed.items() if text}
        live_answers.put(Question(content) if content else None)

    # In a form, so that the models are asked once and not after every field.
    with st.form(_FORM, border=False):
        for field in fields:
            st.text_area(
                "A text of your own" if field == "text" else inputs.title(field),
                key=live_answers.widget(field),
                max_chars=live_answers.MOST_CHARACTERS,
                height=120 if field == "text" else 68,
                help=_HELP.get(field) or f"{STAYS} {_memory_help()}",
                persist_state="session",
            )
        chosen = label(workspace)
        st.form_submit_button(
            "Ask the models",
            type="primary",
            icon=":material/forum:",
            on_click=take,
        )
    return chosen


def fields(workspace: Workspace) -> Sequence[str]:
    """The input fields to ask for: the set's, or the chosen ones of a task with several forms."""
    own = workspace.examples.inputs
    known = workspace.traits
    if known is None or not (known.continues_text or len(known.input_forms) > 1):
        return own
    possible = [*known.input_forms, *([ANSWERS] if known.continues_text else [])]
    forms = {_FORM_NAMES[form]: form for form in possible}
    usual = next(iter(forms))
    # Where answers are scored, they are what people look at.
    if scored.scores(workspace.at, workspace.examples.name):
        usual = _FORM_NAMES[ANSWERS]
    elif own in known.input_forms:
        usual = _FORM_NAMES[own]
    kind = st.segmented_control(
        "What is asked about",
        list(forms),
        default=usual,
        key=live_answers.widget("kind"),
        required=True,
        persist_state="session",
    )
    return forms[kind or usual]


def _memory_help() -> str:
    return (
        "The models' weights stay in memory within a limit (STAGELENS_MEMORY, now "
        f"{settings.memory() / 1e9:.3g} GB)."
    )


def label(workspace: Workspace) -> str | None:
    """The chosen label; None without one, or where the task has no classes."""
    classes = workspace.run.file.task.config.get("classes")
    typed = workspace.traits is not None and workspace.traits.typed_label
    if not isinstance(classes, list):
        classes = []
    if not typed and not classes:
        return None
    text = (
        "The right answer. Without a label, the behaviours are about the final model's own answer."
    )
    none = "The model's own answer"
    if typed or len(classes) > _MANY:
        return st.text_input("Label", key=_LABEL, placeholder=none, help=text) or None
    names = [str(name) for name in classes]
    if workspace.traits is not None and workspace.traits.several_labels:
        chosen = st.multiselect(
            "Label", names, placeholder=none, key=_LABEL, help=text, persist_state="session"
        )
        return ", ".join(chosen) or None
    return st.selectbox(
        "Label", names, None, placeholder=none, key=_LABEL, help=text, persist_state="session"
    )
