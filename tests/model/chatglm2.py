"""Tiny random checkpoints in the layout of ChatGLM2, and a plain forward pass to compare with.

The pass is written from the facts of the layout, in the order of its formulas: fused projections, RMSNorm, a rotated
half of each head in adjacent pairs, a gated MLP. Nothing of danlu or of Glm takes part.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, silu

CONFIG: dict[str, Any] = {
    "_name_or_path": "THUDM/chatglm2-6b",
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": "modeling_chatglm.ChatGLMModel"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "eos_token_id": 2,
    "ffn_hidden_size": 48,
    "hidden_size": 32,
    "kv_channels": 8,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 2,
    "pad_token_id": 0,
    "padded_vocab_size": 400,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 256,
    "torch_dtype": "float32",
}
ROOT = "transformer.encoder."


def write_checkpoint(
    folder: Path, *, seed: int = 0, shards: int = 1, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """A random checkpoint in .bin files with its config.json; returns the folder."""
    config = {**CONFIG, "torch_dtype": str(dtype).removeprefix("torch."), **changes}
    state = {name: tensor.to(dtype) for name, tensor in random_weights(config, seed).items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = [f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin" for number in range(shards)]
    if shards == 1:
        names = ["pytorch_model.bin"]
    places = {key: names[index * shards // len(state)] for index, key in enumerate(state)}
    for name in names:
        torch.save({key: state[key] for key, place in places.items() if place == name}, folder / name)
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def random_weights(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Weights by their original names."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.2) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    hidden, inner, vocabulary = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    width = config["num_attention_heads"] * config["kv_channels"]
    groups = config["multi_query_group_num"] * config["kv_channels"] if config["multi_query_attention"] else width
    fused, half = width + 2 * groups, config["kv_channels"] // 2
    state = {
        "transformer.embedding.word_embeddings.weight": normal(vocabulary, hidden, scale=1.0),
        "transformer.rotary_pos_emb.inv_freq": 1.0 / (10000 ** (torch.arange(0, half, 2).float() / half)),
    }
    for number in range(config["num_layers"]):
        layer = f"{ROOT}layers.{number}."
        state |= {
            layer + "input_layernorm.weight": 1 + normal(hidden),
            layer + "self_attention.query_key_value.weight": normal(fused, hidden),
            layer + "self_attention.query_key_value.bias": normal(fused),
            layer + "self_attention.dense.weight": normal(hidden, width),
            layer + "post_attention_layernorm.weight": 1 + normal(hidden),
            layer + "mlp.dense_h_to_4h.weight": normal(2 * inner, hidden),
            layer + "mlp.dense_4h_to_h.weight": normal(hidden, inner),
        }
    state[ROOT + "final_layernorm.weight"] = 1 + normal(hidden)
    state["transformer.output_layer.weight"] = normal(vocabulary, hidden)
    return state


def stored_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, from .bin or safetensors files."""
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("pytorch_model*.bin")):
        state |= torch.load(path, weights_only=True)
    for path in sorted(folder.glob("model*.safetensors")):
        state |= load_file(path)
    return state


def reference_logits(folder: Path, ids: Tensor) -> Tensor:
    """Logits (batch, length, vocabulary) of a checkpoint for unpadded ids (batch, length), in float32.

    ``rope_ratio`` divides positions in ChatGLM2 and multiplies the base of the angles in ChatGLM3 and GLM-4.
    """
    config = json.loads((folder / "config.json").read_text())
    state = {name: tensor.float() for name, tensor in stored_weights(folder).items()}
    angles = rotary_angles(config, ids.shape[1])
    epsilon = config["layernorm_epsilon"]
    hidden = embedding(ids, state["transformer.embedding.word_embeddings.weight"])
    for number in range(config["num_layers"]):
        layer = {
            name.removeprefix(f"{ROOT}layers.{number}."): value
            for name, value in state.items()
            if name.startswith(f"{ROOT}layers.{number}.")
        }
        hidden = hidden + attention(rms_norm(hidden, layer["input_layernorm.weight"], epsilon), layer, config, angles)
        normed = rms_norm(hidden, layer["post_attention_layernorm.weight"], epsilon)
        gate, up = linear(normed, layer["mlp.dense_h_to_4h.weight"]).chunk(2, dim=-1)
        hidden = hidden + linear(silu(gate) * up, layer["mlp.dense_4h_to_h.weight"])
    hidden = rms_norm(hidden, state[ROOT + "final_layernorm.weight"], epsilon)
    return linear(hidden, state["transformer.output_layer.weight"])


def rotary_angles(config: dict[str, Any], length: int) -> Tensor:
    """Angles (length, rotated pairs)."""
    ratio, half = config.get("rope_ratio", 1), config["kv_channels"] // 2
    divides = "chatglm2" in config.get("_name_or_path", "chatglm2")
    base = 10000.0 * (1 if divides else ratio)
    positions = torch.arange(length).float() / (ratio if divides else 1)
    return torch.outer(positions, 1.0 / (base ** (torch.arange(0, half, 2).float() / half)))


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return weight * hidden / torch.sqrt(hidden.pow(2).mean(-1, keepdim=True) + epsilon)


def rotate(heads: Tensor, angles: Tensor) -> Tensor:
    """Turn the first half of each head (batch, heads, length, size), neighbours as one pair."""
    half = 2 * angles.shape[-1]
    first, second = heads[..., 0:half:2], heads[..., 1:half:2]
    cosine, sine = angles.cos(), angles.sin()
    turned = torch.stack([first * cosine - second * sine, second * cosine + first * sine], dim=-1).flatten(-2)
    return torch.cat([turned, heads[..., half:]], dim=-1)


def attention(hidden: Tensor, layer: dict[str, Tensor], config: dict[str, Any], angles: Tensor) -> Tensor:
    batch, length, _ = hidden.shape
    heads, size = config["num_attention_heads"], config["kv_channels"]
    fused = linear(hidden, layer["self_attention.query_key_value.weight"], layer["self_attention.query_key_value.bias"])
    if config["multi_query_attention"]:
        groups = config["multi_query_group_num"]
        parts = fused.split([heads * size, groups * size, groups * size], dim=-1)
        query, key, value = (part.view(batch, length, -1, size).transpose(1, 2) for part in parts)
        key, value = (part.repeat_interleave(heads // groups, dim=1) for part in (key, value))
    else:  # one head after the other, each with its query, key and value
        query, key, value = fused.view(batch, length, heads, 3 * size).transpose(1, 2).chunk(3, dim=-1)
    scores = rotate(query, angles) @ rotate(key, angles).transpose(-1, -2) / math.sqrt(size)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(-1)
    return linear((weights @ value).transpose(1, 2).reshape(batch, length, -1), layer["self_attention.dense.weight"])
