"""``danlu convert``: a model in another layout as a folder that transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu import __version__
from danlu.core.config import build
from danlu.core.console import note, out
from danlu.core.errors import ModelError, UsageError
from danlu.core.files import expanded, write_json
from danlu.models.export_config import ConvertConfig

if TYPE_CHECKING:
    from danlu.models.sources import ModelSource


def convert(source: str | Path, target: str | Path, **keys: Any) -> Path:
    """Convert a folder in the layout of ChatGLM2, ChatGLM3 or GLM-4, or a GGUF file, for good.

    danlu does the same by itself, into its cache, when such a model is used; this is for a folder to keep, and for
    models whose files do not say which family they are.

    Args:
        source: the folder, a hub id of such a model, a GGUF file, or a name of ``danlu models list``.
        target: folder to write; a former conversion there is replaced, anything else is refused.
        keys: ``family``, ``dtype``, ``max_shard_size`` (:class:`danlu.models.export_config.ConvertConfig`).

    Returns:
        The folder.

    Raises:
        UsageError: for a value that makes no sense.
        ModelError: when there is nothing to convert, or it cannot be.
        RunError: when the folder holds something else, or there is no room; nothing half is left.
    """
    options = build(ConvertConfig, keys, where="danlu convert")
    from danlu.models.chatglm.convert import RECORD
    from danlu.models.folders import whole_folder
    from danlu.models.sources import resolve_model

    found = resolve_model(source)
    folder = expanded(target)
    packed = found.kind in ("gguf", "packaged")
    if packed and options.family:
        raise UsageError("family says which ChatGLM a folder is; a GGUF file says it itself", where="--family")
    note("Converting …")
    with whole_folder(folder, marker=RECORD) as temporary:
        (_from_gguf if packed else _from_folder)(found, temporary, options)
    out.print(str(folder), style="accent", markup=False, soft_wrap=True)
    return folder


def _from_folder(source: ModelSource, folder: Path, options: ConvertConfig) -> None:
    from danlu.models.chatglm.convert import convert as write
    from danlu.models.chatglm.convert import is_original
    from danlu.models.chatglm.layout import read_layout
    from danlu.models.hub import fetch
    from danlu.models.sources import check_folder, read_folder_json

    original = source.path or fetch(source.name)
    check_folder(original)
    if not is_original(original):
        raise ModelError(
            "there is nothing to convert: this folder is not in the layout of ChatGLM2",
            where=str(original),
            hint="Use it as it is; `danlu export` writes a model in another precision.",
        )
    layout = read_layout(original, read_folder_json(original / "config.json"), options.family)
    dtype = None if options.dtype == "auto" else options.dtype
    write(original, folder, layout=layout, dtype=dtype, shard_size=options.max_shard_size)


def _from_gguf(source: ModelSource, folder: Path, options: ConvertConfig) -> None:
    from danlu.models.chatglm.convert import RECORD
    from danlu.models.loading import load_model, load_tokenizer
    from danlu.models.weights import save_weights

    save_weights(load_model(source.name, dtype=options.dtype, device="cpu"), folder, shard_size=options.max_shard_size)
    load_tokenizer(source.name).save_pretrained(folder)
    write_json(folder / RECORD, {"danlu": __version__, "source": str(source.path), "family": None})
