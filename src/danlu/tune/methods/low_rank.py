"""The product of a LoRA layer as one step: no copies in other precisions, nothing kept that is not needed.

PEFT computes ``base(x) + scale · B(A(dropout(x)))`` from separate modules; with float32 adapters under bfloat16
autocast that converts every input to float32 and back. Here the adapter's two small matrices are converted
instead, and the gradient of x is gathered in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _LowRankLinear(torch.autograd.Function):
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ with W and b frozen; x (…, in), A (r, in), B (out, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        down, up = a.to(x.dtype), b.to(x.dtype)
        inner = flat @ down.t()
        y = F.linear(flat, weight, bias)
        y.addmm_(inner, up.t(), alpha=scale)
        ctx.save_for_backward(flat, weight, down, up, inner)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, a.dtype
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        flat, weight, down, up, inner = ctx.saved_tensors
        slope = slopes[0].reshape(-1, weight.shape[0])
        d_inner = (slope @ up).mul_(ctx.scale)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (slope @ weight).addmm_(d_inner, down).view(ctx.shape)
        d_a = (d_inner.t() @ flat).to(ctx.dtype)
        d_b = (slope.t() @ inner).mul_(ctx.scale).to(ctx.dtype)
        return d_x, None, None, d_a, d_b, None


def speed_up(adapter: Any) -> int:
    """Give every plain LoRA layer of a PEFT model the one-step product; return how many there are.

    Left alone are layers with dropout, DoRA or other variants, several adapters, or bases that are not plain linear.
    """
    from peft.tuners.lora import Linear

    count = 0
    for module in adapter.modules():
        if type(module) is Linear and _is_plain(module):
            module.forward = _Forward(module, module.forward)
            count += 1
    return count


class _Forward:
    """The forward of one layer; falls back to PEFT's own whenever the layer is not in its simplest state."""

    def __init__(self, layer: Any, own: Any) -> None:
        self.layer, self.own = layer, own
        self.name = layer.active_adapters[0]

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        if args or kwargs or layer.merged or layer.disable_adapters or layer.active_adapters != [self.name]:
            return self.own(x, *args, **kwargs)
        base = layer.get_base_layer()
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        if base.weight.dtype != x.dtype:
            return self.own(x)
        result: Tensor = _LowRankLinear.apply(
            x,
            base.weight,
            base.bias,
            layer.lora_A[self.name].weight,
            layer.lora_B[self.name].weight,
            layer.scaling[self.name],
        )
        return result


def _is_plain(layer: Any) -> bool:
    if len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    base = layer.get_base_layer()
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and name in layer.lora_A
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and not getattr(layer, "lora_variant", {}).get(name)
        and not getattr(layer, "lora_bias", {}).get(name)
        and not layer.fan_in_fan_out
    )


def raise_rates(optimizer: torch.optim.Optimizer, model: nn.Module, ratio: float) -> None:
    """Let every B learn ``ratio`` times as fast as its A (LoRA+, Hayou et al. 2024)."""
    chosen = {id(weight) for name, weight in model.named_parameters() if ".lora_B." in name}
    for group in list(optimizer.param_groups):
        moved = [weight for weight in group["params"] if id(weight) in chosen]
        if moved:
            group["params"] = [weight for weight in group["params"] if id(weight) not in chosen]
            optimizer.add_param_group({**group, "params": moved, "lr": group["lr"] * ratio})
