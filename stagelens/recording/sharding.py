"""Models that torch's ``fully_shard`` shares out: what replay cannot have of them."""

from __future__ import annotations

from typing import Any

from torch import nn

from stagelens.contracts import RecordingError
from stagelens.runs.shards import is_shared_out, sharding_modules

_CASTS = ("param_dtype", "reduce_dtype", "output_dtype")


def check_sharded(model: nn.Module, count: int) -> None:
    """Refuse what a replay does not do as ``fully_shard`` was told to.

    Parts may be replicated over a second dimension of the mesh (HSDP): gradients are the mean over
    all processes all the same.

    Args:
        model: The sharded one.
        count: How many processes train it.

    Raises:
        RecordingError: Names what it is, and what to do.
    """
    if not any(True for _ in sharding_modules(model)):
        raise RecordingError(
            "the model's parameters are shared out, but not by fully_shard, as in tensor "
            "parallelism (parallelize_module, tp_plan), whose processes share micro-batches; "
            "record a training with fully_shard or DistributedDataParallel"
        )
    for name, parameter in model.named_parameters():
        own: Any = parameter
        if not is_shared_out(parameter):
            if parameter.requires_grad:
                raise RecordingError(
                    f"{name} is trained and not shared out over processes, so that each has a "
                    "gradient of its own for it; call fully_shard on the model itself too, "
                    "without ignored_params, or freeze it"
                )
        elif own.device_mesh.size() != count:
            raise RecordingError(
                f"{name} is shared out over {own.device_mesh.size()} of {count} processes; record "
                "a training in which all of them share it"
            )
        elif sum(place.is_shard() for place in own.placements) != 1:
            raise RecordingError(
                f"{name} is shared out in more than one way ({own.placements}), as by tensor "
                "parallelism, whose micro-batches replay does not know; record a training with "
                "fully_shard alone"
            )
    for name, module in sharding_modules(model):
        _check_policy(name or "the model", module)


def _check_policy(name: str, module: Any) -> None:
    # torch has no public names for what fully_shard was told.
    state = module._get_fsdp_state()
    for cast in _CASTS:
        dtype = getattr(state._mp_policy, cast, None)
        # Gradients that are added up in their own dtype are not cast. Of the others even the
        # parameters' own may cast: inputs and outputs that are in another one.
        if cast == "reduce_dtype" and all(each.dtype == dtype for each in module.parameters()):
            continue
        if dtype is not None:
            raise RecordingError(
                f"fully_shard casts in {name} (MixedPrecisionPolicy({cast}={dtype})), which a "
                "replay does not; train under torch.autocast, which is recorded, or in the "
                f"model's own dtype, model.to({dtype})"
            )
    for group in _groups(state):
        factor = getattr(group, "gradient_divide_factor", None)
        if factor is not None:
            raise RecordingError(
                f"gradients of {name} are divided by {factor:g} in place of the number of "
                "processes (set_gradient_divide_factor), which a replay does not; multiply the "
                "loss by what it is to be, and note that loss"
            )


def _groups(state: Any) -> list[Any]:
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        groups = [getattr(state, "_fsdp_param_group", None)]
    return [group for group in groups if group is not None]
