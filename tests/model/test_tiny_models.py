"""The tiny models are what the other tests take them for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import CORPUS

pytestmark = pytest.mark.model


def test_every_family_speaks(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "什么是运行？"}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    assert model.dtype == torch.float32
    assert logits.shape == (1, len(ids), 400)
    assert 0.5 < logits.std() < 10
    assert model.config.num_key_value_heads < model.config.num_attention_heads


def test_text_survives_the_tokenizer(tiny_models: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    for text in [*CORPUS, "🔥 emoji, tab\t, 制表"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("<|im_start|>")["input_ids"]) == 1


def test_models_are_the_same_every_time(tmp_path: Path) -> None:
    from tiny import build_model

    first, second = (build_model("qwen3", tmp_path / name, seed=5) for name in ("a", "b"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
