"""FSDP2: weights, gradients and optimizer state divided among the processes (Zhao et al. 2023; torch's fully_shard).

Each decoder layer is a group that is gathered for its own computation; all else (embeddings, output layer, norm,
prefix) is the group of the whole, gathered while a batch is computed. The learner calls parts of the model on its
way, and all of them are inside its own forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danlu.core.console import note
from danlu.core.errors import ConfigError, did_you_mean
from danlu.tune.options.parallel import ParallelOptions
from danlu.tune.parallel.configs import fsdp_settings

WITHOUT_EFFECT = frozenset(
    {
        *("state_dict_type", "cpu_ram_efficient_loading", "use_orig_params", "sync_module_states"),
        *("forward_prefetch", "backward_prefetch", "backward_prefetch_policy", "limit_all_gathers"),
        *("auto_wrap_policy", "min_num_params", "sharding_strategy", "xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt"),
    }
)
"""Settings of accelerate and FSDP1 that ask for nothing here: groups are layers, checkpoints are whole."""

KNOWN = (
    *("version", "reshard_after_forward", "cpu_offload", "offload_params"),
    *("transformer_layer_cls_to_wrap", "activation_checkpointing"),
)


@dataclass(frozen=True, slots=True)
class ShardingPlan:
    """How weights are divided.

    Attributes:
        reshard: give a layer's weights up after its forward pass, and gather them again for the backward pass.
        offload: keep what is divided in the memory of the CPU.
        layers: names of the classes that are groups; those of the model's decoder layers when empty.
    """

    reshard: bool = True
    offload: bool = False
    layers: tuple[str, ...] = ()


def sharding_plan(options: ParallelOptions) -> ShardingPlan | None:
    """What the options ask for, or None.

    Raises:
        ConfigError: for a setting that is unknown, or would have no effect although it should.
    """
    settings = fsdp_settings(options)
    if settings is None:
        return None
    for key in settings:
        if key not in KNOWN and key not in WITHOUT_EFFECT:
            raise ConfigError(f"FSDP2 has no setting {key!r}", where="fsdp_config", hint=did_you_mean(key, KNOWN))
    if idle := sorted(WITHOUT_EFFECT & set(settings)):
        note(f"not needed with FSDP2: {', '.join(idle)}")
    if _truth(settings.get("activation_checkpointing", False)):
        raise ConfigError(
            "activations are recomputed by the model itself",
            where="fsdp_config:activation_checkpointing",
            hint="Use gradient_checkpointing=true.",
        )
    layers = settings.get("transformer_layer_cls_to_wrap") or ()
    return ShardingPlan(
        reshard=_truth(settings.get("reshard_after_forward", True)),
        offload=_truth(settings.get("cpu_offload", settings.get("offload_params", False))),
        layers=(layers,) if isinstance(layers, str) else tuple(layers),
    )


def _truth(value: Any) -> bool:
    return str(value).lower() not in ("false", "0", "no", "none", "")


class Sharded(nn.Module):
    """A learner whose weights are divided. Its forward is the learner's.

    Args:
        learner: on the CPU, the same in all processes; it is changed in place.
        plan: how to divide.
        device: where this process computes.
        autocast: makes the context of mixed precision.

    Raises:
        ConfigError: when no layer has a class that was named.
    """

    def __init__(self, learner: Any, plan: ShardingPlan, device: torch.device, autocast: Any) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        super().__init__()
        self.learner, self.autocast = learner, autocast
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if plan.offload else OffloadPolicy()
        for layer in _groups(learner, plan):
            fully_shard(layer, mesh=mesh, reshard_after_forward=plan.reshard, offload_policy=policy)
        fully_shard(learner, mesh=mesh, offload_policy=policy)
        for buffer in learner.buffers():
            buffer.data = buffer.data.to(device)

    def forward(self, **batch: Tensor) -> Tensor:
        """The summed loss of a batch."""
        with self.autocast():
            loss: Tensor = self.learner(**batch)
        return loss

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients of this batch stay in this process, to be summed with those of the next ones."""
        self.learner.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.learner.set_requires_gradient_sync(True)

    @contextmanager
    def whole(self, *, everything: bool, here: bool, back: bool = False) -> Iterator[None]:
        """Whole weights in place of the parts, one after the other; all processes must enter.

        Args:
            everything: frozen weights too.
            here: keep them in this process, on the CPU.
            back: take over what they were changed to.
        """
        parts = self._parts(everything=everything)
        gathered: dict[int, nn.Parameter] = {}
        for _, _, part in parts:
            if id(part) not in gathered:  # tied weights are one
                full = part.detach().full_tensor()
                gathered[id(part)] = nn.Parameter(full.cpu() if here else full[:0], part.requires_grad)
        for module, name, part in parts if here else ():
            module._parameters[name] = gathered[id(part)]
        try:
            yield
        finally:
            for module, name, part in parts:
                module._parameters[name] = part
        if back:
            with torch.no_grad():
                for _, _, part in parts:
                    part.copy_(_part_of(gathered[id(part)].detach(), part))

    def _parts(self, *, everything: bool) -> list[tuple[nn.Module, str, Any]]:
        """Every divided weight and where it is, when no group is gathered."""
        from torch.distributed.fsdp import FSDPModule
        from torch.distributed.tensor import DTensor

        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return [
            (module, name, part)
            for module in self.modules()
            for name, part in module._parameters.items()
            if isinstance(part, DTensor) and (everything or part.requires_grad)
        ]


def _part_of(whole: Tensor, like: Any) -> Any:
    """This process's part of a tensor that every process has."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _groups(learner: Any, plan: ShardingPlan) -> list[nn.Module]:
    modules = [module for module in learner.modules() if module is not learner]
    names = plan.layers or tuple(learner.model._no_split_modules or ())
    found = [module for module in modules if type(module).__name__ in names]
    if not found:
        kinds = sorted({type(module).__name__ for module in modules if next(module.parameters(), None) is not None})
        raise ConfigError(
            f"the model has no layer of class {' or '.join(names) or '?'}",
            where="fsdp_config:transformer_layer_cls_to_wrap",
            hint=f"It has {', '.join(kinds)}.",
        )
    return found


def whole_state(state: Any, *, here: bool) -> Any:
    """An optimizer's state with whole tensors on the CPU; all processes must call this.

    Args:
        state: of ``state_dict()``.
        here: whether this process keeps it.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if here else None
    if isinstance(state, Mapping):
        return {key: whole_state(value, here=here) for key, value in state.items()}
    if isinstance(state, list):
        return [whole_state(value, here=here) for value in state]
    return state


def divide_state(optimizer: Any) -> None:
    """Give each process its part of an optimizer's state that was read whole."""
    from torch.distributed.tensor import DTensor

    inner = getattr(optimizer, "optimizer", optimizer)
    for parameter, values in inner.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and not isinstance(value, DTensor) and value.shape == parameter.shape:
                values[key] = _part_of(value, parameter)
