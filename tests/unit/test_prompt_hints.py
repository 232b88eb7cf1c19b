"""What prompts have in common, and what one of somebody's own lacks of it."""

from __future__ import annotations

import pytest

from stagelens.ui.examples.prompt_hints import form_of, lacking

ASKED = [
    f"{word} {thing} ?" for word in ("what is", "who was") for thing in ("it", "he", "she", "one")
]


@pytest.mark.parametrize(
    ("begin", "end", "form"),
    [
        ("<user> ", " <assistant>", ("<user>", "? <assistant>")),
        (
            "<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
            ("<|im_start|>user", "?<|im_end|>\n<|im_start|>assistant"),
        ),
        ("", "", ("", "?")),
    ],
)
def test_the_form_is_what_all_prompts_share_in_whole_words(
    begin: str, end: str, form: tuple[str, str]
) -> None:
    prompts = [f"{begin}{asked}{end}" for asked in ASKED]
    assert form_of(prompts) == form
    assert not any(lacking(prompt, *form) for prompt in prompts)


def test_few_prompts_or_one_many_times_have_no_form() -> None:
    assert form_of(ASKED[:7]) == ("", "")
    assert form_of(["<user> the same"] * 20) == ("", "")
    assert form_of([]) == ("", "")


def test_what_a_prompt_lacks_is_named() -> None:
    form = ("<user>", "<assistant>")
    assert lacking("who is it?", *form) == "begin with “<user>” or end with “<assistant>”"
    assert lacking("<user> who is it?", *form) == "end with “<assistant>”"
    assert lacking(" <user> who is it? <assistant>\n", *form) == ""
    assert lacking("who is it?", "", "") == ""
