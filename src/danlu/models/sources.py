"""Which model is meant: a folder, a GGUF file, a packaged name or a hub id. Nothing heavy is imported."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from danlu.core.checkpoints import follow
from danlu.core.errors import ModelError, did_you_mean
from danlu.models.zoo import packaged_models

SourceKind: TypeAlias = Literal["folder", "gguf", "packaged", "hub"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a model name means.

    Attributes:
        kind: ``folder``, ``gguf``, ``packaged`` (a GGUF file of an installed package) or ``hub``.
        name: as it was asked for.
        path: the folder or GGUF file; None for a hub id, which has to be fetched first.
    """

    kind: SourceKind
    name: str
    path: Path | None


def resolve_model(name: str | Path) -> ModelSource:
    """Decide what ``name`` means, without the network and without reading weights.

    A folder or file of that name wins; then packaged names; then hub ids (``owner/name``).

    Raises:
        ModelError: when the name is a path that does not exist, a file that is not GGUF, a folder without a
            model (an adapter folder is told apart), or a misspelt packaged name.
        MissingDependency: when the package of a packaged model is not installed.
    """
    text = str(name)
    path = follow(Path(text).expanduser())
    if path.is_dir():
        check_folder(path)
        return ModelSource("folder", text, path)
    if path.is_file():
        return ModelSource("gguf", text, _gguf_file(path))
    packaged = packaged_models()
    if text in packaged:
        return ModelSource("packaged", text, packaged[text].gguf())
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or not HUB_ID.fullmatch(text):
        raise ModelError("there is no such model folder or file", where=text, hint="Check the path, or give a hub id.")
    near = did_you_mean(text, packaged)
    if near and "/" not in text:
        raise ModelError(f"there is no model named {text!r}", hint=near)
    return ModelSource("hub", text, None)


def _gguf_file(path: Path) -> Path:
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise ModelError(f"it cannot be read ({error.strerror})", where=str(path)) from error
    if magic != b"GGUF":
        raise ModelError(
            "it is neither a model folder nor a GGUF file",
            where=str(path),
            hint="Give the folder that holds config.json.",
        )
    return path


def check_folder(path: Path) -> None:
    """Refuse a folder that cannot be a model, saying what it is instead.

    Raises:
        ModelError: no config.json (with the base that an adapter needs), or no weights.
    """
    if not (path / "config.json").is_file():
        raise _no_config(path)
    if not has_weights(path):
        raise ModelError(
            "the model folder has no weights",
            where=str(path),
            hint="Expected *.safetensors or pytorch_model*.bin beside config.json.",
        )


def _no_config(path: Path) -> ModelError:
    adapter = path / "adapter_config.json"
    if adapter.is_file():
        base = read_folder_json(adapter).get("base_model_name_or_path") or "the model it was trained on"
        return ModelError(
            "this folder is an adapter, not a model",
            where=str(path),
            hint=f"Its base is {base}: give that as the model and this folder as the adapter "
            "(or --run for a run of danlu).",
        )
    if any(path.glob("*.gguf")):
        return ModelError(
            "the folder has no config.json",
            where=str(path),
            hint="Give the .gguf file inside it by its path.",
        )
    inner = sorted(child.name for child in path.iterdir() if (child / "config.json").is_file())
    hint = f"Did you mean {path / inner[0]}?" if inner else "A model folder holds config.json and the weights."
    return ModelError("this is not a model folder: there is no config.json", where=str(path), hint=hint)


def has_weights(path: Path) -> bool:
    """Whether a folder holds the weights of a model (those of an adapter do not count)."""
    files = (file for pattern in WEIGHT_PATTERNS for file in path.glob(pattern))
    return any(not file.name.startswith(("adapter_", "prefix_")) for file in files)


def read_folder_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        ModelError: when it cannot be read or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"it cannot be read ({error})", where=str(path)) from error
    if not isinstance(value, dict):
        raise ModelError("it is not a JSON object", where=str(path))
    return value
