"""Adapters of ChatGLM's scripts as folders of today, and prefixes of today as the scripts read them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from danlu import __version__
from danlu.core.errors import UsageError
from danlu.core.files import write_json
from danlu.models.adapters import PROMPTS, AdapterInfo, load_prefix, read_adapter
from danlu.models.chatglm.convert import is_original
from danlu.models.chatglm.layout import glm_config, read_layout
from danlu.models.chatglm.lora import is_old, read_lora, translate
from danlu.models.chatglm.prefix import write_official
from danlu.models.folders import whole_folder
from danlu.models.hub import fetch
from danlu.models.loading import check_architecture, lasting_name, model_folder
from danlu.models.prefix import PrefixEncoder
from danlu.models.runs import open_run
from danlu.models.sources import check_folder, read_folder_json, resolve_model

MARKER = "danlu_adapter.json"


def native_config(model: str) -> Any:
    """The configuration of a model as it is computed here; weights are neither read nor converted.

    Raises:
        ModelError: when there is no such model.
    """
    from transformers import AutoConfig

    source = resolve_model(model)
    if source.kind in ("folder", "hub"):
        folder = source.path or fetch(source.name)
        check_folder(folder)
        if is_original(folder):
            layout = read_layout(folder, read_folder_json(folder / "config.json"))
            return AutoConfig.for_model(**glm_config(layout, "float32"))
    folder = model_folder(model)
    check_architecture(folder)
    return AutoConfig.from_pretrained(folder)


def convert_adapter(source: str | Path, target: Path, *, model: str | None = None, original: bool = False) -> Path:
    """Write an adapter of ChatGLM's scripts as one of today, or a prefix of today as the scripts read it.

    Args:
        source: a checkpoint of the P-Tuning scripts, a LoRA adapter on fused layers, or a run with a prefix.
        target: folder to write; a former conversion there is replaced, anything else is refused.
        model: the base model; what the adapter says by default.
        original: write the scripts' own form.

    Returns:
        The folder.

    Raises:
        UsageError: when no base is known, or there is nothing to convert.
        ModelError: when the adapter does not belong to the base.
        RunError: when the folder holds something else, or cannot be written.
    """
    info = read_adapter(source)
    base = model or _base_of(info)
    config = native_config(base)
    config._name_or_path = lasting_name(base)
    with whole_folder(target, marker=MARKER) as folder:
        if original:
            write_official(_prefix(info, config), config, folder, base=lasting_name(base))
        elif info.official:
            load_prefix(info, config).save(folder, base=lasting_name(base))
        else:
            _translate(info, config, folder)
        told = {"danlu": __version__, "source": str(info.path.resolve()), "base": lasting_name(base)}
        write_json(folder / MARKER, told | {"format": "original" if original else "peft"})
    return target


def _base_of(info: AdapterInfo) -> str:
    if (info.path / "manifest.json").is_file():
        return open_run(info.path).model
    if info.base is None:
        raise UsageError(
            "the adapter does not say which model it belongs to",
            where=str(info.path),
            hint="Name the ChatGLM model with --model.",
        )
    return info.base


def _prefix(info: AdapterInfo, config: Any) -> PrefixEncoder:
    prefix = load_prefix(info, config) if info.kind in PROMPTS else None
    if not isinstance(prefix, PrefixEncoder):
        raise UsageError(
            f"the official scripts know prefixes only, and this is an adapter of the kind {info.kind}",
            where=str(info.path),
            hint="danlu export --format original writes a model with a merged LoRA adapter.",
        )
    return prefix


def _translate(info: AdapterInfo, config: Any, folder: Path) -> None:
    tensors = read_lora(info.path) if info.kind == "LORA" and config.model_type == "glm" else {}
    if not is_old(tensors):
        raise UsageError(
            "there is nothing to convert: the adapter is in a form of today",
            where=str(info.path),
            hint="Use it as it is; --format original writes a prefix for the official scripts.",
        )
    translate(info.path, tensors, config, folder)
    for file in info.path.glob("value_head.*"):  # of a reward model
        shutil.copyfile(file, folder / file.name)
