"""``danlu convert``: a model in another layout as a folder that transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu import __version__
from danlu.core.config import build
from danlu.core.console import note, out
from danlu.core.errors import ModelError, UsageError
from danlu.core.files import expanded, write_json
from danlu.models.chatglm.families import find_family
from danlu.models.export_config import ConvertConfig

if TYPE_CHECKING:
    from danlu.models.sources import ModelSource


def convert(source: str | Path, target: str | Path, **keys: Any) -> Path:
    """Convert a folder in the layout of ChatGLM2, ChatGLM3 or GLM-4, or a GGUF file, for good.

    danlu does the same by itself, into its cache, when such a model is used; this is for a folder to keep, and for
    models whose files do not say which family they are. Adapters of the scripts of ChatGLM's time are converted too,
    and a prefix back into their form.

    Args:
        source: the folder, a hub id of such a model, a GGUF file, a name of ``danlu models list``, or an adapter.
        target: folder to write; a former conversion there is replaced, anything else is refused.
        keys: ``family``, ``dtype``, ``max_shard_size``; for an adapter ``model`` and ``convert_format``
            (:class:`danlu.models.export_config.ConvertConfig`).

    Returns:
        The folder.

    Raises:
        UsageError: for a value that makes no sense.
        ModelError: when there is nothing to convert, or it cannot be.
        RunError: when the folder holds something else, or there is no room; nothing half is left.
    """
    options = build(ConvertConfig, keys, where="danlu convert")
    if options.family:
        find_family(options.family)
    if options.model or _is_adapter(source):
        return _adapter(source, target, options)
    if options.convert_format == "original":
        raise UsageError(
            "only a prefix is written in its original form here, and this is none",
            where=str(source),
            hint="danlu export --format original writes a model in its original layout.",
        )
    from danlu.models.chatglm.convert import RECORD
    from danlu.models.folders import whole_folder
    from danlu.models.sources import resolve_model

    found = resolve_model(source)
    folder = expanded(target)
    packed = found.kind in ("gguf", "packaged")
    if packed and options.family:
        raise UsageError("family says which ChatGLM a folder is; a GGUF file says it itself", where="--family")
    with whole_folder(folder, marker=RECORD) as temporary:
        (_from_gguf if packed else _from_folder)(found, temporary, options)
    out.print(str(folder), style="accent", markup=False, soft_wrap=True)
    return folder


def _is_adapter(source: str | Path) -> bool:
    """Whether a folder on this machine holds an adapter and no whole model."""
    from danlu.core.checkpoints import follow

    folder = follow(expanded(source))
    if not folder.is_dir():
        return False
    from danlu.models.chatglm.prefix import is_prefix_alone
    from danlu.models.sources import has_weights

    if is_prefix_alone(folder):
        return True
    whole = (folder / "config.json").is_file() and has_weights(folder)
    return (folder / "adapter_config.json").is_file() and not whole


def _adapter(source: str | Path, target: str | Path, options: ConvertConfig) -> Path:
    from danlu.models.chatglm.adapters import convert_adapter

    for name in ("family", "dtype", "max_shard_size"):
        if getattr(options, name) != ConvertConfig.model_fields[name].default:
            raise UsageError(f"{name} is for models, and this is an adapter", where=f"--{name}", hint="Leave it out.")
    folder = convert_adapter(
        source, expanded(target), model=options.model, original=options.convert_format == "original"
    )
    out.print(str(folder), style="accent", markup=False, soft_wrap=True)
    return folder


def _from_folder(source: ModelSource, folder: Path, options: ConvertConfig) -> None:
    from danlu.models.chatglm.convert import convert as write
    from danlu.models.chatglm.convert import is_original
    from danlu.models.chatglm.layout import read_layout
    from danlu.models.hub import fetch
    from danlu.models.loading import check_architecture
    from danlu.models.sources import check_folder, read_folder_json

    original = source.path or fetch(source.name)
    check_folder(original)
    if not is_original(original):
        check_architecture(original)
        raise ModelError(
            "there is nothing to convert: this folder is not in the layout of ChatGLM2",
            where=str(original),
            hint="Use it as it is; `danlu export` writes a model in another precision.",
        )
    layout = read_layout(original, read_folder_json(original / "config.json"), options.family)
    note("Converting …")
    dtype = None if options.dtype == "auto" else options.dtype
    write(original, folder, layout=layout, dtype=dtype, shard_size=options.max_shard_size)


def _from_gguf(source: ModelSource, folder: Path, options: ConvertConfig) -> None:
    from danlu.models.chatglm.convert import RECORD
    from danlu.models.loading import load_model, load_tokenizer
    from danlu.models.weights import save_weights

    note("Converting …")
    save_weights(load_model(source.name, dtype=options.dtype, device="cpu"), folder, shard_size=options.max_shard_size)
    load_tokenizer(source.name).save_pretrained(folder)
    write_json(folder / RECORD, {"danlu": __version__, "source": str(source.path), "family": None})
