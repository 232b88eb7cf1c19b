"""Integrated gradients of stage effects: what they sum to, and where they are zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stagelens.analyses.saliency.map_table import BASELINES, REFERENCES, load_maps, map_facts
from stagelens.analyses.saliency.maps import attributed, integrated, stage_maps
from stagelens.analyses.saliency.switched import Baseline, Pixels, Switched, Tokens
from stagelens.contracts import Example, Refused, Task
from stagelens.effects.computing import attribute
from stagelens.tasks import CausalLM, ImageClassification, TextClassification
from tests.support.small_runs import DeadUnits
from tests.support.small_texts import bert, bert_tokenizer, gpt, gpt_tokenizer

CLOSE = 1e-6
"""captum holds the weights of the integral in float32."""
Pair = tuple[Switched, list[nn.Module]]


def plain(example: Example, value: float) -> list[Example]:
    """A baseline of one colour."""
    pixels = np.full_like(example.input["image"], value)
    return [Example(example.example_id, {"image": pixels}, example.label)]


def frozen(model: nn.Module) -> nn.Module:
    return model.double().eval().requires_grad_(False)


def image_task(**options: object) -> ImageClassification:
    return ImageClassification(["a", "b", "c"], (2, 5, 4), **options)  # type: ignore[arg-type]


def image(seed: int = 0) -> Example:
    pixels = np.random.default_rng(seed).normal(size=(5, 4, 2))
    return Example(f"image {seed}", {"image": pixels}, "b")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    parts = nn.Conv2d(2, 6, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(120, 3)
    return frozen(nn.Sequential(*parts))


def images() -> Pair:
    ground = plain(image(), 0.5)
    return Pixels(image_task(), image(), ground), [network(1), network(2)]


def comments() -> Pair:
    tokenizer = bert_tokenizer()
    models = [bert(tokenizer, seed) for seed in (0, 1)]
    task = TextClassification.from_model(models[0], tokenizer)
    example = Example("comment", {"text": "the cat sat on the long mat"}, "loud")
    return Tokens(task, example, [[0], [5, 9, 7]]), [frozen(model) for model in models]


def completions() -> Pair:
    tokenizer = gpt_tokenizer(begin="<s>")
    models = [gpt(tokenizer, seed) for seed in (0, 1)]
    task = CausalLM.from_model(models[0], tokenizer)
    texts = {"prompt": "two and two", "completion": " make four", "rejected": " sang"}
    return Tokens(task, Example("sum", texts), [[0]]), [frozen(model) for model in models]


CASES = [
    *((images, name) for name in ("margin", "loss", "probability")),
    *((comments, name) for name in ("margin", "loss", "probability")),
    *((completions, n) for n in ("log-likelihood", "log-likelihood per token", "perplexity")),
]


@pytest.mark.parametrize(("case", "behaviour"), CASES)
def test_a_map_sums_to_the_effect_less_that_on_the_baseline(case, behaviour: str) -> None:
    own, models = case()
    found = attributed(own, "x", models, behaviour)
    assert found.holds and found.final.shape == own.shape
    assert found.total == pytest.approx(found.effect - found.baseline_effect, rel=0.05)
    exact = [integrated(own, model, behaviour, 512).sum() for model in models]
    changes = [i - b for i, b in zip(found.inputs, found.baselines, strict=True)]
    assert np.allclose(exact, changes, rtol=1e-4, atol=1e-5)


class Difference(nn.Module):
    """Two models as one, whose logits are the first's beside the second's."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([model(pixels) for model in self.models], 1)


class EffectItself(ImageClassification):
    """Gives the difference of the two models' margins as one behaviour."""

    def behaviours(self, outputs, batch):
        first, second = (
            super(EffectItself, self).behaviours(o, batch) for o in outputs.chunk(2, 1)
        )
        return {"margin": first["margin"] - second["margin"]}


def test_the_difference_of_two_maps_is_the_map_of_the_difference() -> None:
    own, models = images()
    ground = plain(image(), 0.5)
    both = Pixels(EffectItself(["a", "b", "c"], (2, 5, 4)), image(), ground)
    direct = integrated(both, frozen(Difference(models)), "margin", 64)
    final, without = (integrated(own, model, "margin", 64) for model in models)
    assert np.allclose(final - without, direct, rtol=0, atol=1e-12)
    assert np.abs(direct).max() > 0.01


class Score(Task):
    """A linear model on images in channels, told apart by nothing else."""

    name, input_kind = "score", "image"

    @property
    def config(self):
        return {}

    def build_model(self, config=None):
        return nn.Sequential(nn.Flatten(), nn.Linear(40, 1))

    def collate(self, examples):
        pixels = [np.moveaxis(np.asarray(e.input["image"]), 2, 0) for e in examples]
        return (torch.from_numpy(np.stack(pixels)),)

    def loss(self, model, batch):
        raise NotImplementedError

    def behaviours(self, outputs, batch):
        return {"score": outputs.squeeze(1)}

    def predictions(self, outputs):
        raise NotImplementedError


def test_of_a_linear_model_the_map_is_weights_times_change() -> None:
    task, example = Score(), image()
    models = [frozen(task.build_model()) for _ in range(2)]
    ground = plain(example, -0.25)
    found = attributed(Pixels(task, example, ground), "x", models, "score")
    change = np.moveaxis(example.input["image"] + 0.25, 2, 0)
    for model, own in zip(models, (found.final, found.without), strict=True):
        weights = model[1].weight.numpy().reshape(2, 5, 4)  # type: ignore[index]
        assert np.allclose(own, (weights * change).sum(0), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("case", [comments, completions])
def test_a_token_has_the_gradients_of_its_embedding_along_the_way(case) -> None:
    own, (model, _) = case()
    behaviour = own.task.behaviour_kinds[0].name
    layer = model.get_input_embeddings()
    batch = own.task.collate([own.example])
    embedded = layer(batch["input_ids"])
    total = torch.zeros(own.shape, dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    for ground in layer(own.ground):
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            point = (ground + node * (embedded - ground)).requires_grad_()
            hook = layer.register_forward_hook(lambda *_, point=point: point)
            value = own.task.behaviours(own.task.outputs(model, batch), batch)[behaviour].sum()
            hook.remove()
            (gradient,) = torch.autograd.grad(value, point)
            total += weight * (gradient * (embedded - ground)).sum(-1)[0] / own.references
    found = integrated(own, model, behaviour, 40)
    assert np.allclose(found, total, rtol=1e-5, atol=CLOSE)
    frame = torch.isin(batch["input_ids"][0], torch.tensor(sorted(own.task.special_ids))).numpy()
    assert frame.any() and (found[frame] == 0).all() and np.abs(found).max() > 0.01


def test_what_a_model_does_not_look_at_has_nothing() -> None:
    task = image_task()
    models = [network(1), network(2)]
    with torch.no_grad():
        for model in models:
            model[0].weight[:, 1] = 0  # type: ignore[index]
    pixels = image().input["image"].copy()
    ground = plain(image(), 0.0)
    pixels[:, :, 0] = 0.0
    found = attributed(Pixels(task, Example("x", {"image": pixels}, "a"), ground), "x", models,
                       "margin")  # fmt: skip
    assert not found.final.any() and not found.stage.any() and found.holds
    dead = [frozen(DeadUnits()) for _ in range(2)]
    for model in dead:
        model[3].weight.zero_()  # type: ignore[index]
    small = ImageClassification(["a", "b", "c"], (1, 4, 4))
    one = Example("y", {"image": np.ones((4, 4))}, "a")
    found = attributed(Pixels(small, one, plain(one, 0.0)), "y", dead, "margin")
    assert not found.stage.any() and found.effect == pytest.approx(found.baseline_effect)


@pytest.mark.parametrize("case", [images, comments, completions])
@pytest.mark.parametrize("rows", [1, 7, 500])
def test_how_many_rows_pass_at_once_changes_nothing(case, rows: int) -> None:
    own, (model, _) = case()
    behaviour = "margin" if case is not completions else "log-likelihood"
    whole = integrated(own, model, behaviour, 32)
    own.rows = rows
    assert np.allclose(integrated(own, model, behaviour, 32), whole, rtol=1e-9, atol=1e-12)


class Step(nn.Module):
    """Nearly all of its change happens in one place on the way from the baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.sharp = nn.Parameter(torch.tensor(4000.0))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.sharp * (pixels.mean((1, 2, 3), keepdim=True)[..., 0, 0] - 0.377))


@pytest.mark.slow
def test_steps_are_doubled_until_sums_hold_and_else_the_map_says_so() -> None:
    one = Example("x", {"image": np.ones((5, 4, 2))})
    own = Pixels(Score(), one, plain(one, 0.0))
    model = frozen(Step())
    flat = frozen(Score().build_model())
    rough = attributed(own, "x", [model, flat], "score", most_steps=64)
    assert rough.steps == 64 and not rough.holds and rough.error > 0.05
    fine = attributed(own, "x", [model, flat], "score", most_steps=8192)
    assert fine.holds and fine.steps > 64


def test_what_cannot_be_attributed_is_refused_by_name() -> None:
    models = [network(1), network(2)]
    blind = Example("blind", image().input, None)
    with pytest.raises(Refused, match="'blind' has no margin"):
        attributed(Pixels(image_task(), blind, plain(blind, 0.0)), "blind", models,
                   "margin")  # fmt: skip

    class Counted(Score):
        name = "counted"

        def behaviours(self, outputs, batch):
            return {"score": outputs.detach().squeeze(1)}

    ground = plain(image(), 0.0)
    with pytest.raises(Refused, match=r"'score' cannot be attributed: .* without gradients"):
        attributed(Pixels(Counted(), image(), ground), "x", [frozen(Score().build_model())] * 2,
                   "score")  # fmt: skip

    class Named(Score):
        name = "named"

        def collate(self, examples):
            return {"pixels": super().collate(examples)[0]}

    with pytest.raises(Refused, match="'named' cannot be attributed to pixels"):
        Pixels(Named(), image(), ground)


def test_a_task_that_embeds_texts_in_its_own_way_is_refused_by_name(run) -> None:
    class Reviews(Score):
        name, input_kind = "reviews", "text"

    with pytest.raises(Refused, match="'reviews' cannot be attributed to tokens"):
        Baseline(Reviews(), run.evaluation_set("test"), "padding")


def test_maps_of_a_run_are_stored_and_found_again(run) -> None:
    ids = run.evaluation_set("test").table([])["example_id"].iloc[[3, 7]].tolist()
    found = stage_maps(run, "test", "second", ids, "task-vector", baseline="mean")
    assert [each.example_id for each in found.maps] == ids and all(m.holds for m in found.maps)
    assert found.trust.trust == "estimated" and found.behaviour.name == "margin"
    facts = map_facts(run, "test", "task-vector", {}, "second", "margin", "mean")
    stored = load_maps(run, facts)
    for each in found.maps:
        assert np.array_equal(stored[each.example_id].stage, each.stage)
        assert stored[each.example_id].inputs == each.inputs
    more = run.evaluation_set("test").table([])["example_id"].iloc[[9, 7]].tolist()
    again = stage_maps(run, "test", "second", more, "task-vector", baseline="mean")
    assert [each.example_id for each in again.maps] == more
    assert set(load_maps(run, facts)) == {*ids, *more}
    assert load_maps(run, facts.model_copy(update={"baseline": "black"})) == {}
    with pytest.raises(
        Refused, match="no baseline 'grey' for images; use black, white, mean, others"
    ):
        stage_maps(run, "test", "second", ids, "task-vector", baseline="grey")
    with pytest.raises(Refused, match=r"no behaviour 'accuracy' .* use margin, loss, probability"):
        stage_maps(run, "test", "second", ids, "task-vector", behaviour="accuracy")


def test_the_effect_is_that_of_the_table(run) -> None:
    table = attribute(run, "test", "replay").table
    rows = table[(table["stage"] == "third") & (table["behaviour"] == "loss")].head(3)
    found = stage_maps(
        run, "test", "third", rows["example_id"].tolist(), "replay", behaviour="loss"
    )
    assert np.allclose([m.effect for m in found.maps], rows["effect"], rtol=1e-4, atol=1e-5)
    assert found.trust.trust == "exact"


def test_baselines_are_of_the_set(run) -> None:
    examples = run.evaluation_set("test")
    pixels = np.stack([e.input["image"] for e in examples.examples()])
    made = {name: Baseline(run.task, examples, name) for name in BASELINES["image"]}
    assert made["black"].values == [pixels.min()] and made["white"].values == [pixels.max()]
    assert np.allclose(made["mean"].values, pixels.mean(0))
    others = made["others"].values
    assert len(others) == REFERENCES
    assert all((pixels == other).all((1, 2)).any() for other in others)
    own = made["others"].switched(examples.examples(0, 1)[0])
    assert own.references == REFERENCES and own.shape == (4, 4)


def test_texts_are_filled_with_the_words_of_others() -> None:
    own, _ = comments()
    assert own.ground[0].tolist()[1:-1] == [0] * 7
    assert own.ground[1].tolist()[1:-1] == [5, 9, 7, 5, 9, 7, 5]
    assert (own.ground[:, [0, -1]] == torch.tensor([2, 3])).all()


def test_a_damaged_table_is_made_anew(run) -> None:
    ids = run.evaluation_set("test").table([])["example_id"].iloc[:1].tolist()
    found = stage_maps(run, "test", "first", ids, "task-vector")
    facts = map_facts(run, "test", "task-vector", {}, "first", "margin", "black")
    (path,) = [p for p in (run.path / "results/saliency").glob("*") if b"first" in p.read_bytes()]
    path.write_bytes(b"nothing")
    assert load_maps(run, facts, ids) == {}
    again = stage_maps(run, "test", "first", ids, "task-vector")
    assert np.array_equal(again.maps[0].stage, found.maps[0].stage)
