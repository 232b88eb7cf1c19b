"""Parameters for which bitsandbytes keeps another state than for the others.

A Trainer has the moments of embeddings kept in 32 bits. bitsandbytes notes that in one place for
the whole process, by the address of the parameter; an optimiser that is made again gets a place of
its own, so that nothing else is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

_FLAG = "overrides"


def state_overrides(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """Parameter name to its own settings, under a flag of its own; empty for most optimisers."""
    manager = getattr(optimizer, "mng", None)
    if manager is None:
        return {}
    found: dict[str, Any] = {}
    for module, attribute, settings in manager.module_weight_config_triple:
        found[names.get(id(getattr(module, attribute, None)), "")] = settings
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            name = names.get(id(parameter), "")
            for own in (
                manager.index2config.get((number, place)),
                manager.pid2config.get(id(parameter)),
            ):
                if own:
                    found[name] = {**found.get(name, {}), **own}
    trained = {names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]}
    found = {name: dict(own) for name, own in found.items() if name and name in trained}
    return {_FLAG: found} if found else {}


def set_overrides(
    optimizer: torch.optim.Optimizer,
    flags: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Give an optimiser that was just made its overrides, and no others."""
    manager = getattr(optimizer, "mng", None)
    if manager is None:
        return
    own: Any = object.__new__(type(manager))  # its class allows one only
    own.initialize()
    for name, settings in flags.get(_FLAG, {}).items():
        own.pid2config[id(parameters[name])] = settings
    optimizer.mng = own  # type: ignore[attr-defined]
