"""GGUF files as plain model folders: dequantised once into the cache, then loaded like any other model."""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from danlu.core.errors import MissingDependency, ModelError
from danlu.core.workspace import cache_folder
from danlu.models.folders import made_once

LAYOUT = 1
"""Raised when the conversion changes, so that folders made by an older one are not used."""

DIGIT_SPLITTERS = ("smollm", "starcoder", "refact", "command-r")
"""Values of ``tokenizer.ggml.pre`` whose models split numbers into digits before byte-level BPE."""


def dequantised(file: Path) -> Path:
    """The model folder (bfloat16 safetensors, tokenizer) made from a GGUF file.

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
        _write_tokenizer(file, folder)
        _write_model(file, folder)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever the reader trips over, the file is what is wrong
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the GGUF file cannot be converted ({reason})",
            where=str(file),
            hint="Check that the download is complete and that transformers reads this architecture.",
        ) from error


def _write_model(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    from danlu.models.quiet import quiet

    with quiet(), _without_bar():
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        model = model.to(torch.bfloat16)
        model.config._name_or_path = ""
        model.save_pretrained(folder)


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


def _write_tokenizer(file: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    from danlu.models.quiet import quiet

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        _restore_pre_tokenizer(tokenizer, file)
        tokenizer.save_pretrained(folder)


def _restore_pre_tokenizer(tokenizer: Any, file: Path) -> None:
    """Split digits one by one where the file says so: transformers does not read ``tokenizer.ggml.pre``."""
    from tokenizers import pre_tokenizers

    if _text_field(file, "tokenizer.ggml.pre") in DIGIT_SPLITTERS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )


def _text_field(file: Path, key: str) -> str | None:
    """One string of a GGUF header: length and text of the key, type 8, length and text of the value."""
    name = key.encode()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.find(struct.pack("<Q", len(name)) + name + struct.pack("<I", 8))
        if found < 0:
            return None
        start = found + 8 + len(name) + 4
        (length,) = struct.unpack_from("<Q", content, start)
        return content[start + 8 : start + 8 + length].decode()
