"""Overview: a run's stages, and what each of them is to credit or to blame for."""

from __future__ import annotations

from stagelens.contracts import is_score
from stagelens.ui.examples import slices
from stagelens.ui.opening.workspace import nothing_measured, open_workspace
from stagelens.ui.overview import (
    benchmarks,
    lineages,
    paths,
    recipe,
    sections,
    story,
    switchboard,
    without_data,
)
from stagelens.ui.pieces import components

workspace = open_workspace("Overview", unused={"stage": "This page shows all stages."}, scores=True)
if workspace is not None:
    with components.errors_told():
        benchmarks.section(workspace)
        effects = workspace.effects
        if effects is None:
            nothing_measured(workspace)
            # What was recorded can be shown before anything is measured.
            sections.time_line(workspace, None, folded=False)
        else:
            behaviour, by, group = workspace.bar.behaviour, workspace.bar.by, workspace.bar.group
            # Its models are those of this run, whatever the effects below are of.
            # One group for all of the page, so that no two parts say different numbers.
            focus = switchboard.focus_of(workspace, effects, behaviour, by, group)
            board = switchboard.show(workspace, effects, behaviour, focus)
            # Draws of the recipe, and its shares, are of what was measured: no answers are scored.
            of_run, scored = effects, is_score(behaviour)
            effects = effects if scored else recipe.choose(workspace, effects)
            named = None if focus.other is not None else by  # all examples were asked for
            sections.headlines(workspace, effects, behaviour, named, group)
            story.tell_story(workspace, of_run)
            # The switchboard has bars already, unless those here are of the recipe.
            folded = board and effects is of_run
            sections.credit_and_blame(workspace, effects, behaviour, focus, folded)
            without_data.section(workspace, behaviour, focus)
            note = recipe.of_this_run(effects)
            sections.time_line(workspace, behaviour, note)
            lineages.sections(workspace, behaviour)
            paths.section(workspace, of_run, focus, note)
            slices.slice_table(workspace, effects, behaviour)
