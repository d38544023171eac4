"""The tiny ChatGLM checkpoints beside the repository, as native models, and what the reference code computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}


def checkpoint(shared: Path, name: str) -> Path:
    """The folder of a checkpoint; the test is skipped where it is absent."""
    folder = shared / "data" / "chatglm" / name
    if not folder.is_dir():
        pytest.skip(f"no tiny ChatGLM at {folder}")
    return folder


def golden(folder: Path) -> dict[str, Any]:
    """Tensors that the reference code computed for the checkpoint in ``folder``."""
    from safetensors.torch import load_file

    return dict(load_file(folder / "golden.safetensors"))


def native_v2(folder: Path, **rope: Any) -> Any:
    """The second-generation checkpoint in ``folder`` as ``GlmForCausalLM``, float32."""
    import json

    import torch
    from transformers import GlmConfig, GlmForCausalLM

    told = json.loads((folder / "config.json").read_text())
    old = torch.load(folder / "pytorch_model.bin", weights_only=True)
    heads, groups, size = told["num_attention_heads"], told["multi_query_group_num"], told["kv_channels"]
    config = GlmConfig(
        vocab_size=told["padded_vocab_size"],
        hidden_size=told["hidden_size"],
        intermediate_size=told["ffn_hidden_size"],
        num_hidden_layers=told["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=size,
        max_position_embeddings=told["seq_length"],
        rms_norm_eps=told["layernorm_epsilon"],
        attention_bias=True,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, **rope},
    )
    state = {
        "model.embed_tokens.weight": old["transformer.embedding.word_embeddings.weight"],
        "model.norm.weight": old["transformer.encoder.final_layernorm.weight"],
        "lm_head.weight": old["transformer.output_layer.weight"],
    }
    for layer in range(told["num_layers"]):
        here, there = f"model.layers.{layer}.", f"transformer.encoder.layers.{layer}."
        state |= {here + new: old[there + name] for name, new in LAYER.items()}
        for end in ("weight", "bias"):
            fused = old[f"{there}self_attention.query_key_value.{end}"]
            for name, part in zip("qkv", fused.split([heads * size, groups * size, groups * size])):
                state[f"{here}self_attn.{name}_proj.{end}"] = part
    model = GlmForCausalLM(config)
    model.load_state_dict(state)
    return model.eval()


def as_official(model: Any, prefix: Any, ids: Any) -> Any:
    """Logits as the official code has them: keys not turned, the text from position 0."""
    import torch

    from danlu.engine.decoding import first_positions
    from danlu.models.prefix import filled_cache

    text = torch.ones_like(ids)
    return model(
        input_ids=ids,
        attention_mask=torch.cat([text.new_ones(len(ids), prefix.shape.length), text], dim=1),
        position_ids=first_positions(model, ids, text),
        past_key_values=filled_cache(prefix(), len(ids), model.dtype),
    ).logits
