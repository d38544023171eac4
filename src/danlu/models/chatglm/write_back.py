"""A model that was converted from the layout of ChatGLM2, back in that layout: the same keys, the same config.json."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.console import warn
from danlu.core.errors import ModelError
from danlu.core.files import write_json
from danlu.models.chatglm.convert import RECORD, converted_family
from danlu.models.chatglm.layout import Layout, glm_config, read_layout
from danlu.models.chatglm.tensors import Made, native_tensors, original_tensors
from danlu.models.loading import model_folder
from danlu.models.original_code import code_files
from danlu.models.runs import open_run
from danlu.models.shards import CODES, NAMES, Shards, Stored, write_shards
from danlu.models.sources import read_folder_json

if TYPE_CHECKING:
    from danlu.models.runs import TrainedModel

COMPANIONS = (
    "*.py",
    "tokenizer.model",
    "ice_text.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "*LICENSE*",
)
"""What is copied from the original folder as it is. danlu never runs the code among it."""

LINEAGE = ("danlu_export.json", "manifest.json")


def find_record(model: TrainedModel) -> dict[str, Any]:
    """The record of the conversion that a model began with, through runs and exports that stand on each other.

    Raises:
        ModelError: when it did not begin with a folder in the original layout.
    """
    name: str | None = model.model
    seen: set[str] = set()
    while name is not None and name not in seen:
        seen.add(name)
        folder = model_folder(name)
        if converted_family(folder) is not None:
            return read_folder_json(folder / RECORD)
        name = _stands_on(folder)
    raise ModelError(
        "this model did not begin with a folder in the layout of ChatGLM2, so there is no original form to write",
        where=model.model,
        hint="Leave the format out: transformers reads what danlu export writes.",
    )


def _stands_on(folder: Path) -> str | None:
    if (folder / LINEAGE[0]).is_file():
        base = read_folder_json(folder / LINEAGE[0]).get("base")
        return str(base) if base else None
    return open_run(folder).base if (folder / LINEAGE[1]).is_file() else None


def write_back(
    model: Any, folder: Path, *, record: Mapping[str, Any], shard_size: float, legacy_bin: bool = False
) -> None:
    """Write weights, config.json, tokenizer and code files as the original folder has them.

    Args:
        model: a GlmForCausalLM without adapters; it is written in its own precision.
        folder: an existing folder.
        record: from :func:`find_record`.
        shard_size: largest weight file in GB (10^9 bytes).
        legacy_bin: pytorch_model*.bin instead of safetensors.

    Raises:
        ModelError: when the model has other tensors than its original.
        OSError: when the disk is full.
    """
    source = Path(record["source"])
    layout = read_layout(source, record["config"], record["family"])
    layout = replace(layout, vocabulary=model.config.vocab_size)
    state = model.state_dict()
    _check_state(state, layout, source)
    dtype = str(model.dtype).removeprefix("torch.")
    made = original_tensors(layout)
    tensors = [Stored(item.name, item.shape, CODES[dtype]) for item in made]
    values = (item.build(state.__getitem__) for item in made)
    write_shards(
        folder,
        [*_frequencies(record), *tensors],
        _chain(record, values),
        limit=max(int(shard_size * 1e9), 1),
        legacy_bin=legacy_bin,
    )
    _write_configs(record, folder, layout, dtype)
    copy_companions(source, record["config"], folder)


def _check_state(state: Mapping[str, Any], layout: Layout, source: Path) -> None:
    expected = {item.name: item.shape for item in native_tensors(layout)}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    other = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if other:
        name = other[0]
        raise ModelError(
            f"the model is not of the shape of its original: {name} is {found.get(name)}, there {expected.get(name)}",
            where=str(source),
        )


def _frequencies(record: Mapping[str, Any]) -> list[Stored]:
    left_out = record["left_out"]
    return [Stored(name, (len(kept["values"]),), kept["dtype"]) for name, kept in left_out.items()]


def _chain(record: Mapping[str, Any], values: Any) -> Any:
    """What the conversion left out, bit for bit, and then the weights."""
    import torch

    for kept in record["left_out"].values():
        yield torch.tensor(kept["values"], dtype=torch.float64).to(getattr(torch, NAMES[kept["dtype"]]))
    yield from values


def _write_configs(record: Mapping[str, Any], folder: Path, layout: Layout, dtype: str) -> None:
    """The original's config.json; only what is no longer so is changed."""
    config = dict(record["config"])
    if layout.vocabulary != config["padded_vocab_size"]:
        warn("the vocabulary has grown: the original tokenizer, which is copied, does not know the new tokens")
        config["padded_vocab_size"] = layout.vocabulary
        if "vocab_size" in config:
            config["vocab_size"] = layout.vocabulary
    key = "dtype" if "dtype" in config else "torch_dtype"
    config[key] = dtype
    write_json(folder / "config.json", config)
    if record.get("generation_config"):
        write_json(folder / "generation_config.json", record["generation_config"])


def copy_companions(source: Path, config: Mapping[str, Any], folder: Path) -> None:
    """Copy tokenizer, code and licence of an original folder as they are; say what is not there."""
    for pattern in COMPANIONS:
        for file in source.glob(pattern) if source.is_dir() else ():
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    missing = [name for name in code_files(config) if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json", "ice_text.model")):
        missing.append("tokenizer.model")
    if missing:
        warn(
            f"{source} does not have {', '.join(missing)}: copy them from the model's release into the written folder "
            "before a program uses it that runs the original code"
        )


def load_original(folder: Path, family: str) -> Any:
    """The GlmForCausalLM of a folder in the original layout, converted in memory; to check what was written."""
    import torch
    from transformers import AutoConfig, GlmForCausalLM

    from danlu.models.quiet import quiet

    layout = read_layout(folder, read_folder_json(folder / "config.json"), family)
    shards = Shards(folder)
    made: list[Made] = native_tensors(layout)
    dtype = NAMES[shards.stored[made[0].pieces[0].name].dtype]
    state = {item.name: item.build(shards.read) for item in made}
    config: Any = AutoConfig.for_model(**glm_config(layout, dtype))
    with quiet():
        return GlmForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=getattr(torch, dtype)).eval()
