"""What a ``config.json`` in the layout of ChatGLM2 says, as the GlmForCausalLM of transformers understands it.

ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B as first published share one layout. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from danlu.core.console import note, warn
from danlu.core.errors import ModelError
from danlu.models.chatglm.families import Family, families, recognise

ROTARY_BASE = 10000.0
ROTARY_SHARE = 0.5
"""The part of each head that is rotated; the layout has no key for it."""

REQUIRED = (
    "padded_vocab_size",
    "hidden_size",
    "num_layers",
    "ffn_hidden_size",
    "num_attention_heads",
    "seq_length",
)
ONLY_VALUE = {
    "rmsnorm": (True, "other norms than RMSNorm"),
    "post_layer_norm": (True, "a model without the last norm"),
    "add_bias_linear": (False, "biases in every linear layer"),
    "apply_residual_connection_post_layernorm": (False, "residuals from behind the norm"),
    "fp32_residual_connection": (False, "residuals in another precision than the weights"),
    "quantization_bit": (0, "quantised weights"),
    "vision_config": (None, "images"),
}
"""Keys that released models all set alike, and what another value would mean."""

HINTS = {
    "quantization_bit": "Take the release with float16 weights; danlu quantises when it loads (quantization_bit).",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes of a model in the layout of ChatGLM2.

    Attributes:
        family: name of its family.
        vocabulary, hidden, inner: sizes of the vocabulary, the hidden state and the inner layer of the MLP.
        layers, heads, groups: numbers of layers, of query heads, and of key and value heads.
        head_size: size of one head.
        fused_by_head: the rows of ``query_key_value`` are (query, key, value) of head 0, then of head 1, …
            (``multi_query_attention: false``); otherwise all queries, then all keys, then all values.
        qkv_bias: whether ``query_key_value`` has a bias.
        epsilon: added under the root of each norm.
        context: longest sequence, in tokens.
        dropout: of the attention weights.
        rotary: ``rope_parameters`` of transformers.
        eos, pad: token ids.
    """

    family: str
    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int
    head_size: int
    fused_by_head: bool
    qkv_bias: bool
    epsilon: float
    context: int
    dropout: float
    rotary: dict[str, Any]
    eos: int | list[int]
    pad: int

    def fused_rows(self) -> dict[str, list[tuple[int, int]]]:
        """Which rows ``[start, stop)`` of the fused ``query_key_value`` make up each projection, in order."""
        return fused_rows(self.heads, self.groups, self.head_size, by_head=self.fused_by_head)


def fused_rows(heads: int, groups: int, size: int, *, by_head: bool) -> dict[str, list[tuple[int, int]]]:
    """Which rows ``[start, stop)`` of a fused ``query_key_value`` make up each projection, in order.

    Args:
        heads: query heads.
        groups: key and value heads.
        size: of one head.
        by_head: the rows are (query, key, value) of head 0, then of head 1, …
    """
    if by_head:
        starts = [3 * size * head for head in range(heads)]
        parts = enumerate(("q_proj", "k_proj", "v_proj"))
        return {part: [(start + at * size, start + (at + 1) * size) for start in starts] for at, part in parts}
    queries, keys = heads * size, groups * size
    return {
        "q_proj": [(0, queries)],
        "k_proj": [(queries, queries + keys)],
        "v_proj": [(queries + keys, queries + 2 * keys)],
    }


def read_layout(folder: Path, config: Mapping[str, Any], family: str | None = None) -> Layout:
    """Read a ``config.json`` of generation v2.

    Args:
        folder: where it lies; the tokenizer's files there help to tell the family.
        config: its content.
        family: name of the family, where the files do not tell it.

    Raises:
        ModelError: for a missing key, for a variant that danlu does not have, and when ``rope_ratio`` could mean
            two things and nothing says which.
    """
    where = str(folder / "config.json")
    _check_variant(config, where)
    known = _family(folder, config, family)
    heads = int(config["num_attention_heads"])
    shared = bool(config.get("multi_query_attention", False))
    if float(config.get("hidden_dropout") or 0):
        note(f"hidden_dropout={config['hidden_dropout']} is not applied: the model of transformers has none")
    return Layout(
        family=known.name,
        vocabulary=int(config["padded_vocab_size"]),
        hidden=int(config["hidden_size"]),
        inner=int(config["ffn_hidden_size"]),
        layers=int(config["num_layers"]),
        heads=heads,
        groups=int(config.get("multi_query_group_num", 1)) if shared else heads,
        head_size=int(config.get("kv_channels", 128)),
        fused_by_head=not shared,
        qkv_bias=bool(config.get("add_qkv_bias", False)),
        epsilon=float(config.get("layernorm_epsilon", 1e-5)),
        context=int(config["seq_length"]),
        dropout=float(config.get("attention_dropout") or 0.0),
        rotary=_rotary(known, _ratio(config)),
        eos=_given(config, "eos_token_id", known.eos),
        pad=_given(config, "pad_token_id", known.pad),
    )


def _given(config: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    return otherwise if config.get(key) is None else config[key]


def _ratio(config: Mapping[str, Any]) -> float:
    return float(config.get("rope_ratio") or 1.0)


def _check_variant(config: Mapping[str, Any], where: str) -> None:
    missing = [key for key in REQUIRED if not isinstance(config.get(key), int)]
    if missing:
        raise ModelError(f"the key {missing[0]} is missing or no whole number", where=where)
    for key, (value, meaning) in ONLY_VALUE.items():
        if bool(config.get(key, value)) != bool(value):
            raise ModelError(
                f"{key}={config[key]!r} ({meaning}) is not supported",
                where=where,
                hint=HINTS.get(key, f"Models with {key}={value!r} are read."),
            )


def _family(folder: Path, config: Mapping[str, Any], asked: str | None) -> Family:
    found = recognise(folder, config, asked)
    if found is not None:
        if asked is not None:
            _say_other(folder, found.name, getattr(recognise(folder, config), "name", None))
        return _long_enough(folder, config, found, asked)
    if _ratio(config) != 1:
        raise ModelError(
            f"rope_ratio={config['rope_ratio']:g} has another meaning in ChatGLM2 than in ChatGLM3, and nothing here "
            "says which of them this is",
            where=str(folder / "config.json"),
            hint=f"Say it once: danlu convert {folder} TARGET --family chatglm2-32k (or chatglm3-32k), and use TARGET.",
        )
    assumed = next(family for family in families().values() if family.generation == "v2")
    if (folder / "tokenizer.model").is_file():
        _say_assumed(folder, assumed.name)
    return assumed


@cache
def _say_assumed(folder: Path, name: str) -> None:
    """Said once in a process, however often the folder is looked at."""
    note(f"{folder.name}: nothing says which ChatGLM this is; taken as {name} (danlu convert --family)")


@cache
def _say_other(folder: Path, name: str, told: str | None) -> None:
    """A family that is asked for wins over the signs of the files, but not in silence."""
    if told not in (None, name):
        warn(f"{folder.name}: its files say {told}; taken as {name}, as asked")


def _long_enough(folder: Path, config: Mapping[str, Any], family: Family, asked: str | None) -> Family:
    """A long-context variant that is asked for by name must have what makes it one."""
    if asked is not None and asked != family.name and _ratio(config) == 1:
        raise ModelError(
            f"this is no {asked}: config.json has no rope_ratio",
            where=str(folder / "config.json"),
            hint=f"Use --family {family.name}, or take the config.json of the long-context release.",
        )
    return family


def _rotary(family: Family, ratio: float) -> dict[str, Any]:
    """``rope_parameters``: rotated half of each head, adjacent pairs, base 10000; long contexts by family."""
    shared = {"rope_theta": ROTARY_BASE, "partial_rotary_factor": ROTARY_SHARE}
    if ratio != 1 and family.positions == "divide":
        return {"rope_type": "linear", "factor": ratio, **shared}
    return {"rope_type": "default", **shared, "rope_theta": ROTARY_BASE * ratio}


def glm_config(layout: Layout, dtype: str) -> dict[str, Any]:
    """The ``config.json`` of GlmForCausalLM for a layout, ``dtype`` for instance ``float16``."""
    return {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "vocab_size": layout.vocabulary,
        "hidden_size": layout.hidden,
        "intermediate_size": layout.inner,
        "num_hidden_layers": layout.layers,
        "num_attention_heads": layout.heads,
        "num_key_value_heads": layout.groups,
        "head_dim": layout.head_size,
        "hidden_act": "silu",
        "attention_bias": layout.qkv_bias,
        "attention_dropout": layout.dropout,
        "rms_norm_eps": layout.epsilon,
        "max_position_embeddings": layout.context,
        "rope_parameters": layout.rotary,
        "eos_token_id": layout.eos,
        "pad_token_id": layout.pad,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": dtype,
    }
