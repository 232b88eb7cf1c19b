"""Bringing a run folder to the present layout."""

from __future__ import annotations

from stagelens.contracts import RunError

from .files import check_changeable, is_sealed, read_json, write_json
from .lineage import NEWEST
from .run import Run, open_run
from .schema import SetFile
from .sets.evaluation_set import EvaluationSet
from .sets.seen import FIRST, figures


def upgrade(run: Run) -> list[str]:
    """Give a run of layout 1 the checksums of layout 2, once all its files are found intact.

    Nothing that was recorded changes: the run digest stays, and so stored results stay valid.

    Args:
        run: The run, opened with its task.

    Returns:
        The files that were rewritten; empty if there was nothing to do.

    Raises:
        RunError: A file was changed since it was written, or a stage is still being recorded.
    """
    check_changeable("Runs")
    if run.unfinished:
        raise RunError(
            f"stage {run.unfinished[0].name!r} of {run.path} is not finished; finish or resume its "
            "recording, which brings the folder to the present layout too"
        )
    for stage in run.stages:
        for reference in stage.facts.files():
            run.files.verified(reference)
    run.task_assets()
    written = [_set_file(run, name) for name in run.set_names]
    if is_sealed(run.path / "run.json") is None:
        write_json(run.path / "run.json", run.file)
        written.append("run.json")
    if open_run(run.path, leaf=NEWEST).recording != run.recording:
        raise RunError(f"{run.path} has another digest after the upgrade; restore the original")
    return [name for name in written if name]


def _set_file(run: Run, name: str) -> str:
    """Rewrite a set's description where it has no checksum; returns the file, or an empty text."""
    relative = f"sets/{name}/set.json"
    path = run.files.inside(relative)
    if is_sealed(path) is not None:
        return ""
    examples = EvaluationSet.open(run.path, name)
    examples.verify()
    facts = read_json(path, SetFile)
    first = examples.examples(0, FIRST)
    write_json(path, facts.model_copy(update={"seen": figures(run.task, first)}))
    return relative
