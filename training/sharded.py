"""Whole tensors of sharded ones and back, so that a checkpoint fits any number of processes.

Knows nothing of models. A tensor that is not sharded passes through untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tree: Any) -> Any:  # noqa: ANN401 - what a state dict holds
    """Every sharded tensor of nested dicts and lists, gathered. A collective: every process calls it."""
    if isinstance(tree, Mapping):
        return {name: whole(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value) for value in tree]
    return tree.full_tensor() if isinstance(tree, DTensor) else tree


def like(pattern: Tensor, value: Tensor) -> Tensor:
    """`value` on the device of `pattern`, and sharded as it is."""
    value = value.to(pattern.device)
    if not isinstance(pattern, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value, pattern.device_mesh, pattern.placements)


def all_like(patterns: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`like`, name by name; names without a pattern are kept for the loader to complain about."""
    return {n: like(patterns[n], value) if n in patterns else value for n, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state of whole tensors; moments are sharded as their parameters."""
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = like(parameter, value)
