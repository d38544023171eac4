"""A folder in the layout of ChatGLM2 as a folder of GlmForCausalLM, one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu import __version__
from danlu.core.console import note
from danlu.core.errors import ModelError
from danlu.core.files import write_json
from danlu.core.manifest import weights_fingerprint
from danlu.core.workspace import cache_folder
from danlu.models.chatglm.families import generation
from danlu.models.chatglm.layout import Layout, glm_config, read_layout
from danlu.models.chatglm.tensors import INVERSE_FREQUENCIES, Made, native_tensors, original_tensors
from danlu.models.folders import made_once, room_for
from danlu.models.shards import CODES, NAMES, Shards, Stored, write_shards
from danlu.models.sources import read_folder_json

LAYOUT_VERSION = 1
"""Raised when the conversion changes, so that folders made by an older one are not used."""

RECORD = "danlu_conversion.json"
SHARD_SIZE = 5.0
"""Largest weight file, in GB (10^9 bytes)."""

PREFIX = "transformer.prefix_encoder."
"""How tensors begin that the official P-Tuning scripts trained; :mod:`danlu.models.chatglm.prefix` reads them."""

PREFIX_HINT = (
    "It holds a prefix of the official P-Tuning scripts: name the released model as the model, and this folder as the "
    "adapter (--adapter, adapter_name_or_path)."
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""Tokenizer files that transformers reads without code from the folder."""


def native_folder(folder: Path, family: str | None = None) -> Path:
    """The folder to load: ``folder`` itself, or what was made of it in the cache where its layout is ChatGLM2's.

    Raises:
        ModelError: when the layout is a variant that danlu does not have, or the weights do not fit it.
        RunError: when the cache cannot be written.
    """
    config = read_folder_json(folder / "config.json")
    if generation(config) != "v2":
        return folder
    layout = read_layout(folder, config, family)
    marks = "\0".join([f"{LAYOUT_VERSION}", layout.family, json.dumps(config, sort_keys=True), _state(folder)])
    name = f"{folder.name}-{hashlib.sha256(marks.encode()).hexdigest()[:12]}"
    return made_once(
        cache_folder("models"),
        name,
        lambda target: convert(folder, target, layout=layout),
        message=f"Converting {folder.name} for transformers (once) …",
    )


def is_original(folder: Path) -> bool:
    """Whether a folder is in the layout of ChatGLM2, so that another one has to be loaded in its place."""
    path = folder / "config.json"
    return path.is_file() and generation(read_folder_json(path)) == "v2"


def converted_family(folder: Path) -> str | None:
    """The ChatGLM family that a folder was converted from, if it was."""
    path = folder / RECORD
    found = read_folder_json(path).get("family") if path.is_file() else None
    return str(found) if found else None


def lasting_folder(folder: Path) -> Path:
    """What to record for a folder that is used: the original where it is a conversion in the cache, else itself."""
    if folder.parent == cache_folder("models") and (folder / RECORD).is_file():
        source = Path(read_folder_json(folder / RECORD)["source"])
        return source if source.is_dir() else folder
    return folder


def _state(folder: Path) -> str:
    """Names, sizes and times of everything that a conversion reads."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return "\n".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)


def convert(
    source: Path, target: Path, *, layout: Layout, dtype: str | None = None, shard_size: float = SHARD_SIZE
) -> None:
    """Write weights, config, generation config, tokenizer and the record of a conversion.

    Args:
        source: a folder in the layout of ChatGLM2.
        target: an existing empty folder.
        layout: from :func:`danlu.models.chatglm.layout.read_layout`.
        dtype: precision to write, for instance ``float16``; None keeps each tensor's own.
        shard_size: largest weight file in GB (10^9 bytes).

    Raises:
        ModelError: when a weight is missing, left over or of another shape than config.json says.
        RunError: when there is no room.
    """
    shards = Shards(source)
    check_tensors(shards.stored, layout, source)
    order = {name: number for number, name in enumerate(shards.stored)}
    made = sorted(native_tensors(layout), key=lambda item: order[item.pieces[0].name])  # no file is opened twice
    tensors = [_stored(item, shards.stored, dtype) for item in made]
    write_tokenizer_files(source, target, layout)
    room_for(target, sum(tensor.size for tensor in tensors), target)
    values = (_cast(item.build(shards.read), dtype) for item in made)
    write_shards(target, tensors, values, limit=max(int(shard_size * 1e9), 1))
    config = read_folder_json(source / "config.json")
    written = Counter(tensor.dtype for tensor in tensors).most_common(1)[0][0]
    write_json(target / "config.json", glm_config(layout, NAMES[written]))
    write_json(target / "generation_config.json", _generation(source, layout, _ends(source, layout.family)))
    write_json(target / RECORD, _record(source, layout, config, shards))


def check_tensors(stored: Mapping[str, Stored], layout: Layout, source: Path) -> None:
    """Refuse weights that are not exactly what the layout says.

    Raises:
        ModelError: naming the first tensor that is missing, left over, or of another shape or type.
    """
    expected = {item.name: item.shape for item in original_tensors(layout)}
    where = str(source)
    missing = [name for name in expected if name not in stored]
    prefix = PREFIX_HINT if any(name.startswith(PREFIX) for name in stored) else None
    if missing:
        raise ModelError(f"{len(missing)} weights are missing, for instance {missing[0]}", where=where, hint=prefix)
    left = [name for name in stored if name not in expected and name != INVERSE_FREQUENCIES]
    if left:
        raise ModelError(
            f"{len(left)} weights have no place in a {layout.family} model, for instance {left[0]}",
            where=where,
            hint=prefix or "A classifier or quantised weights are not part of the base model.",
        )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ModelError(
                f"{name} has the shape {stored[name].shape}, but config.json says {shape}",
                where=where,
                hint="The folder may mix two models, or hold quantised weights.",
            )
        if stored[name].dtype not in ("F32", "F16", "BF16"):
            raise ModelError(f"{name} holds {stored[name].dtype} numbers, not floating-point weights", where=where)


def _stored(item: Made, stored: Mapping[str, Stored], dtype: str | None) -> Stored:
    code = CODES[dtype] if dtype else stored[item.pieces[0].name].dtype
    return Stored(item.name, item.shape, code)


def _cast(tensor: Any, dtype: str | None) -> Any:
    import torch

    return tensor if dtype is None else tensor.to(getattr(torch, dtype))


def _generation(source: Path, layout: Layout, ends: list[int]) -> dict[str, Any]:
    """generation_config.json: the original's, and every token that ends an answer."""
    given = _generation_config(source) or {}
    kept = {key: value for key, value in given.items() if not key.startswith("_") and key != "transformers_version"}
    eos = kept.get("eos_token_id", layout.eos)
    every = list(dict.fromkeys([*(eos if isinstance(eos, list) else [eos]), *ends]))
    return {"pad_token_id": layout.pad, **kept, "eos_token_id": every if len(every) > 1 else every[0]}


def _generation_config(source: Path) -> dict[str, Any] | None:
    path = source / "generation_config.json"
    return read_folder_json(path) if path.is_file() else None


def write_tokenizer_files(source: Path, target: Path, layout: Layout) -> None:
    """Write a tokenizer that transformers reads by itself: converted from ``tokenizer.model``, or copied.

    Raises:
        ModelError: when ``tokenizer.model`` is damaged, or has more tokens than the model.
        MissingDependency: when a package that reads it is missing.
    """
    from danlu.models.chatglm.tokenizer import CONTROL, MODEL_FILE, check_vocabulary, write_tokenizer

    if (source / MODEL_FILE).is_file() and layout.family in CONTROL:
        check_vocabulary(source, layout.family, layout.vocabulary)
        write_tokenizer(source, target, layout.family)
    elif (source / "tokenizer.json").is_file():
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    else:
        file = MODEL_FILE if layout.family in CONTROL else "tokenizer.json"
        note(
            f"{source.name} has no tokenizer that can be converted: training and answering need {file} and "
            "tokenizer_config.json beside config.json"
        )


def _ends(source: Path, family: str) -> list[int]:
    """Ids of the control tokens that end an answer besides the end of sequence."""
    from tokenizers import Tokenizer

    from danlu.models.chatglm.tokenizer import ENDS, MODEL_FILE, end_ids

    path = source / "tokenizer.json"
    if (source / MODEL_FILE).is_file() and family in ENDS:
        return end_ids(source, family)
    if not ENDS.get(family) or not path.is_file():
        return []
    tokenizer = Tokenizer.from_file(str(path))
    return [number for text in ENDS[family] if (number := tokenizer.token_to_id(text)) is not None]


def _record(source: Path, layout: Layout, config: Mapping[str, Any], shards: Shards) -> dict[str, Any]:
    """What writing the original layout again needs to know."""
    dropped = {}
    if INVERSE_FREQUENCIES in shards.stored:
        kept = shards.stored[INVERSE_FREQUENCIES]
        values = shards.read(INVERSE_FREQUENCIES).double().tolist()
        dropped[INVERSE_FREQUENCIES] = {"dtype": kept.dtype, "values": values}
    return {
        "danlu": __version__,
        "source": str(source.resolve()),
        "family": layout.family,
        "generation": "v2",
        "fingerprint": weights_fingerprint(source),
        "config": dict(config),
        "generation_config": _generation_config(source),
        "left_out": dropped,
    }
