"""The one-step norm and the one-step LoRA product: equal to what they replace, left alone where they would not be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from danlu.tune.methods.low_rank import _Forward as FastLora
from danlu.tune.methods.low_rank import speed_up
from danlu.tune.norms import speed_up_norms

pytestmark = pytest.mark.model


def load(folder: Path, dtype: torch.dtype = torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def loss_and_gradients(model, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.randint(4, 300, (2, 11), generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(first, second, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(first[0], second[0], rtol=rtol, atol=atol)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        torch.testing.assert_close(second[1][name], gradient, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_norms_give_the_same_loss_and_gradients(tiny_model: Path) -> None:
    plain, fast = load(tiny_model), load(tiny_model)
    generator = torch.Generator().manual_seed(1)
    for one, two in zip(plain.modules(), fast.modules(), strict=True):
        if type(one).__name__.endswith("RMSNorm"):  # weights of one would hide a lost weight
            one.weight.data = two.weight.data = torch.rand(one.weight.shape, generator=generator) + 0.5
    assert speed_up_norms(fast) >= 2 * fast.config.num_hidden_layers + 1
    assert_same(loss_and_gradients(plain), loss_and_gradients(fast))


def test_norms_under_autocast_give_its_precision(tiny_models: dict[str, Path]) -> None:
    plain, fast = load(tiny_models["llama"]), load(tiny_models["llama"])
    speed_up_norms(fast)
    x = torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = fast.model.norm(x)
        expected = plain.model.norm(x).to(torch.bfloat16)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


def test_a_norm_with_another_formula_keeps_its_own() -> None:
    class OffsetRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(8))
            self.eps = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    model = torch.nn.Sequential(OffsetRMSNorm())
    assert speed_up_norms(model) == 0
    assert "forward" not in model[0].__dict__


def adapted(folder: Path, dtype: torch.dtype = torch.float32, **options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **options)
    return get_peft_model(load(folder, dtype), settings)


def test_lora_gives_the_same_loss_and_gradients(tiny_model: Path) -> None:
    plain, fast = adapted(tiny_model), adapted(tiny_model)
    assert speed_up(fast) == sum(
        type(module).__name__ == "Linear" and hasattr(module, "lora_A") for module in plain.modules()
    )
    assert_same(loss_and_gradients(plain), loss_and_gradients(fast))


def test_lora_in_mixed_precision_stays_near(tiny_models: dict[str, Path]) -> None:
    plain, fast = (adapted(tiny_models["llama"], torch.bfloat16) for _ in range(2))
    speed_up(fast)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = loss_and_gradients(plain), loss_and_gradients(fast)
    torch.testing.assert_close(first[0], second[0], rtol=2e-2, atol=2e-2)
    for name, gradient in first[1].items():
        assert second[1][name].dtype == gradient.dtype
        cosine = torch.nn.functional.cosine_similarity(gradient.float().flatten(), second[1][name].float().flatten(), 0)
        assert cosine > 0.98, name


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_lora_variants_keep_their_own(tiny_models: dict[str, Path], options: dict) -> None:
    assert speed_up(adapted(tiny_models["llama"], **options)) == 0


def test_a_disabled_adapter_is_not_applied(tiny_models: dict[str, Path]) -> None:
    model = adapted(tiny_models["llama"]).eval()
    ids = torch.arange(4, 12).unsqueeze(0)
    assert speed_up(model) > 0
    assert any(isinstance(module.__dict__.get("forward"), FastLora) for module in model.modules())
    with torch.no_grad(), model.disable_adapter():
        off = model(input_ids=ids).logits
    with torch.no_grad():
        torch.testing.assert_close(off, load(tiny_models["llama"])(input_ids=ids).logits)
        assert not torch.allclose(model(input_ids=ids).logits, off, atol=1e-3)
