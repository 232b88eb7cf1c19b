"""Promised errors: the stored functions, and how they are fitted and judged."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from stagelens.estimators import calibration
from stagelens.estimators.calibration import Function, Kind, promised
from stagelens.estimators.evidence import Evidence
from stagelens.estimators.expected_error import judged
from stagelens.estimators.stage_trust import StageTrust
from stagelens.trust.coverage import close_enough
from tests.benchmarks.calibration import fitting
from tests.unit.test_evidence import COURSE, paired


def kind(**more: object) -> Kind:
    constant = Function(constant=math.log(0.1), slopes={})
    upper = Function(constant=math.log(0.2), slopes={"trouble": 1.0})
    known = {
        "estimates": 10,
        "recordings": 3,
        "typical": 0.1,
        "ranges": {"trouble": (0.0, 1.0)},
        "upper": upper,
        "median": constant,
        "group": constant,
        "wrong_signs": constant,
        "reliable_below": 0.3,
    }
    return Kind.model_validate({**known, **more})


def test_a_promise_is_reliable_up_to_its_limit_and_within_what_the_bench_holds() -> None:
    assert promised(kind(), {"trouble": 0.0}).reliable
    assert not promised(kind(), {"trouble": 0.9}).reliable  # 0.2 e^0.9 = 0.49
    assert not promised(kind(reliable_below=None), {"trouble": 0.0}).reliable
    far = promised(kind(), {"trouble": -3.0})
    assert far.upper == pytest.approx(0.2)  # never less than where the bench ends
    assert promised(kind(), {"trouble": 3.0}).upper == pytest.approx(0.2 * math.exp(3.0))
    assert not far.familiar
    assert not far.reliable


def test_what_half_stay_within_is_never_above_what_nine_of_ten_do() -> None:
    crossed = kind(median=Function(constant=math.log(9.0), slopes={}))
    found = promised(crossed, {"trouble": 0.0})
    assert found.typical == found.upper == pytest.approx(0.2)


def simulated(seed: int, families: int = 12) -> pd.DataFrame:
    """Estimates whose errors follow their features, each family with an offset of its own."""
    random = np.random.default_rng(seed)
    count = 60 * families
    family = np.repeat(np.arange(families), 60)
    trouble = random.normal(-1.5, 1.0, count)
    own = random.normal(0, 0.3, families)[family]
    error = np.exp(trouble + own + random.normal(0, 0.4, count))
    return pd.DataFrame(
        {
            "family": family.astype(str),
            "recording": family.astype(str),
            "error": error,
            "r": np.clip(1 - error**2 / 2, -1, 1),
            "group_error": error / 2,
            "wrong_signs": np.clip(error / 4, 0, 0.5),
            "trouble": trouble,
        }
    )


@pytest.fixture
def _one_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "FEATURES", {"simulated": ("trouble",)})


@pytest.mark.usefixtures("_one_feature")
def test_promises_hold_on_families_that_nothing_was_fitted_on() -> None:
    known, unseen = simulated(0), simulated(1)
    fitted = fitting.fit(known, "simulated")
    kept = (known["error"] <= fitted.promised).mean()
    assert 0.85 <= kept <= 0.96  # on families left out of the fit
    found = [promised(fitted.kind, {"trouble": value}) for value in unseen["trouble"]]
    kept = np.mean([e <= p.upper for e, p in zip(unseen["error"], found, strict=True)])
    assert 0.85 <= kept <= 0.96
    called = np.asarray([p.reliable for p in found])
    good = close_enough(unseen).to_numpy()
    assert good[called].mean() >= 0.93
    assert called[good].mean() >= 0.4
    halves = np.mean([e <= p.typical for e, p in zip(unseen["error"], found, strict=True)])
    assert 0.35 <= halves <= 0.65


@pytest.mark.usefixtures("_one_feature")
def test_a_feature_that_says_nothing_makes_nothing_reliable() -> None:
    rows = simulated(2)
    rows["trouble"] = np.random.default_rng(3).normal(size=len(rows))
    rows["error"] *= 4
    rows["r"] = 0.5
    fitted = fitting.fit(rows, "simulated")
    assert fitted.kind.reliable_below is None
    assert not fitted.reliable.any()


def test_every_family_has_the_same_weight_in_a_quantile() -> None:
    scores = np.concatenate([np.zeros(900), np.ones(100)])
    families = np.concatenate([np.full(900, "large"), np.full(100, "small")])
    assert fitting.quantile(scores, families, 0.6) == 1.0
    assert np.quantile(scores, 0.6) == 0.0


def test_the_stored_calibration_is_whole() -> None:
    stored, points = calibration.calibration(), calibration.points()
    assert stored.recordings >= 300
    assert len(stored.families) >= 12
    assert set(stored.kinds) == {*fitting.FEATURES, *fitting.OF_COALITIONS}
    assert list(points) == [
        *("family", "recording", "stage", "estimator", "promised", "error", "r", "reliable")
    ]
    assert set(points["family"]) == set(stored.families)
    assert len(points) == sum(stored.kinds[name].estimates for name in fitting.FEATURES)


def test_the_stored_promises_were_kept_on_families_left_out() -> None:
    points = calibration.points()
    coarse = points[points["estimator"].str.startswith("coarse")]
    good = close_enough(coarse).to_numpy()
    called = coarse["reliable"].to_numpy()
    assert good[called].mean() >= 0.95
    assert called[good].mean() >= 0.4
    assert (coarse["error"] <= coarse["promised"]).mean() >= 0.88
    families = coarse["family"].to_numpy()
    shares = [
        good[called & (families == f)].mean()
        for f in set(families)
        if (called & (families == f)).sum() >= fitting.FEWEST
    ]
    assert min(shares) >= 0.8


TRUST = StageTrust(stage="a", estimator="coarse-replay", trust="estimated", reason="Coarse replay.")


def test_trouble_lowers_trust_down_to_refusal() -> None:
    good = judged(TRUST, paired(0.02, 0.02), "Coarse replay", "")
    bad = judged(TRUST, paired(3.0, 6.0, hardness=1.0, batch_norm=True), "Coarse replay", "")
    assert good.expected_error is not None
    assert good.typical_error is not None
    assert good.typical_error <= good.expected_error
    assert bad.trust == "refused" or (bad.expected_error or 0) > 2 * good.expected_error


def test_what_the_bench_does_not_hold_is_never_reliable() -> None:
    trusted = judged(TRUST, paired(0.01, 0.01), "Coarse replay", "")
    unlike = judged(TRUST, paired(0.01, 0.01), "Coarse replay", "stage b was trained in bf16")
    assert not unlike.reliable
    assert "trained in bf16" in unlike.reason
    assert unlike.expected_error == trusted.expected_error


def test_values_that_are_not_finite_are_refused() -> None:
    evidence = paired(0.1)
    evidence.by_twins[3] = np.inf
    assert judged(TRUST, evidence, "Coarse replay", "").trust == "refused"


def test_the_task_vector_needs_nothing_but_checkpoints() -> None:
    names = calibration.calibration().kinds["task-vector"].ranges
    assembled = {"hardness", "sgd", "steps"}
    assert not assembled & set(names)
    assert COURSE.stages == 2


@pytest.mark.parametrize(
    ("missed", "said"), [(0.02, "about 2 % of the effect"), (40.0, "over 10 times the effect")]
)
def test_a_neglected_second_order_term_lowers_trust_and_never_raises_it(
    missed: float, said: str
) -> None:
    random = np.random.default_rng(1)
    effect, other = random.normal(size=(2, 300))
    plain = Evidence(COURSE, effect, effect, effect + other)
    second = replace(plain, by_second_order=effect / (1 + missed))
    trust = StageTrust(stage="one", estimator="unrolled-jump", trust="estimated", reason="Why.")
    before, after = (judged(trust, each, "Unrolled", "") for each in (plain, second))
    assert before.neglected is None and said in after.reason
    for name in ("expected_error", "typical_error", "group_error", "wrong_signs"):
        assert getattr(after, name) >= getattr(before, name), name
    assert not after.reliable or before.reliable
    if missed > 1:
        assert "beyond first order" in after.reason and after.expected_error >= 1
    else:
        assert "nine of ten such errors are at most" in after.reason
    normed = replace(second, course=replace(COURSE, batch_norm=True))
    adam = replace(second, course=replace(COURSE, optimizers=frozenset({"AdamW", "Adam"})))
    for evidence, unlike in ((second, "b was trained in bf16"), (normed, ""), (adam, "")):
        other = judged(trust, evidence, "Unrolled", unlike)
        assert said in other.reason and "nine of ten" not in other.reason
        assert other.expected_error >= second.neglected
