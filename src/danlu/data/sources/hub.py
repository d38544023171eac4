"""Datasets of the Hugging Face hub and ModelScope: which files they have, fetched into the usual cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from danlu.core.errors import DanluError, DataError
from danlu.core.hub import BRANCH, HubError, Site, Wanted, explained, huggingface, modelscope, silent, site_of, snapshot
from danlu.data.sources.files import is_data_file, suffix_of

_PREFERRED = ("parquet", "arrow", "jsonl", "ndjson", "json", "csv", "tsv", "txt")
_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "eval", "evaluation")
_PART = re.compile(r"-\d+-of-(\d+)\.")
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
    site = site_of(source.site)
    if why := silent(site):
        return _cached(site, source, why)
    try:
        names = choose(_listed(site, source), source)
        folder = snapshot(site, _wanted(site, source, names))
    except HubError as error:
        raise DataError(error.what, where=source.repository, hint=error.hint) from error
    return [folder / name for name in names]


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


def _wanted(site: Site, source: HubSource, names: Sequence[str]) -> Wanted:
    return Wanted(source.repository, "dataset", source.revision or BRANCH[site], tuple(names))


def _listed(site: Site, source: HubSource) -> list[str]:
    """Names of all files of a dataset."""
    options: dict[str, Any] = {"repo_type": "dataset", "revision": source.revision or BRANCH[site]}
    try:
        if site == "huggingface":
            return list(huggingface().HfApi().list_repo_files(source.repository, **options))
        return [entry.path for entry in modelscope().list_repo_files(source.repository, **options)]
    except DanluError:
        raise
    except Exception as error:  # the clients' errors share no base class
        raise explained(error, source.repository, site) from error


def _cached(site: Site, source: HubSource, why: str) -> list[Path]:
    """Files of an earlier download."""
    nothing = ["no file is asked for, only the folder"]  # the client refuses a folder that lacks what is asked for
    try:
        folder = snapshot(site, _wanted(site, source, nothing), local=True)
    except HubError as error:
        raise DataError(
            f"{why} and this dataset is not in the cache",
            where=source.repository,
            hint="Download it where there is a network, and give the path of its folder or file.",
        ) from error
    found = choose([path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()], source)
    numbers = [match for name in found if (match := _PART.search(name))]
    if numbers and len(numbers) < int(numbers[0][1]):
        raise DataError(
            f"{why} and only {len(numbers)} of its {int(numbers[0][1])} parts are in the cache", where=source.repository
        )
    return [folder / name for name in found]
