"""Models without values: their parameters take no memory until recorded ones are put in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import memory

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Within the block, parameters that this thread gives a module have shapes, but no values.

    Buffers are computed as usual: what a model derives from its configuration, such as the
    frequencies of rotary positions, no checkpoint holds.
    """
    import torch
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook
    from torch.overrides import TorchFunctionMode

    class Empty(TorchFunctionMode):
        """Nearly all parameters begin as this; memory that is freed again may stay reserved."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            given = kwargs or {}
            if func is torch.empty and given.get("device") is None:
                given = {**given, "device": "meta"}
            return func(*args, **given)

    own = threading.get_ident()

    def moved(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        # One that is there already is shared (tied weights), and has to stay the same object.
        if threading.get_ident() != own or parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(moved)
    try:
        with Empty():
            yield
    finally:
        handle.remove()


def allocate(module: nn.Module, device: torch.device | str = "cpu") -> None:
    """Give parameters without values memory of their own, in place; what it holds is arbitrary.

    Raises:
        StageLensError: There is not enough of the CPU's memory; says how much it takes.
    """
    import torch
    from torch import nn

    if torch.device(device).type == "cpu":
        needed = sum(p.nbytes for p in module.parameters() if p.is_meta)
        memory.check(needed, "the model")
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in made:  # else a tied weight, which has to stay one
                empty = torch.empty_like(parameter, device=device)
                made[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
            part._parameters[name] = made[id(parameter)]
