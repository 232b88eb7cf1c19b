"""Where a run's batches are kept as rows of a data set: the field that asks for it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from stagelens.contracts import StageLensError
from stagelens.runs.run import Run
from stagelens.ui.pieces import components
from stagelens.ui.reading.sources import Source
from stagelens.ui.server import given_data

_FIELD, _WRONG = "data-set-folder", "data-set-wrong"


def ask(at: Source, run: Run) -> None:
    """The field, in the sidebar, while the data set of a stage is missing."""
    missing = [stage for stage in run.stages if stage.no_data_set]
    if not missing or components.only_shown():
        return
    stage, facts = missing[0], missing[0].facts.rows
    assert facts is not None  # what is missing is what they are rows of
    with st.expander(
        f"Give the data set of {components.plain(stage.name)}", icon=":material/database:"
    ):
        st.markdown(
            components.plain(
                f"The batches of stage {stage.name} are kept as rows of a data set "
                f"({facts.rows:,} rows, collated by {facts.collator}). Without it this stage "
                "cannot be replayed."
            )
        )
        st.text_input(
            "Folder of the saved data set",
            key=_FIELD,
            max_chars=1024,
            help="As dataset.save_to_disk wrote it. It is kept until this dashboard ends, and its "
            "batches are compared with the recorded hashes.",
        )
        st.button("Use it", key="data-set-use", on_click=_use, args=(Path(at.path), stage.name))
        # Until the next attempt: a page may run again by itself, when a figure has been computed.
        if message := st.session_state.get(_WRONG):
            components.error_state(message)
        st.caption("One with a collator of its own is given when the dashboard is started:")
        words = f"stagelens app {at.path} --dataset {stage.name}=package.module:name"
        st.code(words, language=None, wrap_lines=True)


def _use(run: Path, stage: str) -> None:
    st.session_state.pop(_WRONG, None)
    try:
        given_data.give(run, stage, str(st.session_state.get(_FIELD) or ""))
    except StageLensError as error:
        st.session_state[_WRONG] = str(error)
    else:
        st.session_state[_FIELD] = ""
