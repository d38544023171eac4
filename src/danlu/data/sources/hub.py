"""Datasets of the Hugging Face hub (and ModelScope): which files they have, fetched into the usual cache."""

from __future__ import annotations

import re
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from danlu.core.errors import DataError, MissingDependency
from danlu.core.workspace import offline
from danlu.data.sources.files import is_data_file, suffix_of

_PATIENCE = 1.5
_PREFERRED = ("parquet", "arrow", "jsonl", "ndjson", "json", "csv", "tsv", "txt")
_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "eval", "evaluation")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A dataset repository and what to take from it.

    Attributes:
        repository: ``owner/name``.
        site: ``huggingface`` or ``modelscope``.
        revision: branch, tag or commit.
        subset: configuration; a folder or the beginning of a file name.
        split: part of the file names, as in ``train-00000-of-00002.parquet``.
        folder: folder inside the repository.
        files: exact names, instead of a choice by the above.
    """

    repository: str
    site: str = "huggingface"
    revision: str | None = None
    subset: str | None = None
    split: str | None = None
    folder: str | None = None
    files: tuple[str, ...] = ()


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``owner/name``."""
    return _HUB_ID.fullmatch(name) is not None


def fetch(source: HubSource) -> list[Path]:
    """The local files of a hub dataset, downloaded where they are not in the cache yet.

    Raises:
        DataError: without network (within two seconds), for an unknown or gated dataset, or if no file fits.
        MissingDependency: without the hub's client library.
    """
    if source.site == "modelscope":
        return _modelscope(source)
    hub = _client()
    from huggingface_hub.constants import ENDPOINT

    if offline() or not reachable(ENDPOINT):
        return _cached(hub, source)
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    options: dict[str, Any] = {"repo_type": "dataset", "revision": source.revision}
    try:
        names = choose(hub.HfApi().list_repo_files(source.repository, **options), source)
        return [Path(hub.hf_hub_download(source.repository, name, **options)) for name in names]
    except GatedRepoError as error:
        hint = "Ask for access on its page, then log in with: hf auth login"
        raise DataError("this dataset is gated", where=source.repository, hint=hint) from error
    except RepositoryNotFoundError as error:
        hint = "Check the name; private datasets need: hf auth login"
        raise DataError("the hub has no such dataset", where=source.repository, hint=hint) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise DataError(f"it cannot be fetched ({reason})", where=source.repository) from error


def fetch_file(repository: str, name: str) -> Path:
    """One file of a hub dataset by its name; errors as in :func:`fetch`."""
    return fetch(HubSource(repository, files=(name,)))[0]


def choose(names: Sequence[str], source: HubSource) -> list[str]:
    """The files of a repository's list that hold the rows asked for, sorted.

    Where the same rows come in several kinds of file, one kind is taken, parquet before JSON before tables.

    Raises:
        DataError: when none fits, naming what there is.
    """
    if source.files:
        wanted = sorted(set(source.files) & set(names))
        if len(wanted) != len(set(source.files)):
            raise _nothing(source, names, "it does not have every file named")
        return wanted
    found = [name for name in names if is_data_file(name) and not name.startswith(".")]
    if source.folder:
        found = [name for name in found if name.startswith(source.folder.strip("/") + "/")]
    if source.subset:
        found = [name for name in found if _has_subset(name, source.subset)]
    kinds = {suffix_of(Path(name)) for name in found}
    kind = next((suffix for suffix in _PREFERRED if suffix in kinds), None)
    found = _of_split([name for name in found if suffix_of(Path(name)) == kind], source.split or "train")
    if not found:
        raise _nothing(source, names, "no data file of it fits")
    return sorted(found)


def _nothing(source: HubSource, names: Sequence[str], what: str) -> DataError:
    parts = {"subset": source.subset, "split": source.split, "folder": source.folder}
    asked = ", ".join(f"{key} {value}" for key, value in parts.items() if value)
    there = ", ".join([name for name in names if is_data_file(name)][:8]) or "no data files"
    return DataError(what + (f" ({asked})" if asked else ""), where=source.repository, hint=f"It has: {there}.")


def _has_subset(name: str, subset: str) -> bool:
    path = PurePosixPath(name)
    return subset in path.parts[:-1] or path.stem == subset or path.stem.startswith((f"{subset}-", f"{subset}_"))


def _of_split(names: list[str], split: str) -> list[str]:
    words = {name: set(re.split(r"[^a-z0-9]+", name.lower())) for name in names}
    matching = [name for name in names if split.lower() in words[name]]
    if matching:
        return matching
    unnamed = [name for name in names if not words[name] & set(_SPLITS)]
    return unnamed if split == "train" else []


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency("huggingface_hub", "to fetch datasets from the hub") from error
    return huggingface_hub


def reachable(address: str, patience: float = _PATIENCE) -> bool:
    """Whether a connection to a site (or to the proxy in front of it) opens within ``patience`` seconds.

    Name resolution has no time limit of its own, so the attempt runs beside us and is given up.
    """
    target = urllib.parse.urlsplit(address)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = target.port or (80 if target.scheme == "http" else 443)
    opened = threading.Event()

    def attempt() -> None:
        try:
            with socket.create_connection((target.hostname or "", port), timeout=patience):
                opened.set()
        except OSError:
            return

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(patience)
    return opened.is_set()


def _cached(hub: Any, source: HubSource) -> list[Path]:
    """Files of an earlier download."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            hub.snapshot_download(
                source.repository, repo_type="dataset", revision=source.revision, local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        asked = "danlu is told to stay offline" if offline() else "the hub cannot be reached"
        raise DataError(
            f"{asked} and this dataset is not in the cache",
            where=source.repository,
            hint="Download it where there is a network, and give the path of its folder or file.",
        ) from error
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [folder / name for name in choose(names, source)]


def _modelscope(source: HubSource) -> list[Path]:
    try:
        from modelscope.hub.snapshot_download import (  # type: ignore[import-not-found, unused-ignore]
            dataset_snapshot_download,
        )
    except ImportError as error:
        raise MissingDependency("modelscope", "to fetch datasets from ModelScope") from error
    try:
        folder = Path(dataset_snapshot_download(source.repository, revision=source.revision))
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"ModelScope does not give it ({error})", where=source.repository) from error
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [folder / name for name in choose(names, source)]
