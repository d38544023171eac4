"""What a run was made of: written beside its weights, read by every later command."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from danlu import __version__
from danlu.core.files import sha256

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers")
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
SECRET_WORDS = ("token", "api_key", "secret", "password")
EDGE = 1 << 20


class Record(BaseModel):
    """A frozen record that tolerates what a later version adds."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class ModelRecord(Record):
    """The model that a run started from.

    Attributes:
        name: as it was asked for.
        path: the folder or file that was read.
        config_sha256: digest of its config.json, None for a GGUF file.
        weights: :func:`weights_fingerprint` of it.
    """

    name: str
    path: str
    config_sha256: str | None = None
    weights: str | None = None


class DataRecord(Record):
    """One source of rows: the name that was asked for, the file, its digest and how many rows were used."""

    name: str
    path: str
    sha256: str | None = None
    rows: int = 0


class Manifest(Record):
    """The lineage of a run or of one checkpoint.

    Attributes:
        danlu: version that wrote it.
        created: when, ISO 8601 in UTC.
        command: the words of the command, secrets hidden.
        versions: of Python and the packages that decide results.
        base: the model it started from.
        tokenizer: digest of the tokenizer.
        template: digest of the template.
        data: what was trained on.
        eval_data: what was measured on.
        row_keys: file with the keys of the trained rows, relative to the manifest.
        config_sha256: digest of run.yaml's values.
        parents: runs that this one continues, by path.
        merged: adapters that were merged into the base before training, in order: the run stands on them.
        step: the optimizer step, for a checkpoint.
    """

    danlu: str = __version__
    created: str = ""
    command: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    stage: str = ""
    method: str = ""
    base: ModelRecord | None = None
    tokenizer: str | None = None
    template: str | None = None
    data: tuple[DataRecord, ...] = ()
    eval_data: tuple[DataRecord, ...] = ()
    row_keys: str | None = None
    config_sha256: str | None = None
    parents: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    step: int | None = None


def now() -> str:
    """The time, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those ``packages`` that are installed; none of them is imported."""
    found = {package: _version(package) for package in packages}
    return {"python": platform.python_version(), **{name: known for name, known in found.items() if known}}


@cache
def _version(package: str) -> str | None:
    """Read once: it stands in a long file, and does not change while this process runs."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def without_secrets(words: Sequence[str]) -> tuple[str, ...]:
    """The words of a command with the values of tokens and keys hidden.

    ``--hub_token X``, ``--hub_token=X`` and ``trainer.hub_token=X`` all lose their X.
    """
    result: list[str] = []
    hide = False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = any(name.lower().endswith(end) for end in SECRET_WORDS)
        if hide and not word.startswith("--"):
            result.append("…")
        else:
            result.append(f"{name}=…" if secret and equals else word)
        hide = secret and not equals and word.startswith("--")
    return tuple(result)


def weights_fingerprint(path: Path) -> str | None:
    """A fingerprint of a model's weights that takes milliseconds.

    BLAKE2b over each weight file's name, size, first and last megabyte, in the order of names: it changes
    when weights are trained, converted or swapped, and reads no gigabytes. None when there are no weights.
    """
    if path.is_file():
        files = [path]
    else:
        files = sorted({file for pattern in WEIGHTS for file in path.glob(pattern) if file.is_file()})
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(EDGE))
            if size > EDGE:
                stream.seek(max(EDGE, size - EDGE))
                digest.update(stream.read(EDGE))
    return digest.hexdigest()


def model_record(name: str, path: Path) -> ModelRecord:
    """The record of a model folder or file."""
    config = path / "config.json"
    return ModelRecord(
        name=name,
        path=str(path),
        config_sha256=sha256(config) if config.is_file() else None,
        weights=weights_fingerprint(path),
    )
