"""Maps of texts name words and spans, whatever pieces a tokenizer has cut them into."""

from __future__ import annotations

import numpy as np
import pytest

from stagelens.analyses.saliency.concentration import densest_word
from stagelens.analyses.saliency.spans import strongest_span, words_of
from stagelens.charts.saliency import token_maps
from stagelens.charts.tokens import shaded_tokens
from stagelens.contracts import Behaviour
from tests.support.saliency_maps import text_map

MARGIN = Behaviour("margin", "higher", "nats")
PIECES = ("you", " are", " un", "believ", "able", ",", " fool", "s", "!")


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (PIECES, ["you", " are", " unbelievable", ",", " fools", "!"]),
        (("Ġa", "b"), ["Ġa", "b"]),  # no spaces are left, so nothing says what belongs together
        ((" 19", "84"), [" 1984"]),
        ((), []),
    ],
)
def test_pieces_make_words(tokens: tuple[str, ...], words: list[str]) -> None:
    assert ["".join(tokens[start:end]) for start, end in words_of(tokens)] == words


def test_a_span_is_the_strongest_word_with_neighbours_like_it() -> None:
    values = np.array([0.0, 0.1, -1.0, -1.0, -1.0, -0.1, -2.0, -0.5, 0.4])
    assert strongest_span(PIECES, values) == ("unbelievable", -3.0)
    # The comma between is weaker than half of it; a neighbour of the other sign ends the span.
    values[5] = -2.0
    assert strongest_span(PIECES, values) == ("unbelievable, fools", -7.5)
    assert strongest_span(("a", "b"), np.array([1.0, 0.9])) == ("a b", 1.9)
    assert strongest_span(PIECES, np.full(9, np.nan))[1] == 0.0


def test_maps_and_shaded_texts_name_no_pieces() -> None:
    values = [0.0, 0.0, -1.0, -0.9, -1.1, 0.0, 0.5, 0.6, 0.0]
    assert (
        "most in 'unbelievable' (blame, 3.00)"
        in token_maps(text_map(PIECES, values), MARGIN, "sft").alt
    )
    assert shaded_tokens(PIECES, np.array(values), MARGIN, "sft").alt.endswith(
        "Most credit for 'fools' (1.10); most blame for 'unbelievable' (3.00)."
    )
    found = densest_word([PIECES, (" Un", "believable")], [np.array(values), np.array([1.0, 1.0])])
    assert found is not None and (found.name, found.count) == ("unbelievable", 2)
