"""What a task of one's own is, where its author wrote two methods."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stagelens import Behaviour, Example, Predictions, Task
from stagelens.contracts import TaskError


class MyNumbers(Task):
    def __init__(self, width: int = 4) -> None:
        self.width = width

    def build_model(self, config: Any = None) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(self.width, 1))

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.squeeze(1) - labels).square()


class MyClasses(MyNumbers):
    classes = ("cat", "dog", "cow")

    def build_model(self, config: Any = None) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(self.width, 3))

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, labels, reduction="none")


IMAGE = np.array([[0, 51], [102, 255]], np.uint8)


def test_images_and_numbers_are_collated_and_measured() -> None:
    task = MyNumbers()
    assert (task.name, task.config, task.input_fields) == ("my-numbers", {"width": 4}, ("image",))
    assert not task.labels_are_answers
    examples = [
        Example("a", {"image": IMAGE}, task.check_label("2.50")),
        Example("b", {"image": IMAGE}),
    ]
    batch = task.collate(examples)
    torch.testing.assert_close(batch[0][0, 0], torch.tensor([[0.0, 0.2], [0.4, 1.0]]))
    model = task.build_model()
    outputs = task.outputs(model, batch).detach()
    (values,) = task.behaviours(outputs, batch).values()
    assert values[0] == pytest.approx((float(outputs[0]) - 2.5) ** 2) and values[1].isnan()
    known = (batch[0][:1], batch[1][:1])
    assert float(task.loss(model, known)) == pytest.approx(float(values[0]))
    assert float(task.predictions(outputs).answers[0]) == pytest.approx(float(outputs[0]), rel=1e-3)
    with pytest.raises(ValueError, match="not a number"):
        task.check_label("old")


def test_named_classes_make_labels_classes() -> None:
    task = MyClasses()
    assert task.labels_are_answers and task.name == "my-classes"
    assert [task.check_label(each) for each in ("dog", 2, None)] == ["dog", "cow", None]
    coloured = np.stack([IMAGE] * 3, axis=2)
    batch = task.collate(
        [Example("a", {"image": coloured}, "cow"), Example("b", {"image": coloured})]
    )
    assert batch[0].shape == (2, 3, 2, 2) and batch[1].tolist() == [2, -1]
    logits = torch.tensor([[0.0, 0.0, math.log(2)], [math.nan] * 3])
    (values,) = task.behaviours(logits, batch).values()
    assert values[0] == pytest.approx(math.log(2)) and values[1].isnan()
    answers = task.predictions(logits)
    assert answers.answers == ["cow", "no answer"] and answers.confidences[0] == pytest.approx(0.5)


def test_a_name_is_inherited_only_where_somebody_chose_it() -> None:
    class Named(MyNumbers):
        name = "ages"

    class Older(Named):
        pass

    assert (MyClasses.name, Older.name) == ("my-classes", "ages")


def test_what_has_no_default_says_what_to_define() -> None:
    class Nothing(Task):
        def build_model(self, config: Any = None) -> nn.Module:
            return nn.Identity()

    class Forgetful(MyNumbers):
        def __init__(self, height: int) -> None:
            super().__init__()

    class Texts(MyNumbers):
        input_kind = "text"

    class Means(MyNumbers):
        def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
            return super().losses(outputs, labels).mean()

    with pytest.raises(TaskError, match=r"define losses\(outputs, labels\), or both loss"):
        Nothing().loss(nn.Identity(), (torch.zeros(1), torch.zeros(1)))
    with pytest.raises(TaskError, match=r"set self\.height, or define config"):
        _ = Forgetful(3).config
    assert Texts.input_fields == ("text",)
    with pytest.raises(TaskError, match="define collate"):
        Texts().collate([Example("a", {"text": "a"})])
    with pytest.raises(TaskError, match="return one value for each"):
        Means().behaviours(torch.zeros(2, 1), (None, torch.zeros(2)))
    with pytest.raises(TaskError, match=r"is not one number per example; define predictions"):
        MyNumbers().predictions(torch.zeros(2, 3))
    big = Example("big", {"image": np.zeros((3, 3), np.uint8)})
    with pytest.raises(TaskError, match="example 'big' is"):
        MyNumbers().collate([Example("a", {"image": IMAGE}), big])


def test_a_task_that_defines_its_own_words_keeps_them() -> None:
    class Words(MyNumbers):
        behaviour_kinds = (Behaviour("error", "lower"),)

        def predictions(self, outputs: Tensor) -> Predictions:
            return Predictions(["young"] * len(outputs), [math.nan] * len(outputs))

    # Its answers are compared with labels, and these may be any text.
    assert Words().labels_are_answers and Words().check_label(3) == "3"
