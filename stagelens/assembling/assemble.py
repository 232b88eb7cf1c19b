"""Making a run from checkpoint folders, to attribute what was trained without recording."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

import torch

from stagelens.compute import temporaries
from stagelens.contracts import (
    Progress,
    ProgressCallback,
    RunError,
    StageLensError,
    Task,
    no_progress,
)
from stagelens.runs.files import Hashing, new_folder, write_json
from stagelens.runs.lineage import NEWEST
from stagelens.runs.remote import local_folders
from stagelens.runs.run import Run, open_run
from stagelens.runs.saved_states import save_tensors
from stagelens.runs.schema import (
    FileRef,
    RunFile,
    StateRef,
    check_name,
)
from stagelens.runs.sets.columns import SetColumns
from stagelens.runs.sets.readers import read_set_file
from stagelens.runs.sets.writer import write_set
from stagelens.runs.streaming import read_header
from stagelens.runs.task_files import write_task

from .architecture import Architecture
from .checkpoints import Checkpoint
from .configs import compare_configs
from .fitting import as_in
from .hub import fetch, hub_id
from .loading import Loader
from .matching import Matched, match
from .merged import merged_models
from .outputs import compare_outputs
from .parents import Descent, Given, check_names, descent
from .states import compare_states
from .task import task_of
from .trainer_facts import trainer_facts
from .writing import folder_of, merge_notes, merges, write_stage

_BLOCK = 4 * 2**20


def assemble(
    checkpoints: Mapping[str, str | Path] | Iterable[tuple[str, str | Path]],
    out: str | Path,
    *,
    evaluation: str | Path | None = None,
    task: Task | str | None = None,
    name: str | None = None,
    link: bool = False,
    allow_bin: bool = False,
    progress: ProgressCallback = no_progress,
    columns: SetColumns | None = None,
    parents: Given = MappingProxyType({}),
) -> Run:
    """Make a run from checkpoint folders of ``transformers``, without any recording.

    The first folder is the base: the boundary before the first stage. Each further one is the end
    of a stage of that name, which starts where the previous one ended. So M + 1 folders give M
    stages, and the name of the base is only for people. Task vectors are available for all stages,
    and the exact model without the last stage; what needs recorded steps is refused.

    With ``parents`` a stage starts from another one than that before it, so that the run has
    several leaves, each with a history of its own. A stage with several parents is a merge, whose
    weights are found by least squares (see :mod:`stagelens.runs.merges`).

    Args:
        checkpoints: Name to folder, in the order of training; at least two. Also an id on the
            Hugging Face hub, ``OWNER/NAME@REVISION``, or an address on any file system that
            ``fsspec`` knows. An adapter is laid on the earlier checkpoint that
            its configuration names, quantised weights are expanded. A Trainer's folder gives
            learning rates, losses and the optimiser's settings too.
        out: The run folder to make; it must not hold anything yet.
        evaluation: A file to add as evaluation set, named after the file or ``test``.
        task: What the model takes as input and what it answers; None to find it from the last
            ``config.json``. A name: that of a built-in task on ``transformers`` models, such as
            ``reward-model``, or ``package.module:Class``.
        name: The run's name; by default the folder's.
        link: Link the weights instead of copying them, which needs the same file system. The
            originals must not be edited after that.
        allow_bin: Open pickles of weights (``pytorch_model.bin``), with ``weights_only=True``.
        progress: Called as bytes are copied.
        columns: Which columns of ``evaluation`` play which role; None for the usual ones.
        parents: Stage to what it was trained from, or to all that it was merged from, by name
            (``base`` for the base); left out where that is the one before it that is no merge.

    Returns:
        The run; ``run.problems`` says what people should know about it. Of several leaves, the
        history of the last one.

    Raises:
        RunError: A folder is not a checkpoint, or the folders are not of one model; names the
            folder, the tensor or the key, and says what to do.
        TaskError: There is no task for the model.
        SetError: The evaluation file cannot be read.
    """
    given = checkpoints.items() if isinstance(checkpoints, Mapping) else checkpoints
    unordered = dict(listed := list(given))
    check_names([label for label, _ in listed])
    order = descent([label for label, _ in listed], parents)
    pairs = [(label, unordered[label]) for label in order.names]
    at_hub = {path: hub_id(path) for _, path in pairs}
    places = [
        path if (wanted := at_hub[path]) is None else fetch(label, wanted, allow_bin=allow_bin)
        for label, path in pairs
    ]
    with local_folders(places) as folders:
        here = [(each, folder) for (each, _), folder in zip(pairs, folders, strict=True)]
        options = _Options(evaluation, task, name, link, allow_bin, progress, columns, order)
        return _assembled(here, [str(path) for _, path in pairs], Path(out).expanduser(), options)


@dataclass(frozen=True)
class _Options:
    """What :func:`assemble` was asked for."""

    evaluation: str | Path | None
    task: Task | str | None
    name: str | None
    link: bool
    allow_bin: bool
    progress: ProgressCallback
    columns: SetColumns | None
    descent: Descent


def _assembled(
    checkpoints: Sequence[tuple[str, Path]], addresses: Sequence[str], out: Path, asked: _Options
) -> Run:
    """:func:`assemble` of local folders."""
    run_name, order = _run_name(asked.name, out), asked.descent
    with new_folder(out) as root, temporaries.folder(".loaded", root.parent) as workshop:
        loader = Loader(Path(workshop), allow_bin=asked.allow_bin)
        opened: list[Checkpoint] = []
        for n, ((label, path), address) in enumerate(zip(checkpoints, addresses, strict=True)):
            # Those that it can have been trained on: an adapter is laid on one of them.
            earlier = [opened[each] for each in order.history(n)[:-1]]
            opened.append(loader.open(label, path, address, earlier))
        _check_order(opened, order)
        made = task_of(opened, asked.task)
        examples = None
        if asked.evaluation is not None:  # read before anything is copied
            examples = read_set_file(
                asked.evaluation, asked.columns, needs_labels=made.takes_labels
            )
        final = _architecture(made)
        opened = [as_in(final, each, loader) for each in opened]
        last = opened[-1]
        notes = [note for each in opened for note in each.notes]
        for each in opened[:-1]:
            notes += compare_configs(each, last)
        leaves = order.leaves
        matched = [match(each, final, last=n in leaves) for n, each in enumerate(opened)]
        notes += compare_outputs(opened, matched, final, made)
        for leaf in leaves:
            along = order.history(leaf)
            said = compare_states([opened[n] for n in along], [matched[n] for n in along])
            notes += [each for each in said if each not in notes]
        notes += merged_models(opened, matched, [n for n in range(len(opened)) if order.merged(n)])
        facts = [trainer_facts(each) for each in opened[1:]]
        notes += [note for each in facts for note in each.notes]
        _check_room(opened, root, asked.link)
        states = _states(root, opened, matched, final, asked.link, asked.progress)
        made_of = merges(root, order, states)
        notes += merge_notes(order, made_of)
        about = (order, opened, matched, states)
        stages = [
            write_stage(root, n, *about, facts[n - 1], made_of.get(n))
            for n in range(1, len(opened))
        ]
        reference = write_task(root, made)
        # In the block, so that a set that is refused leaves no run behind either.
        if examples is not None:
            report = write_set(root, made, _set_name(Path(str(asked.evaluation))), **examples)
            notes += [f"set {report.name}: left out: {each}" for each in report.left_out]
        file = RunFile(name=run_name, task=reference, stages=stages, notes=notes)
        write_json(root / "run.json", file)
    return open_run(out, made, leaf=NEWEST)


def _check_order(opened: Sequence[Checkpoint], order: Descent) -> None:
    """Refuse what cannot be the order of training."""
    for one, other in combinations(opened, 2):
        if one.folder.resolve() == other.folder.resolve():
            raise RunError(f"{one.name} and {other.name} are the same folder, {one.folder}")
    # Only within one folder: each Trainer counts its steps from 0.
    edges = [(p, n) for n, parents in enumerate(order.parents) for p in parents]
    for one, other in ((opened[p], opened[n]) for p, n in edges if not order.merged(n)):
        if one.folder.resolve().parent == other.folder.resolve().parent:
            numbers = one.step, other.step
            if numbers[0] is not None and numbers[1] is not None and numbers[0] > numbers[1]:
                raise RunError(
                    f"{one.name} ({one.folder.name}) is later than {other.name} "
                    f"({other.folder.name}); give the folders in the order of training"
                )


def _architecture(task: Task) -> Architecture:
    # Building a model draws initial values; the caller's random numbers stay as they were.
    with torch.random.fork_rng(devices=[]):
        return Architecture.of(task.build_empty())


def _run_name(name: str | None, out: Path) -> str:
    try:
        return check_name(name if name is not None else out.resolve().name.lstrip("."))
    except ValueError as error:
        raise StageLensError(f"the run's name: {error}; give one with --name") from None


def _check_room(opened: Sequence[Checkpoint], root: Path, link: bool) -> None:
    # What was saved for this run lies here already.
    needed, free = sum(each.bytes for each in opened if not each.own), shutil.disk_usage(root).free
    if not link and needed > free:
        raise StageLensError(
            f"the checkpoints take {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free at "
            f"{root.parent}; choose another place, or link them (--link)"
        )


def _states(
    root: Path,
    opened: Sequence[Checkpoint],
    matched: Sequence[Matched],
    final: Architecture,
    link: bool,
    progress: ProgressCallback,
) -> list[StateRef]:
    """Bring the weights into the run folder."""
    fixed = None
    if final.fixed:
        fixed = save_tensors(root, "checkpoints/buffers.safetensors", dict(final.fixed))
    total, done, overall = sum(each.bytes for each in opened), 0, Progress(progress)
    states, known = [], dict[str, FileRef]()
    for number, (checkpoint, found) in enumerate(zip(opened, matched, strict=True)):
        folder = folder_of(number, checkpoint)
        files = []
        for name, header in checkpoint.shards.items():
            source, to = checkpoint.weights / name, f"{folder}/{name}"
            part = overall.part(
                done / total,
                (done + source.stat().st_size) / total,
                f"{'Linking' if link else 'Copying'} {checkpoint.name}: ",
            )
            file = _bring(source, root, to, link, part, checkpoint.own)
            # Tensors were matched by the header that was read first.
            if read_header(root / file.path) != header:
                raise RunError(f"{source} was changed while it was read")
            done += file.bytes
            # What another checkpoint holds too, as a shard that no stage changed, is kept once.
            if known.setdefault(file.sha256, file) is not file:
                (root / file.path).unlink()
            files.append(known[file.sha256])
        names = {**found.names, **{name: name for name in final.fixed}}
        states.append(StateRef(model=files[0], more=files[1:], fixed=fixed, names=names))
    progress(1.0, "Describing the run")
    return states


def _bring(
    source: Path, root: Path, relative: str, link: bool, progress: ProgressCallback, own: bool
) -> FileRef:
    """Copy or link one file, or move one of our own, hashing its bytes in passing."""
    target = root / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    if own:
        source = source.replace(target)
    hashing, size, whole = Hashing(), 0, max(source.stat().st_size, 1)
    with open(source, "rb") as original:
        if link and not own:
            try:
                # Resolved, because some systems would link a symbolic link itself.
                os.link(source.resolve(), target)
            except OSError as error:
                raise StageLensError(
                    f"{source} cannot be linked into {root.parent} ({error.strerror}); omit --link "
                    "to copy it"
                ) from None
        # Linked files are read too: the run needs their digest.
        with (
            open(os.devnull if link or own else target, "wb") as copy,
            ThreadPoolExecutor(1, "hash") as beside,
        ):
            while block := original.read(_BLOCK):
                hashed = beside.submit(hashing.update, block)  # while it is written
                size += copy.write(block)
                hashed.result()
                progress(min(size / whole, 1.0), source.name)
            if not (link or own):
                copy.flush()
                os.fsync(copy.fileno())
    return hashing.reference(relative)


def _set_name(file: Path) -> str:
    try:
        return check_name(file.stem)
    except ValueError:
        return "test"
