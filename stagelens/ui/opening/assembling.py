"""The form that makes a run of checkpoint folders: what ``stagelens assemble`` does, as a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from stagelens.contracts import BASE, StageLensError
from stagelens.runs.schema import check_name
from stagelens.tasks.built_in import BUILT_IN
from stagelens.ui.pieces import components, job_progress, state
from stagelens.ui.server import jobs, settings

_FEWEST = 2
"""A base, and the end of one stage."""
_MOST = 12
_LONGEST = 1024


def _key(name: str) -> str:
    return f"{state.ASSEMBLE}{name}"


_ROWS, _NEXT, _ASKED, _WRONG = map(_key, ("rows", "next", "asked", "wrong"))
TITLE = "Make a run from checkpoints"
_FROM_CONFIG = "What config.json names"
_SPLIT, _UNLABELLED = "Split of a saved dataset", "Without labels"
_PICKLES = "Open pickles of weights too"
_BRANCHES = "Stages branch off, or were merged"
_TASKS = (
    _FROM_CONFIG,
    *(name for name, task in BUILT_IN.items() if task.traits.assembled_by_name),
)
_COLUMNS = {
    "label": ("Labels", "label"),
    "id": ("Ids", "row numbers"),
    "text": ("Texts", "text"),
    "other": ("Texts to compare with", "none"),
    "prompt": ("Prompts", "prompt, where there is one"),
    "completion": ("Completions", "completion"),
    "rejected": ("Rejected completions", "rejected, where there is one"),
}
"""Role of a column to its name for people, and the column used where none is named."""


@dataclass(frozen=True)
class _Asked:
    """A run that was asked for.

    Attributes:
        arguments: The command line that makes it.
        out: Its folder.
    """

    arguments: tuple[str, ...]
    out: Path

    @property
    def key(self) -> tuple[str, ...]:
        """What finds its job."""
        return jobs.into(self.arguments, self.out)


def begun() -> bool:
    """Whether a run of checkpoints was asked for in this visit."""
    return _ASKED in st.session_state


def card() -> None:
    """The form; progress replaces its button while a run is made, and a finished run is opened."""
    st.markdown(
        "Models that were trained without a recorder: give the folder of every `transformers` "
        "checkpoint in the order of training, the base first. Task vectors are available at once."
    )
    asked: _Asked | None = st.session_state.get(_ASKED)
    job = None if asked is None else jobs.find(asked.key)
    if asked is not None and job is not None and job.status().state == "done":
        _open(asked)
    busy = job is not None and job.running
    rows = _rows()
    for place, row in enumerate(rows):
        _row(place, row, rows, busy)
    st.button(
        "Add a stage",
        icon=":material/add:",
        key=_key("add"),
        on_click=_add,
        disabled=busy or len(rows) == _MOST,
    )
    _evaluation(busy)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        _text("Name of the run", "name", busy, max_chars=64, width=260, placeholder="my-run")
        st.selectbox(
            "Task",
            _TASKS,
            key=_key("task"),
            width=260,
            disabled=busy,
            persist_state="session",
            help="What the models take as input, and what they answer.",
        )
        st.checkbox(
            "Link the weights instead of copying them",
            key=_key("link"),
            disabled=busy,
            persist_state="session",
            help="Takes no extra space if the folders are on the same disk as the runs. The "
            "original files must then never be edited.",
        )
        st.checkbox(
            _PICKLES,
            key=_key("pickles"),
            disabled=busy,
            persist_state="session",
            help="pytorch_model.bin and those of DeepSpeed, for folders without safetensors. No "
            "code in them is run.",
        )
        st.checkbox(
            _BRANCHES,
            key=_key("branches"),
            disabled=busy,
            persist_state="session",
            help="Says of every stage what it came from, where that is not the one above it.",
        )
    if asked is not None and job_progress.job_state(asked.key, "Dismiss", _in_fields):
        return
    st.button(
        "Make the run",
        type="primary",
        icon=":material/layers:",
        key=_key("make"),
        on_click=_start,
        args=(rows,),
    )
    for message in st.session_state.pop(_WRONG, ()):
        components.error_state(message)
    home = components.plain(str(settings.home()))
    st.caption(f"It is made below {home}. Checkpoints and files are read from the folders above.")


def _rows() -> list[int]:
    """Numbers of the rows, in order; a row keeps its number and so what was typed into it."""
    st.session_state.setdefault(_ROWS, list(range(_FEWEST)))
    st.session_state.setdefault(_NEXT, _FEWEST)
    rows: list[int] = st.session_state[_ROWS]
    return rows


def _add() -> None:
    st.session_state[_ROWS] = [*st.session_state[_ROWS], st.session_state[_NEXT]]
    # Never a number that was used: its fields would come back with what was typed into them.
    st.session_state[_NEXT] += 1


def _remove(row: int) -> None:
    st.session_state[_ROWS] = [each for each in st.session_state[_ROWS] if each != row]


def _row(place: int, row: int, rows: Sequence[int], busy: bool) -> None:
    what = "Base" if place == 0 else f"Stage {place}"
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        example = BASE if place == 0 else "sft"
        _text(f"{what}: name", f"name-{row}", busy, 64, width=160, placeholder=example)
        _text(f"{what}: checkpoint folder", f"folder-{row}", busy, placeholder=f"models/{example}")
        if place > 0 and _branching():
            _text(
                f"{what}: came from",
                f"from-{row}",
                busy,
                width=170,
                placeholder="the one above",
                help="The name of what it was trained from; of a merge, such as a soup, all that "
                "it was made of: sft, dpo.",
            )
        st.button(
            "Remove",
            key=_key(f"remove-{row}"),
            type="tertiary",
            icon=":material/close:",
            help=f"Take {what.lower()} out of the list.",
            on_click=_remove,
            args=(row,),
            disabled=busy or len(rows) == _FEWEST,
        )


def _branching() -> bool:
    return bool(st.session_state.get(_key("branches")))


def _text(label: str, name: str, busy: bool, max_chars: int = _LONGEST, **options: Any) -> None:
    """A field that keeps its text while another page is looked at."""
    st.text_input(
        label,
        key=_key(name),
        max_chars=max_chars,
        disabled=busy,
        persist_state="session",
        **options,
    )


def _evaluation(busy: bool) -> None:
    _text(
        "Evaluation file (optional)",
        "file",
        busy,
        placeholder="data/test.csv",
        help="A .csv, .tsv, .jsonl, .json or .parquet file, or a folder that datasets saved: what "
        "the stages are measured on. A set can be added later too.",
    )
    if not _typed("file"):
        return
    with st.expander("Columns of the evaluation file"), st.grid(3, min_column_width=180):
        for role, (label, default) in _COLUMNS.items():
            _text(label, role, busy, placeholder=default)
        _text(_SPLIT, "split", busy, placeholder="the only one")
        st.checkbox(
            _UNLABELLED,
            key=_key("unlabelled"),
            disabled=busy,
            persist_state="session",
            help="The set has no labels; behaviours that need a label are then not known.",
        )


def _in_fields(message: str) -> str:
    """A message of the command line with this form's fields in place of options."""
    fields = {
        # Before --label-column, which is a part of it and would be replaced in it.
        '--label-column ""': f"a tick at {_UNLABELLED!r}",
        "--split NAME": f"the field {_SPLIT!r}",
        "give one with --name": "give it another name",
        "(--task)": "in the field 'Task'",
        **dict.fromkeys(("--parents", "--parent"), "in a field 'came from'"),
        "(--allow-bin)": f"by a tick at {_PICKLES!r}",
        **{f"--{role}-column": f"the field {label!r}" for role, (label, _) in _COLUMNS.items()},
    }
    for option, field in fields.items():
        message = message.replace(option, field)
    return message


def _typed(name: str) -> str:
    return str(st.session_state.get(_key(name)) or "").strip()


def _start(rows: Sequence[int]) -> None:
    """Start the job, or keep everything that is wrong for the form to say; what was typed stays."""
    wrong: list[str] = []
    try:
        out = _folder(_typed("name"))
    except StageLensError as error:
        wrong.append(str(error))
    words = ["assemble", "--name", _typed("name")]
    for place, row in enumerate(rows):
        what = "Base" if place == 0 else f"Stage {place}"
        try:
            name = _usable(_typed(f"name-{row}") or (BASE if place == 0 else ""))
            folder = settings.allowed(_typed(f"folder-{row}"), "checkpoint folder")
        except StageLensError as error:
            wrong.append(f"{what}: {error}")
        else:
            words += ["--stage", f"{name}={folder}", *_came_from(name, row)]
    if _typed("file"):
        try:
            words += ["--eval", str(settings.allowed(_typed("file"), "file"))]
        except StageLensError as error:
            wrong.append(f"Evaluation file: {error}")
        named = {f"--{role}-column": _typed(role) for role in _COLUMNS}
        for option, value in {**named, "--split": _typed("split")}.items():
            # As one word: a value that begins with a dash would be read as an option.
            words += [f"{option}={value}"] if value else []
        if st.session_state.get(_key("unlabelled")):
            words.append("--label-column=")  # of two, the last one counts
    if st.session_state[_key("task")] != _FROM_CONFIG:
        words += ["--task", st.session_state[_key("task")]]
    if st.session_state[_key("link")]:
        words.append("--link")
    if st.session_state[_key("pickles")]:
        words.append("--allow-bin")
    if not wrong:
        asked = _Asked(tuple(words), out)
        try:
            jobs.start(asked.arguments, "Making the run", out=out)
            st.session_state[_ASKED] = asked
        except StageLensError as error:
            wrong.append(str(error))
    st.session_state[_WRONG] = wrong


def _came_from(name: str, row: int) -> list[str]:
    """The words that say what a stage was trained from, or merged from."""
    listed = [each.strip() for each in _typed(f"from-{row}").split(",") if each.strip()]
    if not listed or not _branching():
        return []
    return ["--parent" if len(listed) == 1 else "--parents", f"{name}={','.join(listed)}"]


def _usable(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise StageLensError(str(error) if name else "it has no name yet; give it one") from None


def _folder(name: str) -> Path:
    """Where the run is made: below the home, under a name that is not taken."""
    if not name:
        raise StageLensError("the run has no name yet; give it one")
    out = settings.home() / _usable(name)
    if out.exists():
        raise StageLensError(f"{out} already exists; choose another name for the run")
    return out


def _open(asked: _Asked) -> None:
    """Open the run that was made; the form is empty when it is seen again."""
    jobs.forget(asked.key)
    # Opening a run forgets every other choice, but keeps what this form holds.
    for key in [key for key in st.session_state if str(key).startswith(state.ASSEMBLE)]:
        del st.session_state[key]
    state.open_reference(settings.reference_for(asked.out.resolve()))
    st.rerun()
