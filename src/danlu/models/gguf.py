"""GGUF files as plain model folders: dequantised once into the cache, then loaded like any other model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from danlu.core.errors import MissingDependency, ModelError
from danlu.core.workspace import cache_folder
from danlu.models.folders import made_once
from danlu.models.gguf_config import complete
from danlu.models.gguf_header import read_fields, read_header
from danlu.models.gguf_tokens import byte_level_tokenizer, sentencepiece_tokenizer

LAYOUT = 2
"""Raised when the conversion changes, so that folders made by an older one are not used."""

DTYPES = {0: "float32", 1: "float16"}
"""Precision that the weights of a file are kept in, by ``general.file_type``; all others: bfloat16."""


def dequantised(file: Path) -> Path:
    """The model folder (safetensors, tokenizer) made from a GGUF file; what was quantised becomes bfloat16.

    It is made once, in the cache, under a name that holds the file's size and time; a second process that
    wants it at the same time waits for the first. A killed conversion leaves nothing that would be used.

    Raises:
        ModelError: when the file is damaged or of an architecture that transformers cannot read.
        MissingDependency: when the package gguf is missing.
        RunError: when the cache cannot be written.
    """
    status = file.stat()
    identity = f"{LAYOUT}\0{file.name}\0{status.st_size}\0{status.st_mtime_ns}"
    return made_once(
        cache_folder("models"),
        f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}",
        lambda folder: _convert(file, folder),
        message=f"Preparing {file.name} (once, about half a minute) …",
    )


def _convert(file: Path, folder: Path) -> None:
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise MissingDependency("gguf", "to read GGUF files", "tune")
    try:
        read_tokenizer(file).save_pretrained(folder)
        _write_model(file, folder)
    except (OSError, MemoryError):
        raise
    except ModelError as error:
        raise ModelError(error.what, where=str(file), hint=error.hint) from error
    except Exception as error:  # whatever the reader trips over, the file is what is wrong
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the GGUF file cannot be converted ({reason})",
            where=str(file),
            hint="Check that the download is complete and that transformers reads this architecture.",
        ) from error


def _write_model(file: Path, folder: Path) -> None:
    import torch

    from danlu.models.quiet import quiet

    model = read_model(file)
    kind = int(read_fields(file).get("general.file_type", -1))
    with quiet():
        model = model.to(getattr(torch, DTYPES.get(kind, "bfloat16")))
        model.config._name_or_path = ""
        model.save_pretrained(folder)


def read_model(file: Path) -> Any:
    """The model of a GGUF file in float32, dequantised.

    Raises:
        ModelError: when it has something that transformers cannot compute.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    from danlu.models.quiet import quiet

    header = read_header(file)
    with quiet(), _without_bar():
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        config = complete(config, header.fields, header.tensors, header.factors)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    model.generation_config.eos_token_id = config.eos_token_id
    return model.eval()


@contextmanager
def _without_bar() -> Iterator[None]:
    """The GGUF reader of transformers draws a bar of its own that no setting of transformers stops."""
    from transformers import modeling_gguf_pytorch_utils as reader

    drawn = getattr(reader, "tqdm", None)
    if drawn is not None:
        reader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        if drawn is not None:
            reader.tqdm = drawn


def read_tokenizer(file: Path) -> Any:
    """The tokenizer of a GGUF file."""
    from transformers import AutoTokenizer

    from danlu.models.quiet import quiet

    fields = read_fields(file)
    found = byte_level_tokenizer(fields) or sentencepiece_tokenizer(fields)
    if found is not None:
        return found
    with quiet():
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
