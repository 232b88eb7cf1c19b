"""What the later stages of a run are like, known without running any of them again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagelens.contracts import Task
from stagelens.runs.optimizer_kinds import update_of, without_formula
from stagelens.runs.run import Run, Stage

from .hardness import hardness

if TYPE_CHECKING:
    from stagelens.runs.states import Weights

_TINY = 1e-30


@dataclass(frozen=True)
class Course:
    """The stages after one that is left out.

    Attributes:
        hardness: How hard they trained, 0 to 1: the hardest of them; NaN where it was not looked
            at, or no learning rates were recorded.
        sgd: Whether SGD trained any of them.
        batch_norm: Whether any of them moved running statistics, as batch normalisation does in
            training mode.
        first: Whether the stage that is left out is the first of the run.
        stages: How many there are.
        steps: Updates in all of them; 0 where they are not known.
        moved: Length of their change of the weights, in lengths of the stage's own change.
        turned: Cosine between the two changes, -1 to 1.
        optimizers: What trained the stage that is left out and these, as far as it is known.
    """

    hardness: float
    sgd: bool
    batch_norm: bool
    first: bool
    stages: int
    steps: int
    moved: float
    turned: float
    optimizers: frozenset[str] = frozenset()


def course(
    run: Run,
    stage: Stage,
    passed: Stage | None = None,
    recorded: bool = True,
    later: Sequence[Stage] = (),
) -> Course:
    """The stages after ``stage``, which is not the last; reads weights, and runs nothing.

    Args:
        run: The run.
        stage: The stage that is left out.
        passed: The last stage that was replayed exactly, from which on nothing is; None for none.
        recorded: Whether to look at recorded steps, for their hardness; boundaries say the rest.
        later: The only later stages that count, to the end of the last of them; empty for all.
    """
    later = later or run.stages[(passed or stage).index + 1 :]
    recorded = recorded and all(s.facts.origin == "recorded" for s in later)
    moved, turned = _change_after(stage, later[-1].end().model)
    return Course(
        hardness=max(hardness(s) for s in later) if recorded else math.nan,
        sgd=any(s.facts.optimizer is not None and s.facts.optimizer.name == "SGD" for s in later),
        batch_norm=any(moves_statistics(s.start().model, s.end().model) for s in later),
        first=stage.index == 0,
        stages=len(later),
        steps=sum(s.steps for s in later),
        moved=moved,
        turned=turned,
        optimizers=frozenset(
            update_of(s.facts.optimizer) for s in (stage, *later) if s.facts.optimizer
        ),
    )


def _change_after(stage: Stage, final: Weights) -> tuple[float, float]:
    """Length of the change after a stage in lengths of its own, and the cosine between the two."""
    from stagelens.runs.streaming import facts_of, side_by_side  # torch

    start, end = stage.start().model, stage.end().model
    own = after = common = 0.0
    # An assembled stage does not say what it trained; what it did not is no change.
    for name in stage.facts.trainable or list(end):
        if name not in start or name not in final:
            continue
        shapes = {facts_of(each, name).shape for each in (start, end, final)}
        if len(shapes) > 1 or not facts_of(end, name).dtype.is_floating_point:
            continue
        for began, ended, last in side_by_side(name, start, end, final):
            mine, others = ended.double() - began.double(), last.double() - ended.double()
            own, after = own + float(mine @ mine), after + float(others @ others)
            common += float(mine @ others)
    return math.sqrt(after / max(own, _TINY)), common / math.sqrt(max(own * after, _TINY))


def moves_statistics(start: Weights, end: Weights) -> bool:
    """Whether running means changed, as batch normalisation has it in training mode."""
    names = [name for name in end if name.endswith("running_mean") and name in start]
    return any(not bool((start[name] == end[name]).all()) for name in names)


def unlike_the_bench(run: Run, stage: Stage, settings: Mapping[str, Any] | None = None) -> str:
    """What the calibration bench holds no example of; empty where there is nothing.

    Errors of such estimates were never measured, so that none of them is called reliable.

    Args:
        run: The run.
        stage: The stage that is left out.
        settings: Of the estimator.
    """
    budget, exact = (settings or {}).get("budget"), (settings or {}).get("exact_stages")
    if budget is not None and not 0.125 <= budget <= 0.5:
        return f"a budget of {budget:g}"
    if exact is not None and (exact, budget) != (1, 0.25):
        return f"a budget of {budget:g} after {exact} exact stages"
    later = run.stages[stage.index + 1 :]
    for each in (stage, *later):
        facts = each.facts
        if facts.origin != "recorded":
            return f"stage {each.name} was not recorded"
        if facts.precision != "float32":
            return f"stage {each.name} was trained in {facts.precision}"
        if facts.objective is not None:
            return f"stage {each.name} minimised {facts.objective.title}"
        if facts.accumulation != 1:
            return f"stage {each.name} accumulated gradients"
        if facts.processes != 1:
            return f"stage {each.name} was trained by several processes"
        if facts.keep_batches != "all":
            return f"not all batches of stage {each.name} were kept"
        if facts.boundary.frozen:
            return f"parts of the model were frozen in stage {each.name}"
        if facts.evaluation_mode:
            return f"parts of the model were in evaluation mode in stage {each.name}"
        if without_formula(each.optimizer) is not None:
            options = "".join(f" with {name}" for name in _set_options(each))
            return f"stage {each.name} was trained with {each.optimizer.name}{options}"
        unusual = [n for g in each.optimizer.groups for n in _UNUSUAL if g.hyperparameters.get(n)]
        if unusual:
            return f"stage {each.name} was trained with {unusual[0]}"
        if len(each.optimizer.groups) > 1 and _rates_differ(each):
            return f"stage {each.name} had several learning rates"
        if (other := _other_facts(each)) is not None:
            return f"{other} stage {each.name}"
    return _unlike_task(run.task)


def _other_facts(stage: Stage) -> str | None:
    """What the bench holds nothing of, before the stage's name; None if all is as there."""
    facts, boundary = stage.facts, stage.facts.boundary
    # All that the first stage trains is new.
    came = boundary.new if stage.index else []
    optimised = {name for group in stage.optimizer.groups for name in group.parameters}
    found = {
        "parameters came or went before": boundary.merged
        or boundary.adapters
        or boundary.removed
        or came,
        "rows were added or cut before": boundary.grown or boundary.trimmed,
        "weights were cast before": boundary.casts,
        "noise was added to embeddings in": facts.embedding_noise,
        "fused or compiled code computed": facts.kernels,
        "an average of the weights ended": facts.average,
        "parts of the model were in no optimiser in": set(facts.trainable) - optimised,
        "weights were in half precision in": _in_half_precision(stage),
    }
    return next((words for words, given in found.items() if given), None)


def _in_half_precision(stage: Stage) -> bool:
    from stagelens.runs.streaming import facts_of  # torch

    start = stage.start().model
    dtypes = {str(facts_of(start, name).dtype) for name in start}
    return bool(dtypes & {"torch.bfloat16", "torch.float16"})


def _set_options(stage: Stage) -> list[str]:
    options = ("amsgrad", "decoupled_weight_decay")
    return [name for name in options if stage.optimizer.flags.get(name)]


_UNUSUAL = ("dampening", "maximize")


def _rates_differ(stage: Stage) -> bool:
    rates = {float(group["lr"]) for group in stage.read_steps().facts(0).groups}
    return len(rates) > 1


def _unlike_task(task: Task) -> str:
    from stagelens.tasks.causal_lm import CausalLM
    from stagelens.tasks.image_classification import ImageClassification
    from stagelens.tasks.text_classification import TextClassification

    for kind in (ImageClassification, TextClassification, CausalLM):
        if isinstance(task, kind) and task.name == kind.name:
            same = type(task).loss is kind.loss and type(task).outputs is kind.outputs
            return "" if same else "the task has a loss of its own"
    return f"the task is {task.name}"
