"""The layout of ChatGLM2: recognised, refused, mapped, and taken apart, without torch and without weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import ModelError
from danlu.models.chatglm.families import families, family_names, find_family, generation, recognise
from danlu.models.chatglm.layout import glm_config, read_layout
from danlu.models.chatglm.tensors import Made, native_tensors, original_tensors

CHATGLM2: dict[str, Any] = {
    "_name_or_path": "THUDM/chatglm2-6b",
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "quantization_bit": 0,
    "rmsnorm": True,
    "seq_length": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
GLM4 = CHATGLM2 | {
    "_name_or_path": "",
    "padded_vocab_size": 151552,
    "rope_ratio": 500,
    "num_layers": 40,
    "layernorm_epsilon": 1.5625e-07,
    "seq_length": 131072,
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
}


def test_generations() -> None:
    assert generation(CHATGLM2) == generation(GLM4) == "v2"
    assert generation({"model_type": "chatglm", "inner_hidden_size": 16384}) == "v1"
    assert generation({"model_type": "chatglm", "position_encoding_2d": True}) == "v1"
    assert generation({"model_type": "glm", "padded_vocab_size": 1}) is None


def test_every_family_is_whole() -> None:
    for family in families().values():
        assert family.names
        assert family.title
        assert family.source.startswith("https://")
        assert family.positions in ("none", "divide", "base")
        assert family.generation in ("v1", "v2")
    counts = Counter(family_names())
    assert set(counts.values()) == {1}
    assert find_family("chatglm3-32k").name == "chatglm3"
    with pytest.raises(ModelError, match="Did you mean chatglm2-32k"):
        find_family("chatglm2_32k")


def test_the_released_config_is_mapped(tmp_path: Path) -> None:
    written = glm_config(read_layout(tmp_path, CHATGLM2), "float16")
    assert written == {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "vocab_size": 65024,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 28,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "hidden_act": "silu",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "float16",
    }


def test_long_contexts_by_family(tmp_path: Path) -> None:
    long = CHATGLM2 | {"rope_ratio": 16}
    divided = {"rope_type": "linear", "factor": 16.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    raised = {"rope_type": "default", "rope_theta": 16e4, "partial_rotary_factor": 0.5}
    assert read_layout(tmp_path, long).rotary == divided
    assert read_layout(tmp_path, long | {"_name_or_path": "THUDM/chatglm3-6b-32k"}).rotary == raised
    for family, expected in (("chatglm2-32k", divided), ("chatglm3-32k", raised)):
        assert read_layout(tmp_path, long | {"_name_or_path": "/home/me/model"}, family).rotary == expected
    layout = read_layout(tmp_path, GLM4)
    assert (layout.family, layout.rotary["rope_theta"], layout.eos) == ("glm4", 5e6, [151329, 151336, 151338])


def test_an_ambiguous_ratio_is_refused(tmp_path: Path) -> None:
    config = CHATGLM2 | {"_name_or_path": "/home/me/model", "rope_ratio": 16}
    with pytest.raises(ModelError, match=r"rope_ratio=16 has another meaning .* --family chatglm2-32k"):
        read_layout(tmp_path, config)
    assert read_layout(tmp_path, config | {"rope_ratio": 1}).rotary["rope_type"] == "default"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"name_or_path": "THUDM/chatglm3-6b-32k"}))
    assert read_layout(tmp_path, config).family == "chatglm3"


def test_the_tokenizer_tells_the_family_unless_it_contradicts(tmp_path: Path) -> None:
    nameless = CHATGLM2 | {"_name_or_path": ""}
    assert recognise(tmp_path, nameless) is None
    (tmp_path / "tokenization_chatglm.py").write_text('role = ["<|system|>", "<|user|>", "<|assistant|>"]')
    found = recognise(tmp_path, nameless)
    assert found is not None
    assert found.name == "chatglm3"
    assert recognise(tmp_path, CHATGLM2) is None, "the name says ChatGLM2, the tokenizer ChatGLM3"
    found = recognise(tmp_path, CHATGLM2, "chatglm2")
    assert found is not None
    assert found.name == "chatglm2"


def test_a_wrong_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no ChatGLM family 'llama'"):
        read_layout(tmp_path, CHATGLM2, "llama")
    with pytest.raises(ModelError, match="not a ChatGLM-6B"):
        read_layout(tmp_path, CHATGLM2, "chatglm")
    with pytest.raises(ModelError, match="no chatglm2-32k: config.json has no rope_ratio"):
        read_layout(tmp_path, CHATGLM2, "chatglm2-32k")


@pytest.mark.parametrize(
    "change",
    [
        {"rmsnorm": False},
        {"post_layer_norm": False},
        {"add_bias_linear": True},
        {"apply_residual_connection_post_layernorm": True},
        {"fp32_residual_connection": True},
        {"quantization_bit": 4},
        {"vision_config": {"hidden_size": 1}},
        {"num_layers": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_variants_are_refused_by_key(tmp_path: Path, change: dict[str, Any]) -> None:
    (key,) = change
    with pytest.raises(ModelError, match=key):
        read_layout(tmp_path, CHATGLM2 | change)
    missing = {name: value for name, value in CHATGLM2.items() if name != key}
    if key != "num_layers":
        assert read_layout(tmp_path, missing).layers == 28, "what the published code takes when the key is absent"


def rows(made: list[Made]) -> Counter[tuple[str, int]]:
    """How often each row of each source is used."""
    return Counter(
        (piece.name, row) for item in made for piece in item.pieces for row in range(piece.start, piece.stop)
    )


@pytest.mark.parametrize("change", [{}, {"multi_query_attention": False}, {"add_qkv_bias": False}])
def test_each_row_has_one_place_in_either_layout(tmp_path: Path, change: dict[str, Any]) -> None:
    small = {
        "num_layers": 2,
        "padded_vocab_size": 11,
        "hidden_size": 12,
        "num_attention_heads": 4,
        "kv_channels": 4,
        "ffn_hidden_size": 5,
    }
    layout = read_layout(tmp_path, CHATGLM2 | small | change)
    native, original = native_tensors(layout), original_tensors(layout)
    assert set(rows(native)) == {(item.name, row) for item in original for row in range(item.shape[0])}
    assert set(rows(original)) == {(item.name, row) for item in native for row in range(item.shape[0])}
    for made in (native, original):
        assert set(rows(made).values()) == {1}
        for item in made:
            assert sum(piece.stop - piece.start for piece in item.pieces) == item.shape[0]


def test_the_fused_projection_of_a_released_model(tmp_path: Path) -> None:
    assert read_layout(tmp_path, CHATGLM2).fused_rows() == {
        "q_proj": [(0, 4096)],
        "k_proj": [(4096, 4352)],
        "v_proj": [(4352, 4608)],
    }
    by_head = read_layout(tmp_path, CHATGLM2 | {"multi_query_attention": False})
    assert by_head.groups == 32
    assert by_head.fused_rows()["k_proj"][:2] == [(128, 256), (512, 640)]
