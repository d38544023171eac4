"""What a run leaves is a PEFT adapter: plain ``peft`` loads it, without danlu, with the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods_tried import METHODS, kind_of
from peft import PeftModel
from probes import logits_of, token_batch
from transformers import AutoModelForCausalLM

from danlu.core.config import build
from danlu.models.adapters import attach
from danlu.models.loading import load_model
from danlu.tune import methods
from danlu.tune.config import TrainConfig

pytestmark = pytest.mark.model

NATIVE = [name for name in METHODS if methods.family(kind_of(name)).kind == "peft"]
PROMPTS = [name for name in METHODS if methods.family(kind_of(name)).kind == "prompt"]


def saved(method: str, base: Path, folder: Path) -> tuple[dict[str, Any], torch.Tensor]:
    """A trained adapter (random numbers stand for training) in its folder: what it says of itself, and its logits."""
    config = build(TrainConfig, {"model_name_or_path": str(base), **METHODS[method]}, where="test")
    method_ = methods.METHODS[kind_of(method)]
    tuned = method_.apply(load_model(base, dtype="float32"), config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in tuned.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    expected = logits_of(tuned.model, token_batch())
    method_.save(tuned, folder)
    return json.loads((folder / "adapter_config.json").read_text()), expected


def by_peft(base: Path, folder: Path) -> torch.Tensor:
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits_of(PeftModel.from_pretrained(plain, str(folder)).eval(), token_batch())


@pytest.mark.parametrize("method", NATIVE)
def test_plain_peft_answers_the_same(method: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_models["qwen2"]
    told, expected = saved(method, base, tmp_path / "run")
    assert (logits_of(load_model(base, dtype="float32"), token_batch()) - expected).abs().max() > 0.05
    torch.testing.assert_close(by_peft(base, tmp_path / "run"), expected, atol=2e-4, rtol=2e-4)
    assert told["base_model_name_or_path"] == str(base.resolve())
    assert told["peft_type"] == methods.family(kind_of(method)).peft_type
    assert told["target_modules"]
    assert told["task_type"] == "CAUSAL_LM"
    assert told["inference_mode"]


@pytest.mark.parametrize("method", PROMPTS)
def test_prompts_and_prefixes_as_they_were_written(method: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """PEFT returns the places of a prompt too. (It is wrong for rows padded on the left; danlu's own is not.)"""
    base = tiny_models["qwen2"]
    told, _ = saved(method, base, tmp_path / "run")
    expected = logits_of(attach(load_model(base, dtype="float32"), tmp_path / "run"), token_batch())
    found = by_peft(base, tmp_path / "run")[:, -expected.shape[1] :]
    assert (logits_of(load_model(base, dtype="float32"), token_batch()) - expected).abs().max() > 0.05
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
    assert told["base_model_name_or_path"] == str(base.resolve())
    assert told["num_virtual_tokens"] == 8
    assert told["task_type"] == "CAUSAL_LM"
