"""FSDP2: weights, gradients and optimizer state divided among the processes (Zhao et al. 2023; torch's fully_shard).

Each decoder layer is a group that is gathered for its own computation; all else (embeddings, output layer, norm,
prefix) is the group of the whole, gathered while a batch is computed. The learner calls parts of the model on its
way, and all of them are inside its own forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from danlu.core.errors import ConfigError
from danlu.tune.parallel.configs import ShardingPlan


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


def whole_in_engine(learner: Any, *, everything: bool) -> Any:
    """The context in which weights that DeepSpeed divides (ZeRO-3) are whole; all processes must enter."""
    from deepspeed import zero

    divided = [
        parameter
        for parameter in learner.parameters()
        if hasattr(parameter, "ds_id") and (everything or parameter.requires_grad)
    ]
    return zero.GatheredParameters(divided, modifier_rank=None, enabled=bool(divided))


@contextmanager
def whole_optimizer(trainer: Any) -> Iterator[None]:
    """While the state of a trainer's optimizer is written: a stand-in that has the state of all parts."""
    own = trainer.optimizer
    if trainer.sharded is not None and not trainer.args.save_only_model:
        state = whole_state(own.state_dict(), here=trainer.args.should_save)
        trainer.optimizer = SimpleNamespace(state_dict=lambda: state)
    try:
        yield
    finally:
        trainer.optimizer = own
