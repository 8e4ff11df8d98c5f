"""The shapes of published models are those the converter would read off their files."""

from __future__ import annotations

import pytest
import torch

from shared.models.shapes import SHAPES
from shared.models.transformer import Transformer
from shared.models.zoo import PUBLISHED
from training.sources import Tensors
from training.upstream import llamagen_config


def test_every_published_model_with_a_shape_is_known() -> None:
    assert SHAPES.keys() <= PUBLISHED.keys()


@pytest.mark.parametrize(("name", "grid"), [("llamagen-xl-256", 16), ("llamagen-xl-512", 32)])
def test_llamagen_shapes_are_the_converters(name: str, grid: int) -> None:
    with torch.device("meta"):
        state = Transformer(SHAPES[name]).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert llamagen_config(Tensors(shapes, torch.float32, state.__getitem__), grid, None) == SHAPES[name]


def test_anole_has_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = Transformer(SHAPES["anole"])
    text_head = (65536 - 8192) * 4096
    count = sum(value.numel() for value in model.state_dict().values()) + text_head
    assert count / 1e9 == pytest.approx(7.0137, rel=2e-4)
