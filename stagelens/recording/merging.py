"""Noting a model that was merged from the ends of several stages, and not trained."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stagelens.contracts import BASE, RecordingError
from stagelens.runs.boundary_facts import Boundary, Merge
from stagelens.runs.lineage import NEWEST
from stagelens.runs.merges import fit
from stagelens.runs.run import open_run
from stagelens.runs.saved_states import save_state
from stagelens.runs.schema import StageFile
from stagelens.runs.states import TrainingState, capture

from .run_writer import RunWriter


def note_merge(
    run: RunWriter, name: str, folder: str, model: nn.Module, parents: Sequence[str]
) -> Merge:
    """Write a merge as a stage of the run.

    Args:
        run: The run.
        name: Of the merge.
        folder: Its folder in the run's.
        model: What came out.
        parents: The finished stages whose ends were merged, or ``base``.

    Returns:
        The weights that were found, and what they leave.

    Raises:
        RecordingError: There are fewer than two parents, or one is no finished stage.
        RunError: A parent is of another architecture.
    """
    if len(set(parents)) < 2 or len(set(parents)) < len(parents):
        raise RecordingError(
            f"the merge {name!r} has the parents {', '.join(parents) or 'none'}; give two stages "
            "or more, each once"
        )
    for parent in parents:
        run.check_parent(parent)
    run.begin_merge(name, parents)
    own, first = run.before, open_run(run.path, run.task, leaf=NEWEST).stages[0]
    stages = {
        each: None if each == BASE else open_run(run.path, run.task, leaf=each).last
        for each in parents
    }
    state = TrainingState(capture(model, None, {}).model)
    ends = {
        each: (first.start() if stage is None else stage.end()).model
        for each, stage in stages.items()
    }
    merge = fit(state.model, ends)
    nearest = next((stage for stage in stages.values() if stage is not None), first)
    start = first.facts.start if own is None else own.facts.end
    assert start is not None  # of a finished stage
    with run.new_folder(folder):
        end = save_state(run.path, f"{folder}/end", state, nearest.facts.end)
        before = first.start().model if own is None else own.end().model
        facts = StageFile(
            name=name,
            description=f"merge of {' and '.join(parents)}",
            origin="assembled",
            status="complete",
            boundary=Boundary(
                optimizer="not known",
                new=[each for each in state.model if each not in before],
                removed=[each for each in before if each not in state.model],
            ),
            trainable=[],
            keep_batches="none",
            build_config=nearest.facts.build_config,
            start=start.model_copy(update={"optimizer": None}),
            end=end,
            merge=merge,
        )
        run.announce(facts, folder)
    run.keep_final(name, model)
    return merge
