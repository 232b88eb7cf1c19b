"""The best training state of a stage, for loops that go back to it after their last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stagelens.contracts import RecordingError
from stagelens.runs.boundary_facts import BestModel
from stagelens.runs.checked_files import CheckedFiles
from stagelens.runs.saved_states import load_state
from stagelens.runs.schema import Checkpoint, Parallel, PartRef
from stagelens.runs.shards import own_part, put_back, shared_like
from stagelens.runs.states import model_tensors, same_tensor
from stagelens.runs.steps import parts_until

from .carried_state import without_optimizer


@dataclass(frozen=True)
class Best:
    """A training state that was kept.

    Attributes:
        root: The run folder.
        checkpoint: The state on disk.
        metric: What was best about it, as the loop names it.
        value: Its value.
    """

    root: Path
    checkpoint: Checkpoint
    metric: str
    value: float

    def check(self, model: nn.Module) -> None:
        """Refuse a model that is not the one that was kept.

        Args:
            model: As the loop loaded it.

        Raises:
            RecordingError: Names the first parameter or buffer that differs.
        """
        kept = load_state(CheckedFiles(self.root), self.checkpoint.state).model
        put_back(model)
        for name, tensor in model_tensors(model).items():
            then = own_part(shared_like(tensor, kept[name]))
            if not same_tensor(own_part(tensor).cpu(), then.cpu()):
                raise RecordingError(
                    f"{name} is not as it was at step {self.checkpoint.step}, which was kept as "
                    "the best; load all weights of that step, and change nothing afterwards"
                )

    def ending(
        self,
        checkpoints: Sequence[Checkpoint],
        parts: Sequence[PartRef],
        parallel: Parallel | None,
        keep: bool,
    ) -> dict[str, Any]:
        """What the facts of a stage that ends here say, out of all that it has on disk.

        Args:
            checkpoints: Those of the stage.
            parts: Its steps.
            parallel: Those of its other processes.
            keep: Whether the optimiser's state stays at its end.
        """
        if parallel is not None:
            cut = [parts_until(own, self.checkpoint.step) for own in parallel.parts]
            parallel = parallel.model_copy(update={"parts": cut})
        step, trained = self.checkpoint.step, sum(part.steps for part in parts)
        ending = {
            "end": self.checkpoint.state,
            # Steps were flushed when this state was kept, so a part ends here.
            "parts": parts_until(parts, step),
            "parallel": parallel,
            "steps": step,
            "end_calls": self.checkpoint.calls,
            "checkpoints": [one for one in checkpoints if one.step <= step],
            "best_model": BestModel(trained=trained, metric=self.metric, value=self.value),
        }
        return ending if keep else without_optimizer(ending, self.root)


def check_best(best: Best | None, model: nn.Module) -> None:
    """Refuse a model to which a loop went back, if it is not the best that was kept.

    Raises:
        RecordingError: None was kept, or it is another.
    """
    if best is None:
        raise RecordingError(
            "the loop went back to its best model, but no best model was kept; call "
            "stage.keep_best(metric, value) at the step where it is found"
        )
    best.check(model)
