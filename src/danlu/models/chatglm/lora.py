"""LoRA adapters that were trained on ChatGLM2 or 3 with the code of their release, on the native model.

There queries, keys and values are one matrix W = [Wq; Wk; Wv]. Its update B A splits as the matrix does: A (r, in) is
shared, B (out, r) is cut along its rows. So every part gets a copy of A and its rows of B, and the sum is the same.
Other layers only change their names.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.core.errors import ModelError
from danlu.core.files import expanded, replacing, write_json
from danlu.models.chatglm.convert import RECORD, is_original
from danlu.models.chatglm.layout import fused_rows
from danlu.models.prefix import write_tensors
from danlu.models.sources import read_folder_json

START = "base_model.model."
LAYERS = "transformer.encoder.layers."
OTHER_GENERATION = {"glm": f"{START}transformer.layers.", "chatglm": f"{START}{LAYERS}"}
"""Model type, and how tensors begin of an adapter that belongs to the other generation.

The first one keeps the names of its release, so its own adapters need no translation."""

FUSED = "self_attention.query_key_value"
RENAMED = {
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}
SHARED, CUT = "lora_A.weight", ("lora_B.weight", "lora_magnitude_vector")
REFUSED = {
    "modules_to_save": "whole modules beside the adapter",
    "enable_lora": "parts of a fused layer left out (enable_lora)",
    "rank_pattern": "another rank for some layers",
    "alpha_pattern": "another scale for some layers",
    "layer_replication": "repeated layers",
}
TARGET_FILE = "adapter_model.safetensors"


@contextmanager
def fitted(folder: Path, model: Any) -> Iterator[Path]:
    """The folder of a LoRA adapter as PEFT can put it on ``model``: itself, or a translated copy while the block lasts.

    Raises:
        ModelError: when it is an adapter of ChatGLM's first code that cannot be translated or has another shape.
    """
    kind = model.config.model_type
    tensors = read_lora(folder) if kind in OTHER_GENERATION else {}
    if any(name.startswith(OTHER_GENERATION[kind]) for name in tensors):
        names = ["the first ChatGLM-6B", "ChatGLM2 or 3"]
        theirs, ours = names if kind == "glm" else reversed(names)
        raise ModelError(
            f"the adapter belongs to another model: it was trained on {theirs}, this is {ours}",
            where=str(folder),
        )
    if kind != "glm" or not is_old(tensors):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="danlu-") as copy:
        translate(folder, tensors, model.config, Path(copy))
        yield Path(copy)


def is_old(tensors: Collection[str]) -> bool:
    """Whether tensors of an adapter are named as in ChatGLM2's and 3's first code."""
    return any(name.startswith(START + LAYERS) for name in tensors)


def copies(name: str) -> int:
    """How many tensors of this size the native model makes of one: A of a fused layer is in each of its parts."""
    return 3 if name.startswith(START + LAYERS) and name.endswith(f"{FUSED}.{SHARED}") else 1


def read_lora(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, from either kind of file.

    Raises:
        ModelError: when it is damaged.
    """
    from peft.utils import load_peft_weights

    try:
        return dict(load_peft_weights(str(folder), device="cpu"))
    except Exception as error:  # pickle, zip and safetensors errors share no base class
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"the adapter cannot be read ({first})", where=str(folder)) from error


def translate(folder: Path, tensors: Mapping[str, Tensor], config: Any, target: Path) -> None:
    """Write an old adapter as one for the native model: adapter_config.json and adapter_model.safetensors.

    Args:
        folder: the old adapter.
        tensors: its weights.
        config: of the native model, with its ``_name_or_path``.
        target: an existing folder.

    Raises:
        ModelError: when it cannot be translated or has another shape.
    """
    told = read_folder_json(folder / "adapter_config.json")
    for key, what in REFUSED.items():
        if told.get(key):
            raise ModelError(
                f"the adapter has {what} ({key}: {told[key]}), which cannot be translated", where=str(folder)
            )
    if told.get("bias", "none") != "none":
        raise ModelError(
            f"the adapter was trained with biases (bias: {told['bias']}), which cannot be translated", where=str(folder)
        )
    native: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        native |= _translated(name, tensor, config, folder)
    targets = sorted({name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in native})
    write_json(target / "adapter_config.json", told | {"target_modules": targets})
    with replacing(target / TARGET_FILE) as temporary:
        write_tensors(native, temporary)


def _translated(name: str, tensor: Tensor, config: Any, folder: Path) -> dict[str, Tensor]:
    """One tensor of an old adapter under the native names: one, or a part for each of q, k and v."""
    number, _, rest = name.removeprefix(START + LAYERS).partition(".")
    module, _, kind = rest.partition(".lora_")
    kind = f"lora_{kind}"
    if not number.isdigit() or module not in (FUSED, *RENAMED) or kind not in (SHARED, *CUT):
        raise ModelError(f"the adapter has a weight with no place in the native model: {name}", where=str(folder))
    if int(number) >= config.num_hidden_layers:
        raise ModelError(
            f"the adapter belongs to another model: it has a layer {number}, this model has "
            f"{config.num_hidden_layers} layers",
            where=str(folder),
        )
    layer = f"{START}model.layers.{number}."
    if module != FUSED:
        return {f"{layer}{RENAMED[module]}.{kind}": tensor.contiguous()}
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    parts = fused_rows(heads, groups, size, by_head=_head_by_head(config))
    if kind == SHARED:
        return {f"{layer}self_attn.{part}.{kind}": tensor.clone() for part in parts}
    count = (heads + 2 * groups) * size
    if tensor.shape[0] != count:
        raise ModelError(
            f"the adapter belongs to another model: its query_key_value has {tensor.shape[0]} rows, this model's "
            f"has {count}",
            where=str(folder),
        )
    return {
        f"{layer}self_attn.{part}.{kind}": torch.cat([tensor[start:stop] for start, stop in rows])
        for part, rows in parts.items()
    }


def _head_by_head(config: Any) -> bool:
    """Whether rows of the fused layer go head by head: what the original of the model says.

    Where it is not at hand, as many key heads as query heads mean that they do: every release with grouped heads
    shares keys among queries.
    """
    folder = expanded(str(getattr(config, "_name_or_path", "")))
    told: dict[str, Any] = {}
    if (folder / RECORD).is_file():
        told = read_folder_json(folder / RECORD).get("config") or {}
    elif is_original(folder):
        told = read_folder_json(folder / "config.json")
    if told:
        return not told.get("multi_query_attention", False)
    return bool(config.num_attention_heads == config.num_key_value_heads)
