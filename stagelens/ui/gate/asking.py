"""What a gate is asked, chosen on the page: with what to compare, where, and how much may drop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import streamlit as st

from stagelens.analyses.gate.asked import DRAWS, POINTS, Asked
from stagelens.analyses.gate.report import Estimand
from stagelens.analyses.gate.slices import ALL
from stagelens.contracts import ACCURACY, Behaviour, is_score
from stagelens.runs.run import Run
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.reading import loaders, scored
from stagelens.ui.reading.loaders import Source
from stagelens.ui.server import settings
from stagelens.wording.numbers import is_share, phrase

_THIS = "this run"
"""Stands for another leaf of the open run among the runs to compare with."""
_ESTIMANDS: Mapping[Estimand, str] = {
    "recipes": "the change of recipe",
    "models": "these two models",
}
_MOST_DRAWS = 64


@dataclass(frozen=True)
class Question:
    """Everything that a gate needs.

    Attributes:
        old: What is compared with.
        new: The open run, or its open leaf.
        asked: What is asked.
        old_repeats: Further recorded runs of the old recipe.
        new_repeats: Of the new one.
    """

    old: Source
    new: Source
    asked: Asked
    old_repeats: Sequence[Source] = ()
    new_repeats: Sequence[Source] = ()

    def runs(self) -> tuple[Run, Run, list[Run], list[Run]]:
        """The old run, the new one, and further ones of both recipes."""
        further = [loaders.run(at) for at in self.old_repeats]
        others = [loaders.run(at) for at in self.new_repeats]
        return loaders.run(self.old), loaders.run(self.new), further, others

    def arguments(self) -> tuple[str, ...]:
        """The command line that asks the same."""
        asked = self.asked
        words = ["gate", self.old.path]
        words += [] if self.new.path == self.old.path else [self.new.path]
        if self.old.leaf or self.new.leaf:
            for at in (self.old, self.new):
                words += ["--leaf", at.leaf or loaders.run(at).last.name]
        words += ["--set", str(asked.set_name)]
        for name in asked.behaviours:
            words += ["--behaviour", name]
        for name in asked.slices:
            words += ["--slice", name]
        for name, drop in asked.max_drop.items():
            # All its digits: what was found is found again by the very number.
            words += ["--max-drop", f"{name}={repr(float(drop)).removesuffix('.0')}"]
        words += ["--estimand", asked.drops_of]
        words += ["--draws", str(asked.draws)] if asked.draws != DRAWS else []
        for option, further in (
            ("--old-repeat", self.old_repeats),
            ("--new-repeat", self.new_repeats),
        ):
            for at in further:
                words += [option, at.path]
        return tuple(words)


def ask(workspace: Workspace) -> Question | None:
    """The controls; None until there is something to compare with."""
    runs = _runs(workspace)
    ends = loaders.ends(workspace.at)
    leaves = [leaf for leaf in ends if leaf != workspace.at.leaf] if len(ends) > 1 else []
    if not runs and not leaves:
        st.info(
            "There is no other run on this server to compare with, and this one has a single "
            "leaf. Runs in the same folder as this one are found; elsewhere use the command line: "
            "stagelens gate OLD NEW.",
            icon=":material/info:",
        )
        return None
    with st.container(border=True):
        with st.grid(3, min_column_width=220):
            old = _old(workspace, runs, leaves)
            kinds = _behaviours(workspace)
            behaviours = _chosen_behaviours(kinds)
            slices = st.multiselect(
                "Slices",
                _slices(workspace),
                key="gate-slices",
                bind="query-params",
                placeholder="All, and every group",
                help="All examples, a column (each of its values), or a saved slice; without a "
                "choice all examples and the groups of every column. The fewer, the smaller the "
                "drops that can be shown.",
            )
            drops = {name: _largest_drop(name, kinds[name]) for name in behaviours}
        estimand, draws, repeats = _trainings(runs, [kinds[name] for name in behaviours])
    lacking = [name for name, drop in drops.items() if drop is None]
    if lacking:
        components.text_block(
            f"Say how much may be lost of {', '.join(lacking)}, in its own unit.", muted=True
        )
    if old is None or lacking or not behaviours:
        return None
    new = workspace.at
    if old.path == new.path or len(loaders.ends(new)) > 1 or old.leaf:
        # The command line names a leaf of both, or of none.
        old, new = (replace(at, leaf=at.leaf or loaders.run(at).last.name) for at in (old, new))
    asked = Asked(
        set_name=workspace.examples.name,
        slices=tuple(slices),
        behaviours=tuple(behaviours),
        max_drop={name: drop for name, drop in drops.items() if drop is not None},
        estimand=estimand,
        draws=draws,
    )
    return Question(old, new, asked, *repeats)


def _runs(workspace: Workspace) -> dict[str, Source]:
    """Runs on this server besides the open one, by the names that links give them."""
    own = workspace.run.path.resolve()
    demo = [settings.DEMO] if settings.demo_built() else []
    paths = {name: settings.resolve(name) for name in (*demo, *settings.known_runs())}
    return {name: loaders.source(path) for name, path in paths.items() if path != own}


def _old(workspace: Workspace, runs: Mapping[str, Source], leaves: Sequence[str]) -> Source | None:
    name = st.selectbox(
        "Compare with",
        [*([_THIS] if leaves else []), *runs],
        index=0 if leaves else None,
        key="gate-old",
        bind="query-params",
        placeholder="An older run",
        help="The model that is not to be worse than: another run of the same task, or another "
        "leaf of this one. The open run is the new one, which is judged.",
    )
    if name is None:
        return None
    at = workspace.at if name == _THIS else runs[name]
    ends = leaves if name == _THIS else loaders.ends(at)
    if name != _THIS and len(ends) < 2:
        return at
    leaf = st.selectbox(
        "Leaf of it", ends, key="gate-leaf", bind="query-params", help="The model of that run."
    )
    return replace(at, leaf=leaf)


def _behaviours(workspace: Workspace) -> dict[str, Behaviour]:
    """Accuracy where there are labels, scores, then what else was measured."""
    at, name = workspace.at, workspace.examples.name
    scores = {each: one.behaviour for each, one in scored.scores(at, name).items()}
    found = [
        facts for each in loaders.available(at, name) if (facts := loaders.facts(at, name, each))
    ]
    measured = {kind.name: kind.behaviour() for facts in found[:1] for kind in facts.behaviours}
    right = {ACCURACY.name: ACCURACY} if workspace.labelled else {}
    return {**right, **scores, **measured}


def _chosen_behaviours(kinds: Mapping[str, Behaviour]) -> list[str]:
    names = list(kinds)
    return st.multiselect(
        "Behaviours",
        names,
        default=names[:1],
        format_func=lambda name: phrase(kinds[name]),
        key="gate-behaviours",
        bind="query-params",
        help="Judged together: the more, the less can be shown of each.",
    )


def _slices(workspace: Workspace) -> list[str]:
    """What ``--slice`` takes; slices that were chosen by answers are refused, and not offered."""
    own = [one.name for one in workspace.slices if not one.by_outcome]
    columns = [*workspace.examples.columns, *(["label"] if workspace.labelled else [])]
    known = loaders.groups(workspace.at, workspace.examples.name)
    return list(dict.fromkeys([ALL, *(each for each in columns if each in known), *own]))


def _largest_drop(name: str, kind: Behaviour) -> float | None:
    share = is_share(kind)
    unit = "points" if share else kind.unit or "its unit"
    return st.number_input(
        f"Largest drop of {phrase(kind)} ({unit})",
        min_value=0.0,
        value=POINTS if share else None,
        step=0.5 if share else None,
        key=f"gate-drop-{name}",
        help="How much a slice may get worse. A slice is fine where a larger drop is ruled out "
        "(95 %), and regressed where a larger one is shown (1 % for all together).",
    )


def _trainings(
    runs: Mapping[str, Source], kinds: Sequence[Behaviour]
) -> tuple[Estimand, int, tuple[list[Source], list[Source]]]:
    """What drops are of, and the trainings that stand for each recipe."""
    scores_alone = bool(kinds) and all(map(is_score, kinds))
    estimand = st.segmented_control(
        "Drops are of",
        get_args(Estimand),
        default=Asked(behaviours=[kind.name for kind in kinds]).drops_of,
        format_func=lambda name: _ESTIMANDS[name],
        required=True,
        # Scores are not had of redraws, so the usual choice is another one with them.
        key=f"gate-estimand-{scores_alone}",
        help="The change of recipe: beyond what another seed does, so each recipe is trained "
        "again by replay. These two models: what they differ by, whatever another seed would do; "
        "where only scores are judged it is chosen at first, here and by the command, because "
        "redraws have none.",
    )
    if estimand == "models":
        return "models", DRAWS, ([], [])
    if scores_alone:
        components.text_block(
            "Redraws are not asked for answers, so of scores nothing can be told of recipes "
            "without further recorded runs that have them.",
            muted=True,
        )
    row = st.expander("How each recipe is trained again").container
    with row(horizontal=True, vertical_alignment="bottom", gap="small"):
        draws = st.number_input(
            "Redraws of each",
            0,
            _MOST_DRAWS,
            DRAWS,
            key="gate-draws",
            width=160,
            help="Trainings by replay, each with its chance drawn anew.",
        )
        chosen = [
            st.multiselect(
                f"Recorded runs of the {which} recipe",
                list(runs),
                key=f"gate-{which}-repeats",
                placeholder="None: redraws",
                width=260,
                help="The same recipe with other seeds, in place of redraws.",
            )
            for which in ("old", "new")
        ]
    first, second = ([runs[name] for name in each] for each in chosen)
    return "recipes", int(draws), (first, second)
