"""The loss of next-token prediction, with the output head run only where something is learnt, in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK = 512
"""Positions whose logits exist at one time: CHUNK × vocabulary numbers."""


@dataclass(slots=True)
class _Gradients:
    """Gradients of logits = rows Wᵀ + b, added up chunk by chunk; None where none is wanted.

    Attributes:
        hidden: (n, d), in the type of the rows.
        weight: (V, d), float32.
        bias: (V), float32.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def wanted(cls, needed: Sequence[bool], hidden: Tensor, weight: Tensor, bias: Tensor | None) -> _Gradients:
        """Zeros for those of the three inputs that ask for a gradient."""
        return cls(
            torch.empty_like(hidden) if needed[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if needed[2] and bias is not None else None,
        )

    def add(self, slope: Tensor, start: int, rows: Tensor, work: Tensor) -> None:
        """Take in the gradient (chunk, V) of the logits of ``rows``, which begin at ``start``."""
        if self.bias is not None:
            self.bias += slope.sum(0)
        slope = slope.to(rows.dtype)
        if self.hidden is not None:
            torch.mm(slope, work, out=self.hidden[start : start + CHUNK])
        if self.weight is not None:
            self.weight += slope.t() @ rows


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of -log p(target) over rows, with its gradients computed in the forward pass.

    For a row with hidden state h (d), weight W (V, d), logits z = h Wᵀ and target t: loss = -log softmax(z)_t,
    ∂loss/∂z = softmax(z) - onehot(t), ∂loss/∂h = ∂z W, ∂loss/∂W = ∂zᵀ h.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradients = _Gradients.wanted(ctx.needs_input_grad, hidden, weight, bias)
        work = weight.to(hidden.dtype)
        minus_one = torch.full((1, 1), -1.0, device=hidden.device)
        for start in range(0, len(hidden), CHUNK):
            rows, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK].unsqueeze(1)
            log_p = _log_p(rows, work, bias)
            total -= log_p.gather(1, wanted).sum()
            if any(ctx.needs_input_grad):
                slope = log_p.exp_().scatter_add_(1, wanted, minus_one.expand(len(rows), 1))
                gradients.add(slope, start, rows, work)
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        (slope,) = slopes
        return (
            None if d_hidden is None else d_hidden * slope.to(d_hidden.dtype),
            None if d_weight is None else (d_weight * slope).to(ctx.dtypes[0]),
            None if d_bias is None else (d_bias * slope).to(ctx.dtypes[1]),
            None,
        )


def summed_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Σ -log softmax(hidden Wᵀ + b)[target], a float32 scalar.

    Args:
        hidden: (n, d), the states before the tokens to predict.
        weight: (V, d); trained or not.
        bias: (V) or None.
        targets: (n) token ids.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets)
    return loss


class _ChunkedLogProbs(torch.autograd.Function):
    """log p(target) of every row and the entropy of its distribution; logits are computed again for the gradient.

    With logits z = (h Wᵀ + b) / τ: ∂ log p_t / ∂z = onehot(t) - softmax(z). The entropy carries no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        chosen = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(chosen)
        work = weight.to(hidden.dtype)
        for start in range(0, len(hidden), CHUNK):
            end = start + CHUNK
            log_p = _log_p(hidden[start:end], work, bias, temperature)
            chosen[start:end] = log_p.gather(1, targets[start:end].unsqueeze(1))[:, 0]
            entropy[start:end] = -(log_p.exp() * log_p).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        gradients = _Gradients.wanted(ctx.needs_input_grad, hidden, weight, bias)
        work = weight.to(hidden.dtype)
        for start in range(0, len(hidden), CHUNK):
            rows, factor = hidden[start : start + CHUNK], slopes[0][start : start + CHUNK].unsqueeze(1)
            wanted = targets[start : start + CHUNK].unsqueeze(1)
            slope = _log_p(rows, work, bias, ctx.temperature).exp_().mul_(-factor / ctx.temperature)
            slope.scatter_add_(1, wanted, factor / ctx.temperature)
            gradients.add(slope, start, rows, work)
        return (
            gradients.hidden,
            None if gradients.weight is None else gradients.weight.to(weight.dtype),
            None if gradients.bias is None or bias is None else gradients.bias.to(bias.dtype),
            None,
            None,
        )


def _log_p(rows: Tensor, work: Tensor, bias: Tensor | None, temperature: float = 1.0) -> Tensor:
    logits = torch.nn.functional.linear(rows, work, None if bias is None else bias.to(rows.dtype)).float()
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def token_log_probs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log softmax((hidden Wᵀ + b) / τ)[target] and the entropy of each distribution, both (n) float32.

    Args:
        hidden: (n, d), the states before the tokens.
        weight: (V, d); trained or not.
        bias: (V) or None.
        targets: (n) token ids.
        temperature: τ.
    """
    chosen, entropy = _ChunkedLogProbs.apply(hidden, weight, bias, targets, temperature)
    return chosen, entropy
