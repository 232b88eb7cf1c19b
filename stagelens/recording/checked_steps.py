"""Steps of a stage that are run again while it is recorded, and compared.

Watching a training loop does not show all that replay could not reproduce: another loss, batches
that were changed after they were noted, gradients that were changed. So the first step of a stage,
some of the others and the last are run again from what was recorded, on a second model of the
task's, and the loss, the gradient that the optimiser received and the update are compared.

Nobody knows in advance which step is the last. Therefore the training state is copied every few
steps: from there, the last steps can be run again when the stage ends, with the gradients as far as
they are held on to. A change that stays is found then at the latest.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from stagelens.compute import memory
from stagelens.contracts import RecordingError, StageLensError
from stagelens.replaying.modes import call_all, two_sets
from stagelens.replaying.optimizers import build_optimizer, set_group_hyperparameters, update
from stagelens.replaying.step import AUTOCAST, Stepper, StepRules, prepare, widest_eps
from stagelens.replaying.training_loss import TrainingLoss
from stagelens.runs.optimizer_kinds import without_formula
from stagelens.runs.optimizer_set import AnyOptimizer, forget_state
from stagelens.runs.states import (
    OptimizerState,
    TrainingState,
    Weights,
    load_into,
    load_optimizer,
    model_tensors,
    optimizer_tensors,
)
from stagelens.runs.step_records import StepRecord

from .check_place import COPIED_BYTES as _COPIED_BYTES
from .check_place import SMALL_BYTES as _SMALL_BYTES
from .check_place import CheckPlace, cannot_run
from .copying import StateCopies, WeightsCopy
from .held_gradients import GradientHolder, Gradients
from .noted_step import NotedStep, Stretch
from .parallel_models import statistics_of_norms
from .random_state import random_state_kept
from .stage_start import StageStart
from .step_comparison import At, check_gradients, check_losses, check_update
from .update_in_parts import by_tensor, check_update_in_parts

_LARGEST_GAP = 500
"""Most steps between two checks: a change is told that soon, at under a hundredth of the cost."""
_STRETCH = 8
"""Most steps between two copies of the training state, all of which the last check runs again."""
_TURNS = 4
"""Checks of a model over ``_COPIED_BYTES`` that together compare all that its optimiser keeps."""


class CheckedSteps:
    """Holds what is needed to run the newest step of a stage again, and decides when to.

    Args:
        stage: The stage's name.
        loss: Of the stage.
        model: The model that is trained.
        optimizer: Its optimiser.
        names: ``id(parameter)`` to name.
        start: The stage's start; its built model becomes the one that steps are run on.
        keeps: Whether the batches of a step, numbered from 0, are kept.
        place: Where the steps are run.
        shared: Whether other processes train too, whose micro-batches are not known here: the
            update is made from the gradient that was received.

    Attributes:
        done: Numbers, from 1, of the steps that agreed.
        why: Why there are none, if there are none.
        first_norms: Of the gradients that were received at the first step, of several processes.
    """

    why = "memory ran out when one was"

    def __init__(
        self,
        stage: str,
        loss: TrainingLoss,
        model: nn.Module,
        optimizer: AnyOptimizer,
        names: dict[int, str],
        start: StageStart,
        keeps: Callable[[int], bool],
        place: CheckPlace,
        shared: bool = False,
    ) -> None:
        self.done: list[int] = []
        self._stage, self._loss, self._model = stage, loss, model
        self._optimizer, self._names, self._keeps = optimizer, names, keeps
        load_into(start.built, start.state.model)  # takes on its dtypes
        self._place = place
        self._twin = start.built.to(place.device)
        own = dict(self._twin.named_parameters())
        self._own_names = {id(parameter): name for name, parameter in own.items()}
        assert start.optimizer is not None  # steps cannot be run again without one
        self._own_optimizer = build_optimizer(start.optimizer, own)
        self._optimised = [name for group in start.optimizer.groups for name in group.parameters]
        # Their gradients may go on from step to step, and take part in clipping.
        self._strays = set(start.trainable) - set(self._optimised)
        size = sum(tensor.nbytes for tensor in start.state.model.values())
        self._shared = shared
        self._light = size <= _COPIED_BYTES and not shared
        self._holder = GradientHolder(without_formula(start.optimizer) is not None, place.device)
        # Whether steps gave the same bits so far; a GPU's may be others every time.
        self._repeats = start.device.type == "cpu"
        self._two_sets = two_sets(self._own_optimizer)  # it cannot switch without its state
        self._length = _STRETCH if size <= _SMALL_BYTES and not shared else 1
        self._in_parts = self._length == 1 and by_tensor(self._own_optimizer)
        self._copies: list[WeightsCopy] = []
        self._state_copies = StateCopies()
        # Not torch's generator, which belongs to the training.
        self._random = random.Random(stage)
        self._next = 1
        self._turn = 0
        self._stretch: Stretch | None = None
        self._upcoming: Stretch | None = Stretch(start.state.model, start.state.optimizer, True)
        self._goes_on = False
        self._newest = -1
        self._gradients: Gradients | None = None
        self._micro_batches: set[int] = set()
        self.first_norms: Mapping[str, float] = {}

    @property
    def planned(self) -> bool:
        """Whether the step that is being made will be run again as soon as it is noted."""
        return self._upcoming is not None and self._upcoming.planned

    def before_update(self, gradients: Sequence[Tensor | None]) -> None:
        """Hold on to gradients, one of each optimised parameter, as the optimiser reads them."""
        try:
            self._hold(gradients)
        except Exception as error:
            if not memory.ran_out(error):
                raise
            self.close()  # the training comes first

    def close(self) -> None:
        """Check nothing more, and let go of the memory that it takes."""
        self._stretch = self._upcoming = self._gradients = None
        self._goes_on, self._light, self._next = False, False, sys.maxsize
        self._copies, self._state_copies, self.first_norms = [], StateCopies(), {}
        forget_state(self._own_optimizer)
        self._twin = nn.Module()

    def _hold(self, gradients: Sequence[Tensor | None]) -> None:
        self._gradients = None
        if self._upcoming is not None or self._goes_on:
            self._gradients = self._holder.hold(gradients, self.planned)

    def before_pass(self) -> None:
        """Let go of gradients before those of the next step take their place in memory."""
        stretch = self._stretch
        # Steps that give the same bits are run again without. Memory that is used anew at every
        # step is slower than the one of the step before.
        alone = not self._shared
        if alone and stretch and stretch.gradients and (self._repeats or self._length == 1):
            stretch.gradients[-1] = None

    def noted(self, step: NotedStep, rules: Callable[[], StepRules]) -> None:
        """Take a step; check it if it is its turn, and copy the state if it is time.

        Raises:
            RecordingError: The step is not what was recorded of it; says what differs.
        """
        self._newest = step.record.step
        if self._upcoming is not None:
            self._stretch, self._upcoming, self._goes_on = self._upcoming, None, True
        stretch = self._stretch if self._goes_on else None
        if stretch is not None:
            stretch.steps.append(step)
            stretch.gradients.append(self._gradients)
            self._gradients = None
            # As many as never before: a last, partial accumulation may be divided otherwise.
            unusual = len(step.losses) not in self._micro_batches
            self._micro_batches.add(len(step.losses))
            if unusual or stretch.planned:
                self.check(rules())
            if self._place.beside:
                self.close()
        if self._loss.moves(step.record.step):
            self.check(rules())  # while reference models are as they were
            self._loss.updated(step.record.step, self._model)
        self._goes_on = False
        number = step.record.step + 1
        if not self._keeps(number) or (self._strays and rules().clips_leftovers):
            return
        planned = number + 1 >= self._next
        room = stretch is self._stretch is not None and len(self._stretch.steps) < self._length
        if room and not planned:
            self._goes_on = True
        elif planned or self._light:
            self._copy(planned)

    def _copy(self, planned: bool) -> None:
        """Copy the state that the next step starts from."""
        try:
            whole = planned or self._length > 1 or self._two_sets
            state, left_out = self._copied_state() if whole else (None, ())
            self._upcoming = Stretch(self._copied_weights(), state, planned, left_out)
        except Exception as error:
            if not memory.ran_out(error):
                raise
            # The training comes first.
            self._light, self._copies, self._state_copies = False, [], StateCopies()

    def check(self, rules: StepRules, updated: bool = True, calls: Sequence[str] = ()) -> None:
        """Run the newest steps again whose state was copied, if not done yet, and compare.

        Args:
            rules: Of the stage.
            updated: Whether the model and the optimiser are as the newest step left them.
            calls: But for these calls of the optimiser since then.

        Raises:
            RecordingError: As :meth:`noted`.
        """
        stretch, self._stretch = self._stretch, None
        if stretch is None or not stretch.steps:
            return
        autocast = AUTOCAST.get(rules.precision)
        if (why := self._place.why_not(self._twin, stretch.steps[0], autocast)) is not None:
            self.why = why
            return
        at = self._at(stretch.steps[-1])
        try:
            self._check(stretch, rules, updated, calls)
        except Exception as error:
            if memory.ran_out(error):  # the training comes first
                self.close()
                return
            if isinstance(error, RecordingError):
                raise
            if self._place.beside:
                self.why = cannot_run(error)
                return
            if not isinstance(error, StageLensError | RuntimeError):
                raise
            raise RecordingError(f"{at.says('it')} cannot be run again ({error})") from error

    def _at(self, step: NotedStep) -> At:
        eps = widest_eps(self._twin)
        return At(self._stage, step.record.step + 1, eps, self._loss.title)

    def _check(
        self, stretch: Stretch, rules: StepRules, updated: bool, calls: Sequence[str]
    ) -> None:
        if self._place.beside:  # which rounds otherwise, as other kernels do
            rules = replace(rules, kernels=(*rules.kernels, "the CPU"))
        if stretch.steps[0].record.step == 0:
            prepare(self._twin, rules)
        if stretch.model is not None:
            load_into(self._twin, stretch.model)
        forget_state(self._own_optimizer)
        whole = stretch.optimizer is not None and not self._in_parts
        if stretch.optimizer is not None and whole:
            load_optimizer(self._own_optimizer, self._own_names, stretch.optimizer)
        unseen = 0
        with random_state_kept(next(self._twin.parameters()).device), torch.enable_grad():
            for step, gradients in zip(stretch.steps, stretch.gradients, strict=True):
                at = replace(self._at(step), unseen=unseen)
                self._run(step, gradients, rules, at, stretch.optimizer is not None)
                unseen = unseen or (at.step if gradients is None else 0)
                if whole:
                    update(self._own_optimizer)
            if whole:
                call_all(self._own_optimizer, calls)
            if stretch.optimizer is not None and updated and step.record.step == self._newest:
                self._check_update(stretch, at)
        self._twin.zero_grad()
        forget_state(self._own_optimizer)  # twice the model's size, for most of the training
        # Drawn, so that checks do not fall in with the periods of a loop.
        self._next = at.step + min(
            self._random.randint(2 * at.step, 4 * at.step),
            self._random.randint(_LARGEST_GAP // 2, _LARGEST_GAP),
        )
        self.done += [step.record.step + 1 for step in stretch.steps]

    def norms(self, record: StepRecord, start: Weights, rules: StepRules) -> dict[str, float]:
        """Norms of the gradients of a step of all processes from ``start``, by parameter."""
        load_into(self._twin, start)
        with random_state_kept(next(self._twin.parameters()).device), torch.enable_grad():
            Stepper(self._loss, self._twin, self._own_optimizer, rules).backward(record)
        gradients = {name: p.grad for name, p in self._twin.named_parameters()}
        return {name: float(g.norm()) for name, g in gradients.items() if g is not None}

    def _copied_weights(self) -> Mapping[str, Tensor] | None:
        if not self._light and self._in_parts:
            # The second model is not needed before the step that starts from here is checked.
            load_into(self._twin, model_tensors(self._model))
            return None
        if not self._light:
            return WeightsCopy(self._model).tensors
        # Two in turn: that of the newest steps is still needed.
        if len(self._copies) < 2:
            self._copies.append(WeightsCopy(self._model))
        else:
            self._copies.reverse()
            self._copies[-1].renew()
        return self._copies[-1].tensors

    def _copied_state(self) -> tuple[OptimizerState, Collection[str]]:
        """A copy, and the parameters of which there is none."""
        state = optimizer_tensors(self._optimizer, self._names)
        left_out: set[str] = set()
        if not self._light and self._in_parts:  # of a large model some, others at the next check
            self._turn += 1
            left_out = {name for n, name in enumerate(state) if (n + self._turn) % _TURNS}
            state = {name: own for name, own in state.items() if name not in left_out}
        # Of a larger model rarely, and there is no room to keep copies.
        return (self._state_copies if self._length > 1 else StateCopies()).copied(state), left_out

    def _run(
        self,
        step: NotedStep,
        gradients: Gradients | None,
        rules: StepRules,
        at: At,
        updates: bool,
    ) -> None:
        """Run a step on the second model, and compare its loss and gradient.

        With ``updates`` the model is left with the gradients that the optimiser received.
        """
        record = step.as_replayed()
        self._twin.zero_grad()
        try:
            losses = Stepper(self._loss, self._twin, self._own_optimizer, rules).backward(record)
        # The loss may be the user's code, and may raise anything.
        except Exception as error:
            which = "the first step" if at.step == 1 else f"step {at.step}"
            if memory.ran_out(error) or self._place.beside:
                raise
            raise RecordingError(
                f"{at.loss} cannot be recomputed from the batch of {which} "
                f"({type(error).__name__}: {error}); pass stage.step the batch that the loss "
                "takes, made of tensors, numbers and strings in plain tuples, lists and "
                "dictionaries"
            ) from error
        check_losses(losses, [float(loss) for loss in step.losses], rules, at)
        if gradients is not None and gradients.unchanged:
            own = {n: p.grad for n, p in self._twin.named_parameters() if p.grad is not None}
            pairs = zip(self._optimised, gradients.tensors, strict=True)
            seen = {name: gradient for name, gradient in pairs if gradient is not None}
            if not self._shared:
                self._repeats &= check_gradients(own, seen, rules, len(losses), at)
            # The update is made from what the optimiser received, to the last bit.
            if self._shared and at.step == 1:
                self.first_norms = {name: float(g.norm()) for name, g in seen.items()}
            for name, parameter in self._twin.named_parameters() if updates else ():
                # Of the loop's own a copy, since an optimiser may use gradients up.
                own_copy = Tensor.clone if gradients.watched else Tensor.detach
                parameter.grad = own_copy(seen[name].detach()) if name in seen else None
        set_group_hyperparameters(self._own_optimizer, record.groups)

    def _check_update(self, stretch: Stretch, at: At) -> None:
        """Compare both states as they are now; where parts are updated, after updating them."""
        if self._in_parts:
            seen = TrainingState(self._model_now(), optimizer_tensors(self._optimizer, self._names))
            before, beside = stretch.optimizer or {}, self._place.beside
            twin, optimizer = self._twin, self._own_optimizer
            check_update_in_parts(twin, optimizer, before, seen, at, beside, stretch.left_out)
            return
        assert stretch.model is not None
        own = TrainingState(
            model_tensors(self._twin), optimizer_tensors(self._own_optimizer, self._own_names)
        )
        check_update(stretch.model, own, self._seen(), at, self._place.beside)

    def _model_now(self) -> Weights:
        """What the step made; all processes are handed the main one's statistics of norms."""
        known = statistics_of_norms(self._twin) if self._shared else {}
        return {**model_tensors(self._model), **known}

    def _seen(self) -> TrainingState:
        """The state of the training, where the second model is."""
        model = self._model_now()
        state, there = optimizer_tensors(self._optimizer, self._names), self._place.device
        return TrainingState(
            {name: tensor.to(there) for name, tensor in model.items()},
            {name: {k: t.to(there) for k, t in own.items()} for name, own in state.items()},
        )
