"""What draws say, as the command line prints it: a row per stage and behaviour."""

from __future__ import annotations

import sys

import pandas as pd
from rich.console import Console

from stagelens.contracts import ACCURACY, Behaviour, StageLensError
from stagelens.effects.draws import FEWEST, NAMES, DrawnEffects
from stagelens.effects.results import load_result
from stagelens.effects.stored_scores import stored_scores
from stagelens.estimators.stage_trust import is_ground_truth
from stagelens.runs.run import Run
from stagelens.wording.numbers import signed_text

from .terminal import Table, say


def drawn_rows(run: Run, set_name: str, drawn: DrawnEffects, names: list[str]) -> pd.DataFrame:
    """One row per stage and behaviour: the mean over draws, its interval, and the recorded run."""
    recorded, kinds = _recorded(run, set_name, names), _kinds(run, set_name)
    means = drawn.table.groupby(["stage", "behaviour", "draw"], sort=False)["effect"].mean()
    spread = drawn.table.groupby(["stage", "behaviour", "example_id"])["effect"].std()
    rows = []
    for (stage, behaviour), values in means.groupby(level=["stage", "behaviour"], sort=False):
        # Without a value on any example, as of texts without a label, there is nothing to tell.
        if stage not in names or values.isna().all():
            continue
        found = drawn.interval(values.to_numpy(), kinds[str(behaviour)])
        rows.append(
            {
                "set": set_name,
                "stage": stage,
                "behaviour": behaviour,
                "drawn": NAMES[drawn.kind],
                "draws": found.draws,
                "in_this_run": recorded.get((stage, behaviour)),
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "sd": found.sd,
                "example_sd": float(spread[stage, behaviour].mean()),
                "finding": found.is_clear,
            }
        )
    return pd.DataFrame(rows)


def print_drawn(run: Run, set_name: str, drawn: DrawnEffects, rows: pd.DataFrame) -> None:
    """Print these rows, and what every draw has as recorded."""
    from stagelens.trust.draws import load

    kinds = _kinds(run, set_name)
    table = Table(f"Mean stage effects on set {set_name}, {NAMES[drawn.kind]}: {drawn.words}")
    for name in ("stage", "behaviour", "in this run", "mean over draws", "95 % interval", "sd", ""):
        table.add_column(name)
    for row in rows.to_dict("records"):
        kind = kinds[row["behaviour"]]
        ends = [signed_text(row[end], kind, unit=False) for end in ("low", "high")]
        clear = "clear" if row["finding"] else "holds zero: no finding"
        known, few = pd.notna(row["low"]), "too few draws"
        table.add_row(
            row["stage"],
            row["behaviour"],
            "not known" if pd.isna(row["in_this_run"]) else signed_text(row["in_this_run"], kind),
            signed_text(row["mean"], kind),
            " to ".join(ends)
            if known
            else few
            if row["draws"] < FEWEST
            else f"the same in each of {row['draws']}",
            signed_text(row["sd"], kind).lstrip("+") if pd.notna(row["sd"]) else "not known",
            clear if known else "",
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if (stored := load(run, run.evaluation_set(set_name).digest, drawn.kind)) is not None:
        for kept in stored[0].kept:
            say(f"As recorded: {kept}.")


def _kinds(run: Run, set_name: str) -> dict[str, Behaviour]:
    """All that draws of a run may have measured on a set, by name."""
    kinds: dict[str, Behaviour] = {k.name: k for k in (ACCURACY, *run.task.behaviour_kinds)}
    scores = stored_scores(run, set_name).items()
    return kinds | {name: score.behaviour for name, score in scores}


def _recorded(run: Run, set_name: str, names: list[str]) -> dict[tuple[str, str], float]:
    """Stage and behaviour to the mean effect in the recorded run, where it is the truth."""
    from stagelens.effects.summary import with_accuracy
    from stagelens.trust.estimates import best_result

    recorded: dict[tuple[str, str], float] = {}
    try:
        known = best_result(run, set_name, names)
        best = with_accuracy(known.table)
        # Beside draws that were trained, an estimate would be read as what happened.
        sure = {one.stage for one in known.facts.stages if is_ground_truth(one)}
        best = best[best["stage"].isin(sure)]
        recorded |= best.groupby(["stage", "behaviour"], observed=True)["effect"].mean().to_dict()
    except StageLensError:
        pass  # no effect of this run is stored
    for name, score in stored_scores(run, set_name).items():
        facts = score.facts[score.best]
        result = load_result(run, set_name, "scores", facts.estimator, facts.settings)
        if result is None:
            continue
        sure = {one.stage for one in facts.stages if is_ground_truth(one)}
        own = result.table[result.table["stage"].isin(sure)]
        recorded |= {
            (str(s), name): float(m) for s, m in own.groupby("stage")["effect"].mean().items()
        }
    return recorded
