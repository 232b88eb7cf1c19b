"""Rows that several documents are packed into: each is an example, and can be left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.analyses.contributions.first_order import contributions
from stagelens.analyses.contributions.parts_of_the_set import parts_path
from stagelens.analyses.selection.ranked import ranking_path
from stagelens.analyses.training_data.tables import looks_path
from stagelens.analyses.without_data.stored import without_data_path
from stagelens.contracts import CARRIED, Example
from stagelens.derivatives.loss_parts import Split
from stagelens.estimators.without_rows import LeftOutRows, without_rows
from stagelens.replaying.left_out import Divisor, RowsOfStage, replay_without_rows
from stagelens.replaying.replay import replay_without
from stagelens.runs.run import Run
from stagelens.runs.states import load_into
from stagelens.runs.training_rows import example_key, training_rows, training_rows_path
from stagelens.tasks import CausalLM
from stagelens.tasks.packed_documents import documents_in
from tests.support.double_language import IGNORED, made
from tests.support.small_texts import TEXTS, gpt, gpt_tokenizer

ACCUMULATION, STEPS, RATE = 2, 3, 0.05


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def block(*lengths: int) -> Tensor:
    """(1, T, T): tokens read those before them in their document."""
    parts = [torch.ones(n, n, dtype=torch.bool).tril() for n in lengths]
    return torch.block_diag(*parts).bool()[None]


TOKENS = ids([5, 6, 7, 8, 9, 3, 3])
FOUND = {
    "positions": ({"position_ids": ids([0, 1, 2, 0, 1, 0, 0])}, [0, 0, 0, 1, 1, -1, -1]),
    "positions of all rows alike": (
        {"position_ids": ids([0, 1, 0, 1, 2, 3, 4])},
        [0, 0, 1, 1, 1, 1, 1],
    ),
    "positions, padded before": (
        {
            "position_ids": ids([1, 1, 0, 1, 0, 1, 2]),
            "attention_mask": ids([0, 0, 1, 1, 1, 1, 1]),
        },
        [-1, -1, 0, 0, 1, 1, 1],
    ),
    "lengths": ({"cu_seq_lens_q": torch.tensor([0, 3, 7])}, [0, 0, 0, 1, 1, 1, 1]),
    "numbers": ({"seq_idx": ids([0, 0, 1, 1, 2, 2, 2])}, [0, 0, 1, 1, 2, 2, 2]),
    "blocks": ({"attention_mask": ids([1, 1, 2, 2, 2, 0, 0])}, [0, 0, 1, 1, 1, -1, -1]),
    "pairs": ({"attention_mask": block(3, 2, 2)[:, None]}, [0, 0, 0, 1, 1, 2, 2]),
    "added to scores": (
        {"attention_mask": torch.zeros(1, 7, 7).masked_fill(~block(4, 3), -1e9)},
        [0, 0, 0, 0, 1, 1, 1],
    ),
}


@pytest.mark.parametrize("how", FOUND)
def test_where_documents_begin_is_read_off_the_batch(how: str) -> None:
    told, expected = FOUND[how]
    labels = TOKENS.clone()
    labels[0, [place for place, own in enumerate(expected) if own < 0]] = IGNORED
    found = documents_in({"input_ids": TOKENS, "labels": labels, **told})
    assert found is not None
    assert found.tolist() == [expected]


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"position_ids": torch.arange(7)[None]},
        {"attention_mask": ids([1, 1, 1, 1, 1, 0, 0])},
        {"attention_mask": block(7)},
    ],
)
def test_a_row_of_one_document_is_an_example_as_ever(told: Mapping[str, Tensor]) -> None:
    assert documents_in({"input_ids": TOKENS, "labels": TOKENS, **told}) is None


def test_the_end_of_text_ends_a_document_only_where_that_is_said() -> None:
    tokens = ids([5, 6, 3, 8, 9, 3, 3], [7, 7, 7, 7, 7, 7, 7])
    batch = {"input_ids": tokens, "labels": tokens}
    assert documents_in(batch) is None
    found = documents_in(batch, ends=[3])
    assert found is not None
    assert found.tolist() == [[0, 0, 0, 1, 1, 1, 2], [3] * 7]


# A recorded training


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return gpt_tokenizer(pad_token="<|endoftext|>")


def packed(tokenizer: Any, texts: list[str], how: str) -> dict[str, Tensor]:
    """One row; by ``position_ids`` as of a padding-free batch, or with an end behind each text."""
    end = [tokenizer.eos_token_id] if how == "ends" else []
    rows = [tokenizer(text)["input_ids"][:12] + end for text in texts]
    tokens = ids([token for row in rows for token in row])
    if how == "ends":
        return {"input_ids": tokens, "labels": tokens.clone()}
    positions = ids([place for row in rows for place in range(len(row))])
    labels = tokens.masked_fill(positions == 0, IGNORED)
    return {"input_ids": tokens, "labels": labels, "position_ids": positions}


def batches(tokenizer: Any, how: str) -> list[dict[str, Tensor]]:
    """Two documents a row, then three: the same text is seen more than once."""
    order = [[0, 1], [2, 3, 4], [1, 2], [4, 0, 1], [3, 1], [0, 4, 2]]
    return [packed(tokenizer, [TEXTS[number] for number in own], how) for own in order]


def recorded(folder: Path, tokenizer: Any, how: str, dropout: float = 0.1) -> Run:
    torch.manual_seed(0)
    drops = {name: dropout for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    # With a cache transformers lets documents read those before them, whatever positions say.
    own = gpt(tokenizer, use_cache=False, **drops)
    task = CausalLM.from_model(own, tokenizer, ends_documents=how == "ends", make_model=made)
    model = made(task.model)
    recorder = stagelens.Recorder(folder, task)
    for name in ("first", "second"):
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
        with recorder.stage(
            name,
            model=model,
            optimizer=optimizer,
            accumulation=ACCUMULATION,
            on_problem="raise",
        ) as stage:
            for number, batch in enumerate(batches(tokenizer, how), 1):
                loss = task.loss(model, batch)
                (loss / ACCUMULATION).backward()
                if number % ACCUMULATION == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                stage.step(batch, loss)
    recorder.add_set("test", inputs={"text": [TEXTS[0], TEXTS[4]]})
    recorder.close()
    return stagelens.open_run(folder, task)


@pytest.fixture(scope="module", params=["positions", "ends"])
def run(request: pytest.FixtureRequest, tmp_path_factory: Any, tokenizer: Any) -> Run:
    return recorded(tmp_path_factory.mktemp("packed") / "run", tokenizer, request.param)


def ends_in(run: Run) -> bool:
    return bool(run.task.config.get("ends_documents"))


def test_a_document_is_a_training_example_that_knows_its_uses(run: Run) -> None:
    rows = training_rows(run, run.stage("first"))
    steps = run.stage("first").read_steps()
    shown = [run.task.examples(micro.batch) for micro in steps[0].batches or ()]
    assert [len(own or ()) for own in shown] == [2, 3]
    texts = [example.input["text"] for own in shown for example in own or ()]
    assert texts[0] == TEXTS[0] and texts[1] == TEXTS[1]
    assert TEXTS[3].startswith(texts[3])
    assert len(rows) == len(TEXTS)
    table = rows.table.set_index("example_id")
    assert table.loc["0-0", "uses"] == 3
    assert list(table.loc["0-1", "steps"]) == [0, 1, 1, 2]
    assert list(table.loc["0-1", "positions"]) == [1, 0, 4, 1]


def test_results_of_versions_in_which_a_row_was_an_example_are_not_found(run: Run) -> None:
    """They say ``0-1`` of what is now another example."""
    stage, examples = run.stage("first"), run.evaluation_set("test")
    listed = training_rows_path(run, stage)
    training_rows(run, stage)
    some = LeftOutRows("first", ("0-1",))

    def paths() -> list[Path]:
        return [
            without_data_path(run, examples, some),
            parts_path(run, examples, "perplexity", ["a"], "first"),
            ranking_path(run, stage, examples, ["a"], "perplexity", 1),
            looks_path(run, "first"),
        ]

    assert example_key(run, "first") == ("documents",)
    now = [*paths(), some.settings_in(run)]
    content = listed.read_bytes()
    listed.unlink()  # as an earlier version left it, which called its list otherwise
    before = [*paths(), some.settings_in(run)]
    listed.write_bytes(content)
    assert all(one != other for one, other in zip(now, before, strict=True))


def by_hand(run: Run, tokenizer: Any, gone: set[str], divisor: Divisor) -> dict[str, Tensor]:
    """The first stage by a loop of its own that knows which texts are in which row."""
    stage = run.stage("first")
    model = run.task.build_model(stage.facts.build_config)
    load_into(model, stage.start().model)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    for step in stage.read_steps():
        losses = []
        for micro in step.batches or ():
            own = run.task.examples(micro.batch) or []
            sizes = [len(tokenizer(text)["input_ids"][:12]) + ends_in(run) for text in TEXTS]
            texts = [next(t for t in TEXTS if t.startswith(e.input["text"])) for e in own]
            counts = torch.tensor([sizes[TEXTS.index(text)] for text in texts])
            wanted = torch.tensor([text not in gone for text in texts])
            kept = wanted.repeat_interleave(counts)[None]
            torch.set_rng_state(micro.rng["cpu"])
            inputs = {n: t for n, t in micro.batch.items() if n != "labels"}
            logits, labels = model(**inputs).logits[:, :-1], micro.batch["labels"][:, 1:]
            each = nn.functional.cross_entropy(
                logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
            )
            counted = (labels != IGNORED) & kept[:, 1:]
            if not counted.any():
                continue
            terms = counted.sum() if divisor == "rest" else (labels != IGNORED).sum()
            losses.append((each * counted).sum() / terms)
        if losses:
            count = len(losses) if divisor == "rest" else ACCUMULATION
            optimizer.zero_grad()
            (torch.stack(losses).sum() / count).backward()
            optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("divisor", ["rest", "kept"])
@pytest.mark.parametrize("gone", [{0}, {0, 1}, {1, 3}])
def test_leaving_documents_out_is_what_a_loop_by_hand_gives(
    gone: set[int], divisor: Divisor, run: Run, tokenizer: Any
) -> None:
    stage = run.stage("first")
    texts = {TEXTS[number] for number in gone}
    names = [f"0-{number}" for number in gone]  # the first step has each text once, in order
    places = training_rows(run, stage).places(names)
    found = RowsOfStage(run.task, stage, divisor).replay(places).state.model
    expected = by_hand(run, tokenizer, texts, divisor)
    assert max(float((found[n] - t).abs().max()) for n, t in expected.items()) < 1e-12
    whole = by_hand(run, tokenizer, set(), divisor)
    assert max(float((found[n] - t).abs().max()) for n, t in whole.items()) > 1e-6


def test_none_and_all_are_the_recorded_model_and_the_run_without_the_stage(run: Run) -> None:
    stage = run.stage("first")
    rows = training_rows(run, stage)
    none = replay_without_rows(run, stage, {}).state.model
    assert all(torch.equal(none[name], own) for name, own in run.last.end().model.items())
    every = replay_without_rows(run, stage, rows.places(list(rows.table["example_id"])))
    without = replay_without(run, stage).state.model
    assert all(torch.equal(every.state.model[name], own) for name, own in without.items())
    assert every.left_out.skipped == STEPS


def test_whether_those_left_read_those_left_out_is_found_out_and_told(run: Run) -> None:
    rows = LeftOutRows("first", ("0-0",))
    reason = without_rows(run, rows).trust.reason
    if ends_in(run):
        assert "those that follow read them as they did" in reason
    else:
        assert "do not read one another" in reason


def test_documents_that_do_not_read_one_another_might_as_well_be_gone(
    tmp_path: Path, tokenizer: Any
) -> None:
    """Without dropout, whose masks would lie elsewhere, they are taken out of the rows."""
    run = recorded(tmp_path / "run", tokenizer, "positions", dropout=0.0)
    stage = run.stage("first")
    places = training_rows(run, stage).places(["0-0"])
    found = RowsOfStage(run.task, stage).replay(places)
    assert found.left_out.read is False
    model = run.task.build_model(stage.facts.build_config)
    load_into(model, stage.start().model)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    for step in stage.read_steps():
        for micro in step.batches or ():
            documents = documents_in(micro.batch)
            assert documents is not None
            own = run.task.examples(micro.batch) or []
            kept = torch.tensor([example.input["text"] != TEXTS[0] for example in own])
            mine = kept[documents[0]]
            batch = {name: tensor[:, mine] for name, tensor in micro.batch.items()}
            (run.task.loss(model, batch) / ACCUMULATION).backward()
        optimizer.step()
        optimizer.zero_grad()
    ended = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert max(float((found.state.model[n] - t).abs().max()) for n, t in ended.items()) < 1e-12


def test_contributions_of_documents_are_inner_products_with_their_own_gradients(
    run: Run,
) -> None:
    stage = run.stage("first")
    model = run.task.build_model(stage.facts.build_config).eval()
    load_into(model, stage.start().model)
    batch = (stage.read_steps()[0].batches or [])[1].batch
    documents = run.task.documents(batch)
    x = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    v = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in x]
    split = Split.of(run.task.loss, model, batch, 2.0)
    found = split.per_example(x, v, documents)
    terms, own = int((batch["labels"][:, 1:] != IGNORED).sum()), []
    for number in range(3):
        labels = batch["labels"].masked_fill(documents != number, IGNORED)
        mean = run.task.loss(model, {**batch, "labels": labels})
        share = mean * int((labels[:, 1:] != IGNORED).sum()) / terms / 2.0
        own.append(torch.autograd.grad(share, x))
        expected = sum(float((a * b).sum()) for a, b in zip(own[-1], v, strict=True))
        assert float(found[number]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    part = split.part(x, documents, {0, 2})
    fisher = split.outer(x, v, documents, 3.0)
    assert_close = torch.testing.assert_close
    for place in range(len(x)):
        assert_close(part[place], own[0][place] + own[2][place], rtol=1e-9, atol=1e-12)
        outer = sum(3.0 * found[n] * own[n][place] for n in range(3))
        assert_close(fisher[place], outer, rtol=1e-9, atol=1e-12)


def test_contributions_of_documents_add_up_to_their_step(run: Run) -> None:
    asked = [Example("one", {"text": TEXTS[0]})]
    found = contributions(run, "log-likelihood", asked, with_examples=True)
    assert found.steps_only == {}
    assert found.examples is not None
    table = found.examples
    documents = table[table["part"] != CARRIED].groupby(["stage", "step"])["position"].count()
    assert documents.tolist() == [5] * 6
    sums = table.groupby(["stage", "step"], sort=False)["contribution"].sum()
    assert sums.tolist() == pytest.approx(found.steps["contribution"].tolist(), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_texts_that_trl_packs_are_examples(strategy: str, tmp_path: Path) -> None:
    from tests.support.trl_trainings import Training, load, save_base, texts

    model, tokenizer = load(save_base(tmp_path / "base"))
    callback = stagelens.StageRecorderCallback(tmp_path / "run", "sft", on_problem="raise")
    settings = {"packing": True, "packing_strategy": strategy, "max_length": 40}
    settings |= {"per_device_train_batch_size": 1, "num_train_epochs": 2, "max_steps": -1}
    Training("sft", texts, settings).trainer(model, tokenizer, tmp_path / "out", [callback]).train()
    run = stagelens.open_run(tmp_path / "run")
    stage = run.stage("sft")
    rows = training_rows(run, stage)
    found: dict[str, int] = {}
    for step in stage.read_steps():
        for micro in step.batches or ():
            for example in stage.objective.examples(run.task, micro.batch) or ():
                text = str(example.input["text"])
                found[text] = found.get(text, 0) + 1
    whole = {text: found[text] for text in TEXTS if text in found}
    if strategy == "bfd":  # texts are kept together, each as often as it is in the data
        assert whole == dict.fromkeys(TEXTS, 8) == found
        assert len(rows) == len(TEXTS)
    else:  # cut where a row is full, so that some are in pieces
        assert len(whole) == len(TEXTS) and len(found) > len(TEXTS)
        assert all(any(piece in text for text in TEXTS) for piece in found)
    left = rows.table["example_id"][:1].tolist()
    trust = without_rows(run, LeftOutRows("sft", tuple(left))).trust
    assert trust.trust == "exact"
    across = "do not read one another" if strategy == "bfd" else "read them as they did"
    assert across in trust.reason
