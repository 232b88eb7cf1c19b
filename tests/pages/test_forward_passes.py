"""What models do inside the dashboard: forward passes, one page at a time, and no training."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from stagelens.runs.run import open_run
from stagelens.runs.sets.images import encode_pixels
from stagelens.ui.server import forward_passes
from tests.pages.reading import check

EXAMPLES, REMOVAL = "pages/1_Examples.py", "pages/3_Remove_a_stage.py"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """For every call of a module, whether its thread had the turn; no optimiser may step."""

    def step(*_: object, **__: object) -> None:
        raise AssertionError("an optimiser stepped inside the dashboard")

    monkeypatch.setattr(torch.optim.Optimizer, "step", step)
    in_turn: list[bool] = []
    hook = register_module_forward_pre_hook(
        lambda *_: in_turn.append(forward_passes._turn()._is_owned())
    )
    yield in_turn
    hook.remove()


def test_maps_of_one_example_are_made_in_turn(open_page, demo_copy: Path, passes) -> None:
    example = open_run(demo_copy).evaluation_set("test").examples(0, 1)[0].example_id
    link = f"run=digits&set=test&example={example}&look=Where"
    check(open_page(demo_copy.parent, link, EXAMPLES))
    assert passes and all(passes)


def test_edited_models_are_measured_in_turn(open_page, demo_copy: Path, passes) -> None:
    check(open_page(demo_copy.parent, "run=digits&set=test&remove-1=35", REMOVAL))
    assert passes and all(passes)


def test_an_own_example_is_answered_in_turn(open_page, demo: Path, passes) -> None:
    app = check(open_page(demo.parent, "run=digits&view=Own+example", EXAMPLES))
    image = open_run(demo).evaluation_set("test").examples(0, 1)[0].input["image"]
    app.file_uploader[0].set_value(("mine.png", encode_pixels(image), "image/png"))
    check(app.run())
    assert passes and all(passes)


def test_two_pages_that_ask_models_wait_for_each_other() -> None:
    inside, most = 0, 0
    together = threading.Barrier(4)

    def ask() -> None:
        nonlocal inside, most
        together.wait()
        for _ in range(50):
            with forward_passes.alone():
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
