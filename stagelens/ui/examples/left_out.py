"""Training examples left out of a stage, by replay: the button, its job, and what that gave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from stagelens.analyses.contributions.contribution_table import Stored
from stagelens.analyses.contributions.horizon_table import sentence as how_far
from stagelens.analyses.without_data.chosen import (
    DIVISORS,
    DRAWN,
    Chosen,
    Divisor,
    one_line,
)
from stagelens.analyses.without_data.controls import against, control
from stagelens.analyses.without_data.first_order import against_replays, first_order
from stagelens.analyses.without_data.sentences import (
    DECIDES,
    NO_PART,
    OF_CHOSEN,
    answers,
    held_against,
    how,
    mean_effect,
    missed,
    sentence,
    title,
)
from stagelens.analyses.without_data.stored import (
    WithoutData,
    without_data_path,
)
from stagelens.contracts import StageLensError
from stagelens.estimators.durations import STARTING, paces
from stagelens.runs.files import atomic_path
from stagelens.runs.schema import digest
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress
from stagelens.ui.pieces.trust_marks import trust_badges
from stagelens.ui.reading import replay_loaders, training_loaders
from stagelens.ui.server import settings
from stagelens.wording.numbers import phrase
from stagelens.wording.signs import gain_text, side
from stagelens.wording.trust_words import FIRST_ORDER, MARKS, trust_word

from .contributions import Asked, show_tiles
from .expected_errors import stored_horizons

Kind = Literal["primary", "secondary", "tertiary"]

MOST_DRAWS = 8
"""Random choices that chosen examples are held against at most."""

FIRST = 20
"""Examples of a list that are left out unless somebody asks for another number."""


@dataclass(frozen=True)
class LeftOut:
    """Training examples that may be left out of a stage.

    Attributes:
        words: What they are, for the button: ``the first 20 training examples of the list``.
        chosen: The examples; None where only the command can tell which they are.
        where: The filter that names them, if it was one.
        divisor: What is left of a batch's loss.
        estimate: What leaving them out takes away to first order; None where that is not known of
            all of them.
        found: What training examples contributed; None where that is not known.
        aside: Whether something else is the next step: the button is then no main one, and what
            is known of first order stands elsewhere.
    """

    words: str
    chosen: Chosen | None
    where: str | None = None
    divisor: Divisor = "rest"
    estimate: float | None = None
    found: Stored | None = None
    aside: bool = False


def left_out(
    found: Stored | None,
    chosen: Chosen | None,
    words: str,
    where: str | None = None,
    divisor: Divisor = "rest",
) -> LeftOut:
    """Examples that may be left out, with what that does to first order where it is known.

    Args:
        found: What training examples contributed; None where that is not known.
        chosen: See :class:`LeftOut`, as all others.
        words: What they are.
        where: Their filter.
        divisor: What is left of a batch's loss.
    """
    estimate = None
    if found is not None and chosen is not None and told(found):
        value, known = first_order(found, chosen, divisor)
        # Of some of them alone it would say something else.
        estimate = value if known == len(chosen.ids) and np.isfinite(value) else None
    return LeftOut(words, chosen, where, divisor, estimate, found)


def told(found: Stored) -> bool:
    """Whether leaving examples out is told to first order: not of single uses, or of a horizon."""
    return found.facts.kind is not None and found.facts.horizon is None


def button_or_result(
    workspace: Workspace,
    asked: Asked,
    what: LeftOut,
    key: str,
    place: DeltaGenerator | None = None,
) -> None:
    """Replay the training without these examples; in place of the button, what that gave.

    Args:
        workspace: What is open.
        asked: Whose behaviour, and which stage.
        what: Which examples.
        key: Unique among such buttons of the page.
        place: Where the button itself stands; None for here, as its progress and result do.
    """
    file = None if what.where is not None else _file(workspace, what.chosen)
    named = ("--where", str(what.where)) if file is None else ("--ids", str(file))
    arguments = (
        *("without-data", *workspace.at.words, "--stage", asked.stage),
        *("--set", workspace.examples.name, "--divisor", what.divisor, *named),
    )
    if file is not None and what.chosen is not None and what.chosen.words:
        arguments = (*arguments, "--words", one_line(what.chosen.words))
    found = None if what.chosen is None else stored(workspace, what.chosen, what.divisor)
    if found is not None and what.chosen is not None:
        if not found.facts.words:  # stored without: here it is known which they are
            facts = found.facts.model_copy(update={"words": one_line(what.chosen.words)})
            found = replace(found, facts=facts)
        _told(workspace, asked, found, what, (file, arguments), key)
        return
    if what.estimate is not None and what.chosen is not None:
        _first_order_alone(workspace, asked, what, what.chosen, what.estimate)
    if why := no_replay(workspace, asked.stage):
        st.info(components.plain(why), icon=":material/info:")
        return
    if job_progress.job_state(arguments, "Try again"):
        return
    (st.container() if place is None else place).button(
        components.plain(f"Replay without {what.words}{took(workspace, asked.stage)}"),
        icon=":material/replay:",
        key=key,
        type="secondary" if what.aside else "primary",
        disabled=settings.read_only(),
        on_click=begin,
        args=(file, ids_text(what.chosen), arguments, f"The replay without {what.words}"),
        help=settings.READ_ONLY
        if settings.read_only()
        else f"{DRAWN} Runs in the background: python -m stagelens without-data.",
    )


def no_replay(workspace: Workspace, stage: str) -> str:
    """Why a stage and all later ones cannot be replayed otherwise; empty where they can be."""
    if not workspace.computable:
        return "Nothing can be replayed here without the run's task."
    for own in workspace.run.stages[workspace.stages.index(stage) :]:
        if own.no_replay:
            return f"{own.no_replay[:1].upper()}{own.no_replay[1:]}."
    return ""


def took(workspace: Workspace, stage: str, replays: int = 1) -> str:
    """How long replays should take, for their button; empty where nothing says that."""
    known = paces(workspace.run)
    later = known.stages[workspace.stages.index(stage) :]
    if any(pace.seconds is None for pace in later):
        return ""
    # Checked as recorded, once, where that was not done, and measured.
    seconds = STARTING + sum((replays + pace.check) * (pace.seconds or 0.0) for pace in later)
    return job_progress.predicted(known, seconds, on_button=True)


def _file(workspace: Workspace, chosen: Chosen | None) -> Path | None:
    """Where the ids are written for the command; the same for the same examples."""
    if chosen is None:
        return None
    name = digest(workspace.run.digest, chosen.stage, sorted(chosen.ids))[:32]
    return workspace.run.files.inside(f"results/training-data/ids-{name}.txt")


def ids_text(chosen: Chosen | None) -> str:
    """The ids of examples as a file for the command."""
    return "" if chosen is None else "\n".join(chosen.ids)


def begin(file: Path | None, ids: str, arguments: tuple[str, ...], title: str) -> None:
    """Start a job that reads examples from a file: the ``on_click`` of its button.

    Args:
        file: Where the ids are written first; None where a filter names the examples.
        ids: What it holds.
        arguments: Of the command.
        title: Of the job.
    """
    # A callback, whose errors no page would tell.
    with components.errors_told():
        if settings.read_only():
            raise StageLensError(settings.READ_ONLY)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(file) as temporary:
                temporary.write_text(ids, encoding="utf-8")
        job_progress.begin(arguments, title)


def stored(workspace: Workspace, chosen: Chosen, divisor: Divisor) -> WithoutData | None:
    """What a replay without examples gave; None where there was none."""
    path = without_data_path(workspace.run, workspace.examples, chosen.left_out(divisor))
    return read(workspace, path) if path.is_file() else None


def read(workspace: Workspace, path: Path) -> WithoutData | None:
    """A stored result, from memory where it was read before."""
    return replay_loaders.without_data(workspace.run, workspace.examples, path)


def _told(
    workspace: Workspace,
    asked: Asked,
    found: WithoutData,
    what: LeftOut,
    command: tuple[Path | None, tuple[str, ...]],
    key: str,
) -> None:
    """What the replay gave: of one example its answers, of several their mean."""
    ids, behaviour, trust = frozenset(asked.ids), asked.behaviour, found.facts.trust
    estimate = what.estimate
    with st.container(border=True):
        became = answers(found, ids, workspace.noun)
        # A next token that stays says little of a whole answer.
        if became and not workspace.continues_text:
            components.text_block(became)
        components.sentences([sentence(found, behaviour, ids)])
        if trust.trust != "exact":  # the sentence has its mark; this says why
            trust_badges([trust], behaviour.name)
        if trust.trust == "refused":
            return
        effect, word = mean_effect(found, behaviour, ids), trust_word(trust, behaviour.name)
        random, of_stage = _controls(workspace, found)
        tiles = [("by replay", effect, f"{side(effect, behaviour)}, {MARKS[word]} {word}")]
        if random:
            mean = float(np.mean([mean_effect(one, behaviour, ids) for one in random]))
            drawn = f"mean of {len(random)} draws" if len(random) > 1 else "one draw"
            tiles.append((f"{len(found.facts.ids):,} drawn at random", mean, f"{drawn}, by replay"))
        if estimate is not None:
            note = f"{MARKS[FIRST_ORDER]} {FIRST_ORDER}"
            tiles.append(("to first order", estimate, note))
        tiles.append((f"all of {asked.stage}", asked.effect, "effect of the whole stage"))
        show_tiles([(name, gain_text(value, behaviour), note) for name, value, note in tiles])
        if said := against(found, random, behaviour, ids):
            components.text_block(said)
        if estimate is not None and (off := missed(estimate, effect, behaviour)):
            components.text_block(off)
        components.text_block(f"{how(found.facts)} {DRAWN}", muted=True)
        if of_stage and len(found.facts.ids) < of_stage and len(random) < MOST_DRAWS:
            kind: Kind = "tertiary" if random or what.aside else "primary"
            _offer_control(workspace, asked, found, len(random), command, (key, kind))


def _controls(workspace: Workspace, found: WithoutData) -> tuple[list[WithoutData], int]:
    """Replays without as many random ones that are stored, and how many examples there are."""
    stage = found.facts.stage
    rows = training_loaders.listed(workspace.run, stage)
    if rows is None or len(found.facts.ids) >= len(rows):
        return [], 0
    known: list[WithoutData] = []
    for number in range(MOST_DRAWS):
        one = stored(workspace, control(rows, found.chosen, number), found.facts.divisor)
        if one is None or one.facts.trust.trust == "refused":
            break
        known.append(one)
    return known, len(rows)


def _offer_control(
    workspace: Workspace,
    asked: Asked,
    found: WithoutData,
    known: int,
    command: tuple[Path | None, tuple[str, ...]],
    button: tuple[str, Kind],
) -> None:
    """The way to know whether chosen examples did more than others would have."""
    if settings.read_only() or no_replay(workspace, asked.stage):
        return
    file, arguments = command
    arguments = (*arguments, "--controls", str(known + 1))
    if job_progress.job_state(arguments, "Try again"):
        return
    again = "once more" if known else "instead"
    words = f"{len(found.facts.ids):,} drawn at random"
    st.button(
        components.plain(f"Replay without {words} {again}{took(workspace, asked.stage)}"),
        icon=":material/casino:",
        key=f"{button[0]}-control",
        type=button[1],
        on_click=begin,
        args=(file, ids_text(found.chosen), arguments, f"The replay without {words}"),
        help="Is that more than leaving out as many of the others does? Each replay draws other "
        "ones and is kept.",
    )


def _first_order_alone(
    workspace: Workspace, asked: Asked, what: LeftOut, chosen: Chosen, estimate: float
) -> None:
    # Replays of this very stage and behaviour say more than estimates, and these than benchmarks.
    known = replay_loaders.replayed_choices(workspace.run, workspace.examples, asked.stage)
    own = [one for one in known if one.facts.divisor == what.divisor]
    ids = frozenset(asked.ids)
    pairs = [] if what.found is None else against_replays(what.found, own, asked.behaviour, ids)
    caution = held_against(pairs, asked.stage, asked.behaviour)
    if not caution and not what.aside:
        horizons = stored_horizons(workspace, asked)
        caution = OF_CHOSEN if horizons is None else how_far(horizons)
    cautions = " ".join(filter(None, ["" if what.aside else NO_PART, caution, DECIDES]))
    components.text_block(
        f"To first order these {title(chosen)} made for {gain_text(estimate, asked.behaviour)} of "
        f"the {phrase(asked.behaviour)} ({MARKS[FIRST_ORDER]} {FIRST_ORDER}; "
        f"{DIVISORS[what.divisor]}). {cautions}",
        muted=True,
    )
