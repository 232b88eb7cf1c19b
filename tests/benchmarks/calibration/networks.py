"""Small image networks of the calibration bench, and the task that builds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stagelens.tasks.image_classification import ImageClassification


class BenchImages(ImageClassification):
    """Images by one of :func:`build`'s networks."""

    name: ClassVar[str] = "bench-images"

    def build_model(self, config: Mapping[str, Any] | None = None) -> nn.Module:
        """See :func:`build`."""
        config = self.model if config is None else config
        return build(self.image_shape, len(self.classes), **config)


def build(shape: tuple[int, ...], classes: int, kind: str, width: int, norm: str) -> nn.Module:
    """An untrained network.

    Args:
        shape: Channels, height and width of an image.
        classes: How many outputs it has.
        kind: mlp, cnn, residual or vit.
        width: Units of a hidden layer, channels, or the length of a token.
        norm: none, batch or group.
    """
    channels, size, _ = shape
    if kind == "mlp":
        inputs = channels * size * size
        layers = [nn.Flatten(), nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width // 2)]
        return nn.Sequential(*layers, nn.GELU(), nn.Linear(width // 2, classes))
    if kind == "vit":
        return _ViT(shape, classes, width)
    if kind == "residual":
        body = [_Residual(width, norm), _Residual(width, norm)]
        stem = [nn.Conv2d(channels, width, 3, 2, 1), _norm(norm, width), nn.ReLU()]
        return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(2), *_head(4 * width, classes))
    convolutions: list[nn.Module] = []
    for inputs, outputs in ((channels, width), (width, 2 * width)):
        convolutions += [nn.Conv2d(inputs, outputs, 3, 2, 1), _norm(norm, outputs), nn.ReLU()]
    left = math.ceil(math.ceil(size / 2) / 2)
    return nn.Sequential(*convolutions, *_head(2 * width * left * left, classes))


def _head(features: int, classes: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, classes)]


def _norm(norm: str, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(2, channels) if norm == "group" else nn.Identity()


class _Residual(nn.Module):
    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(width, width, 3, 1, 1), _norm(norm, width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 1, 1), _norm(norm, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class _ViT(nn.Module):
    """Two blocks of attention over patches; its attention has forward-mode derivatives."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__()
        channels, size, _ = shape
        patch = size // 7
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.blocks = nn.Sequential(_Block(width), _Block(width), nn.LayerNorm(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.blocks(tokens).mean(1))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, count, width = x.shape
        parts = self.inner(self.before(x)).view(rows, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(query @ key.transpose(-1, -2) * (width / self.heads) ** -0.5, -1)
        x = x + self.outer((weights @ value).transpose(1, 2).reshape(rows, count, width))
        return x + self.mlp(self.after(x))
