"""Every architecture of the installed transformers: a run's models answer as from_pretrained's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_models import Unbuilt, architectures, assembled_alike

PLAIN = [
    ("llama", "causal"),
    ("mixtral", "causal"),  # experts that are merged at loading
    ("gpt2", "causal"),  # tied weights
    ("gpt_neox", "causal"),  # other names in its files
    ("distilbert", "classifier"),
]
NAMED = {
    ("emu3", "causal"): "a folder saved so is of kind emu3_text_model, which is in no list",
    ("mllama", "causal"): "a folder saved so is of kind mllama_text_model, which is in no list",
    ("youtu", "causal"): "from_pretrained zeroes the row of padding, which the files hold",
    ("funnel", "classifier"): "from_pretrained zeroes the row of padding, which no answer reads",
}
"""What does not pass, and why."""

REST = [
    pytest.param(kind, which, marks=pytest.mark.xfail(strict=True, reason=NAMED[kind, which]))
    if (kind, which) in NAMED
    else (kind, which)
    for which in ("causal", "classifier")
    for kind in architectures(which)
    if (kind, which) not in PLAIN
]


@pytest.mark.parametrize(("kind", "which"), PLAIN)
def test_a_run_has_the_models_that_transformers_loads(
    kind: str, which: str, tmp_path: Path
) -> None:
    assembled_alike(kind, which, tmp_path)


@pytest.mark.extensive
@pytest.mark.parametrize(("kind", "which"), REST)
def test_every_run_has_the_models_that_transformers_loads(
    kind: str, which: str, tmp_path: Path
) -> None:
    try:
        assembled_alike(kind, which, tmp_path)
    except Unbuilt as reason:
        pytest.skip(f"not made small by the rules: {reason}")
