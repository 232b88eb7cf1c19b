"""Contributions as they are kept: parts that sum to the whole, and examples that are shown."""

from __future__ import annotations

import io
import json
import re
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import stagelens
from stagelens.analyses.contributions import computing
from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import (
    Question,
    Stored,
    contributions_path,
    left_open,
    load_contributions,
    opposite,
)
from stagelens.analyses.contributions.first_order import contributions
from stagelens.analyses.contributions.observed import seen_words
from stagelens.charts.steps import step_contributions
from stagelens.charts.style import color_of
from stagelens.cli import app
from stagelens.contracts import CARRIED, Example, StageLensError
from stagelens.derivatives.curvature_kinds import CURVATURES, USUAL
from stagelens.effects.computing import boundaries
from stagelens.tasks import ImageClassification
from stagelens.tasks.transformer_task import IGNORED
from stagelens.trust.estimates import best_result
from stagelens.wording.numbers import plain_signed
from tests.support.every_chart import MARGIN
from tests.support.small_texts import TEXTS, classification, language

ONE = Question(ids=("a",))
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
PIXELS[5] = PIXELS[0]  # the same image, under another label
LABELS = (0, 1, 0, 1, 0, 1)


def _record(path: Path, task: ImageClassification) -> stagelens.Run:
    """Two stages over six images, three at a time; the second keeps checkpoints."""
    torch.manual_seed(0)
    model = task.build_model()
    given = zip(PIXELS, LABELS, strict=True)
    images, labels = task.collate([Example("", {"image": p}, "ab"[k]) for p, k in given])
    with closing(stagelens.Recorder(path, task, name="tiny")) as recorder:
        for name, steps in (("first", 6), ("second", 4)):
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
            with recorder.stage(
                name, model=model, optimizer=optimizer, checkpoint_every=2
            ) as stage:
                for step in range(steps):
                    rows = torch.arange(3) + 3 * (step % 2)
                    batch = (images[rows], labels[rows])
                    loss = task.loss(model, batch)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    stage.step(batch, loss)
        recorder.add_set(
            "test",
            images=PIXELS[1:4],
            labels=["b", "a", None],
            ids=["a", "b", "c"],
            columns={"group": ["x", "x", "y"]},
        )
    return stagelens.open_run(path, task)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    task = ImageClassification(["a", "b"], (1, 4, 4), {"kind": "mlp", "hidden": [5]})
    return _record(tmp_path_factory.mktemp("tiny") / "run", task)


@pytest.fixture(scope="module")
def found(run: stagelens.Run) -> Stored:
    return contribute(run, "test", ONE, "margin")


def test_examples_and_the_carried_row_sum_to_the_steps_of_their_stage(found: Stored) -> None:
    for stage, steps in found.facts.steps.items():
        assert found.part("step", stage)["step"].tolist() == list(range(steps))
        parts = found.part("example", stage)["value"].sum()
        carried = found.part("carried", stage)["value"]
        assert parts + carried.item() == pytest.approx(found.linearised(stage), rel=1e-4, abs=1e-6)
        assert abs(carried.item()) > 1e-4


def test_the_uses_of_an_example_add_up(run: stagelens.Run, found: Stored) -> None:
    asked = run.evaluation_set("test").by_id(["a"])
    shares = contributions(run, "margin", asked, with_examples=True).examples
    assert shares is not None
    own = shares[(shares["stage"] == "first") & (shares["part"] != CARRIED)]
    rows = found.part("example", "first").set_index(["step", "position"])
    for step in (0, 1):
        for position in range(3):
            uses = own[(own["step"] % 2 == step) & (own["position"] == position)]
            row = rows.loc[(step, position)]
            assert row["uses"] == len(uses) == 3
            assert row["value"] == pytest.approx(uses["contribution"].sum(), rel=1e-5)


def test_the_same_input_under_another_label_is_named(found: Stored) -> None:
    rows = found.part("example", "second").set_index(["step", "position"])
    assert rows.loc[(0, 0), "label"] == "a" and rows.loc[(0, 0), "other_labels"] == "b"
    assert rows.loc[(1, 2), "label"] == "b" and rows.loc[(1, 2), "other_labels"] == "a"
    assert rows["other_labels"].notna().sum() == 2


def test_training_examples_come_as_their_images_and_with_answers(
    run: stagelens.Run, found: Stored
) -> None:
    rows = found.part("example", "second")
    images = torch.from_numpy(PIXELS[:, None] / np.float32(255))
    answers = {}
    for name, state in (("answer", run.last.end()), ("before", run.stage("second").start())):
        model = run.task.build_model().eval()
        model.load_state_dict(state.model)
        answers[name] = ["ab"[k] for k in model(images).argmax(1).tolist()]
    for row in rows.to_dict("records"):
        number = 3 * row["step"] + row["position"]
        shown = np.asarray(Image.open(io.BytesIO(row["content"])))
        assert (shown == PIXELS[number]).all() and row["label"] == "ab"[LABELS[number]]
        assert {name: row[name] for name in answers} == {n: a[number] for n, a in answers.items()}


def test_what_was_observed_holds_boundaries_and_checkpoints(
    run: stagelens.Run, found: Stored
) -> None:
    rows = found.part("observed")
    assert list(zip(rows["stage"], rows["step"], strict=True)) == [
        *(("first", step) for step in (0, 2, 4, 6)),
        *(("second", step) for step in (2, 4)),
    ]
    table = boundaries(run, "test").table
    ends = table[(table["example_id"] == "a") & (table["behaviour"] == "margin")]["value"]
    # In batches of other sizes float32 differs in its last bits.
    assert rows["value"].iloc[[0, 3, 5]].tolist() == pytest.approx(ends.tolist(), abs=1e-6)
    assert found.facts.value == pytest.approx(ends.iloc[-1], rel=1e-5)


def test_a_group_is_its_mean_and_later_stages_can_be_asked_alone(run: stagelens.Run) -> None:
    both = contribute(run, "test", Question(groups={"group": "x"}), "margin", since="second")
    assert both.facts.count == 2 and list(both.facts.steps) == ["second"]
    singles = [contribute(run, "test", Question(ids=(n,)), "margin") for n in ("a", "b")]
    mean = np.mean([one.part("step", "second")["value"] for one in singles], axis=0)
    assert both.part("step", "second")["value"].tolist() == pytest.approx(mean, rel=1e-4)


def test_an_answer_is_found_again_and_a_damaged_one_made_anew(
    run: stagelens.Run, found: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = contributions_path(run, run.evaluation_set("test"), "margin", ["a"], "first")
    examples = run.evaluation_set("test")
    again = load_contributions(run, examples, "margin", ["a"], "first")
    assert again is not None and again.facts == found.facts
    for column in found.table:
        kept, made = again.table[column], found.table[column]
        assert kept.isna().tolist() == made.isna().tolist(), column
        same = [np.array_equal(*pair) for pair in zip(kept.dropna(), made.dropna(), strict=True)]
        assert all(same), column
    with monkeypatch.context() as patched:
        patched.setattr(computing, "contributions", None)  # nothing is swept
        assert contribute(run, "test", ONE, "margin").facts == found.facts
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert load_contributions(run, examples, "margin", ["a"], "first") is None
    # Under the name of another question, an answer is not believed.
    for behaviour, ids, since in (("loss", ["a"], "first"), ("margin", ["a", "b"], "first"),
                                  ("margin", ["a"], "second")):  # fmt: skip
        other = contributions_path(run, examples, behaviour, ids, since)
        before = other.read_bytes() if other.exists() else None
        other.write_bytes(whole)
        assert load_contributions(run, examples, behaviour, ids, since) is None
        other.unlink() if before is None else other.write_bytes(before)
    assert contribute(run, "test", ONE, "margin").facts == found.facts


def test_answers_by_different_curvature_are_never_mixed(run: stagelens.Run, found: Stored) -> None:
    examples = run.evaluation_set("test")
    asked = ("margin", ["a"], "first")
    paths = {kind: contributions_path(run, examples, *asked, kind) for kind in CURVATURES}
    assert len(set(paths.values())) == len(CURVATURES)
    other = contribute(run, "test", ONE, "margin", curvature="none")
    assert other.facts.curvature == "none" and found.facts.curvature == USUAL
    assert other.linearised("first") != found.linearised("first")
    # Under the other's name an answer is not believed.
    paths["gauss-newton"].write_bytes(paths["none"].read_bytes())
    assert load_contributions(run, examples, *asked, "gauss-newton") is None
    arguments = ["contributions", str(run.path), "--set", "test", "--example", "a"]
    printed = CliRunner().invoke(app, [*arguments, "--curvature", "none"])
    assert printed.exit_code == 0, printed.output
    assert "curvature: none" in " ".join(printed.output.split())
    assert "curvature" not in CliRunner().invoke(app, arguments).output
    assert CliRunner().invoke(app, [*arguments, "--curvature", "some"]).exit_code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"question": Question(ids=("nobody",))}, "no example 'nobody'"),
        ({"question": Question(groups={"colour": "red"})}, "no column 'colour'; it has label, gr"),
        ({"question": Question(groups={"group": "z"})}, "has group = z; there are x, y"),
        ({"question": Question(ids=("c",), groups={"group": "x"})}, "'c' is not in the group"),
        ({"question": Question(ids=("c",))}, "none of the 1 examples has a margin"),
        ({"question": ONE, "behaviour": "charm"}, "no behaviour 'charm'; use one of margin"),
        ({"question": ONE, "since": "nowhere"}, "no finished stage 'nowhere'"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    run: stagelens.Run, options: dict[str, object], said: str
) -> None:
    with pytest.raises(StageLensError, match=said):
        contribute(run, "test", **options)  # type: ignore[arg-type]


class Silent(ImageClassification):
    """A task that cannot say what stands in a batch."""

    def examples(self, batch: object) -> None:  # type: ignore[override]
        return None


def test_without_the_tasks_help_every_place_stands_for_itself(run: stagelens.Run) -> None:
    silent = stagelens.open_run(run.path, Silent(**run.task.config))
    found = contribute(silent, "test", Question(ids=("b",)), "loss", since="second")
    rows = found.part("example")
    assert found.facts.kind is None and len(rows) == 12 and (rows["uses"] == 1).all()
    assert rows["content"].isna().all() and rows["label"].isna().all()


def test_batch_norm_in_training_mode_leaves_steps_only(tmp_path: Path) -> None:
    model = {"kind": "cnn", "channels": [2], "strides": [1], "hidden": 3, "batch_norm": True}
    run = _record(tmp_path / "run", ImageClassification(["a", "b"], (1, 4, 4), model))
    found = contribute(run, "test", ONE, since="second")
    assert list(found.facts.steps_only) == ["second"] and found.part("example").empty
    assert len(found.part("step")) == 4


class Columns(nn.Module):
    """Gives a column of scores for every example."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores.T


class Sideways(ImageClassification):
    """A task whose model's outputs do not have a row per example."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]).T, batch[1])

    def outputs(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().outputs(model, batch).T


def test_what_cannot_be_told_apart_by_examples_leaves_steps_only(tmp_path: Path) -> None:
    def make(_config: object) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2), Columns())

    run = _record(tmp_path / "run", Sideways(["a", "b"], (1, 4, 4), make_model=make))
    found = contribute(run, "test", ONE, since="second")
    assert "one row per example" in found.facts.steps_only["second"]
    assert found.part("example").empty and len(found.part("step")) == 4


def test_the_command_prints_sums_and_the_largest_examples(run: stagelens.Run) -> None:
    told = CliRunner().invoke(app, ["contributions", str(run.path), "--example", "a", "--top", "2"])
    assert told.exit_code == 0, told.output
    assert "Contributions to the margin of 1 example, to first order" in told.output
    assert "Training examples of second" in told.output and CARRIED in told.output
    assert f"Together includes {CARRIED}" in told.output
    assert "not explained" not in told.stdout and "no stage effect is stored" in told.stderr
    assert re.search(r"│ +\d+-\d+ │", told.output)  # the id that without-data takes
    wrong = CliRunner().invoke(app, ["contributions", str(run.path), "--group", "label"])
    assert isinstance(wrong.exception, StageLensError) and "COLUMN=VALUE" in str(wrong.exception)


def test_the_command_sets_sums_beside_the_stage_effect(run: stagelens.Run, tmp_path: Path) -> None:
    own = stagelens.open_run(Path(shutil.copytree(run.path, tmp_path / "run")))
    stagelens.attribute(own, "test", "replay")
    table = best_result(own, "test").table
    rows = table[(table["behaviour"] == "margin") & (table["example_id"] == "a")]
    effect = rows.set_index("stage")["effect"]["second"]
    total = contribute(own, "test", ONE).linearised("second")
    told = CliRunner().invoke(app, ["contributions", str(own.path), "--example", "a"])
    assert told.exit_code == 0, told.output
    (row,) = [line for line in told.stdout.splitlines() if line.startswith("│ second")]
    assert f"{plain_signed(effect)} (exact)" in row and plain_signed(effect - total) in row


@pytest.mark.parametrize(
    ("effect", "total", "told"),
    [(2.7, -54.551, True), (2.0, 1.2, False), (-2.0, -0.9, True), (float("nan"), 1.0, False)],
)
def test_what_first_order_leaves_open_is_said(effect: float, total: float, told: bool) -> None:
    assert ("first order says nothing" in left_open("general", effect, total)) is told


# ------------------------------------------------------------- training examples, as tasks tell


@pytest.mark.parametrize("options", [{}, {"scale": 240.0}, {"mean": [0.4], "std": [0.3]}])
def test_images_come_back_as_their_pixels(options: dict[str, object]) -> None:
    task = ImageClassification(["a", "b"], (1, 4, 4), **options)  # type: ignore[arg-type]
    given = [Example(str(n), {"image": p}, name) for n, (p, name) in enumerate(
        zip(PIXELS[:3], ["a", "b", None], strict=True))]  # fmt: skip
    shown = task.examples(task.collate(given))
    assert shown is not None and [e.label for e in shown] == ["a", "b", None]
    for one, own in zip(shown, given, strict=True):
        assert one.input["image"].dtype == np.uint8
        assert (one.input["image"] == own.input["image"]).all()


def test_float_images_and_labels_that_are_no_class_are_shown_as_they_are() -> None:
    task = ImageClassification(["a", "b"], (3, 2, 2))
    images = torch.rand(2, 3, 2, 2)
    shown = task.examples((images, torch.full((2, 2), 0.5)))
    assert shown is not None and [e.label for e in shown] == [None, None]
    assert np.allclose(shown[1].input["image"], images[1].permute(1, 2, 0), atol=1e-6)


def test_texts_come_back_without_padding_and_special_tokens() -> None:
    task, _ = classification()
    shown = task.examples(task.batch(TEXTS[:3], ["calm", None, "odd"]))
    assert shown is not None and [e.input["text"] for e in shown] == list(TEXTS[:3])
    assert [e.label for e in shown] == ["calm", None, "odd"]
    assert task.examples({"input_ids": torch.zeros(1, 2, dtype=torch.int64)}) is None


def test_completions_come_back_behind_their_prompts() -> None:
    task, _ = language()
    shown = task.examples(task.batch(prompts=["two and two", ""], completions=[" make", "birds"]))
    assert shown is not None
    assert dict(shown[0].input) == {"prompt": "two and two", "completion": " make"}
    assert json.dumps(dict(shown[1].input)) == '{"text": "birds"}'
    whole = task.batch(["birds sing"])
    assert [dict(e.input) for e in task.examples(whole) or []] == [{"text": "birds sing"}]
    nothing = {**whole, "labels": torch.full_like(whole["labels"], IGNORED)}
    assert [dict(e.input) for e in task.examples(nothing) or []] == [
        {"prompt": "birds sing", "completion": ""}
    ]


def test_a_task_shows_no_training_data_unless_it_says_so() -> None:
    assert stagelens.Task.examples(ImageClassification(["a"], (1, 1, 1)), object()) is None


def test_steps_of_the_opposite_sign_are_told_and_drawn_as_neither() -> None:
    steps = pd.DataFrame({"step": range(3), "value": [1.0, -0.5, 0.25]})
    rates = pd.DataFrame({"step": [0], "lr": [0.1]})
    said = left_open("general", -2.0, 0.75)
    assert "opposite sign" in said and opposite(-2.0, 0.75) and not opposite(float("nan"), 0.75)
    colors = [
        set(step_contributions(steps, rates, MARGIN, "general", effect, "#123456").figure.data[1]
            .marker.color)
        for effect in (-2.0, 2.0)
    ]  # fmt: skip
    assert colors == [{color_of(0.0)}, {color_of(1.0), color_of(-1.0)}]


def test_early_or_late_is_told_by_what_was_measured_within_the_stage() -> None:
    rows = pd.DataFrame(
        [("first", 0, 0.0), ("first", 10, 4.0), ("second", 5, 1.0), ("second", 20, 0.5)],
        columns=["stage", "step", "value"],
    )
    said = seen_words(rows, "second", MARGIN, 20)
    assert "from 4.00 to 0.50; of 2 measured parts it moved most in steps 1 to 5 of 20" in said
    assert "(−3.00), early." in said
    assert seen_words(rows, "first", MARGIN, 10) == ""  # its boundaries alone
