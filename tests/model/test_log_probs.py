"""Log-probabilities of given tokens, with the output head run in chunks: values and gradients are those of torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from danlu.tune.head import CHUNK, token_log_probs

pytestmark = pytest.mark.model


def textbook(hidden, weight, bias, targets, temperature):
    """The whole matrix of logits at once."""
    log_p = (linear(hidden, weight, bias).float() / temperature).log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=log_p).entropy()
    return log_p[torch.arange(len(targets)), targets], entropy


def inputs(rows: int, bias: bool, dtype: torch.dtype = torch.float32) -> list[torch.Tensor | None]:
    torch.manual_seed(rows)
    made = [torch.randn(rows, 16), torch.randn(40, 16), torch.randn(40)]
    tensors: list[torch.Tensor | None] = [part.to(dtype).requires_grad_() for part in made]
    return [*tensors[:2], tensors[2] if bias else None]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 2 * CHUNK + 3])
def test_values_entropy_and_gradients_equal_torch(rows: int, bias: bool, temperature: float) -> None:
    hidden, weight, offset = inputs(rows, bias)
    targets, slope = torch.randint(0, 40, (rows,)), torch.randn(rows)
    learnt = [part for part in (hidden, weight, offset) if part is not None]
    expected, spread = textbook(hidden, weight, offset, targets, temperature)
    wanted = torch.autograd.grad(expected @ slope, learnt)
    found, entropy = token_log_probs(hidden, weight, offset, targets, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, spread.detach(), rtol=1e-5, atol=1e-5)
    assert not entropy.requires_grad
    for first, second in zip(torch.autograd.grad(found @ slope, learnt), wanted, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_do() -> None:
    hidden, weight, offset = inputs(7, bias=True)
    found, _ = token_log_probs(hidden, weight.detach(), offset.detach(), torch.arange(7))
    found.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert offset.grad is None


def test_a_frozen_body_leaves_the_head_to_learn() -> None:
    hidden, weight, _ = inputs(7, bias=False)
    expected, _ = textbook(hidden.detach(), weight, None, torch.arange(7), 1.0)
    (wanted,) = torch.autograd.grad(expected.sum(), [weight])
    found, _ = token_log_probs(hidden.detach(), weight, None, torch.arange(7))
    (slope,) = torch.autograd.grad(found.sum(), [weight])
    torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", [torch.bfloat16, torch.float32])
def test_half_precision(head: torch.dtype) -> None:
    """Under mixed precision the states are bfloat16 and the head may be float32; numbers come out as float32."""
    hidden, weight, _ = inputs(600, bias=False, dtype=torch.bfloat16)
    weight = weight.detach().to(head).requires_grad_()
    targets = torch.randint(0, 40, (600,))
    expected, spread = textbook(hidden.float(), weight.float(), None, targets, 0.8)
    wanted = torch.autograd.grad(expected.sum(), [hidden, weight])
    found, entropy = token_log_probs(hidden, weight, None, targets, 0.8)
    assert found.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.06)
    torch.testing.assert_close(entropy, spread, rtol=0.02, atol=0.06)
    for first, second in zip(torch.autograd.grad(found.sum(), [hidden, weight]), wanted, strict=True):
        assert first.dtype == second.dtype
        assert (first.float() - second.float()).norm() < 0.01 * second.float().norm()


def test_no_rows() -> None:
    found, entropy = token_log_probs(torch.zeros(0, 16), torch.zeros(40, 16), None, torch.zeros(0, dtype=torch.long))
    assert found.shape == entropy.shape == (0,)
