"""Datasets by name: the user's ``dataset_info.json``, the built-in catalog, then paths and hub ids.

An entry of ``dataset_info.json`` reads as in ChatGLM-Efficient-Tuning and LLaMA-Factory: without ``columns``
the columns are instruction, input, output (or conversations); once ``columns`` is there, what it does not
name is not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from danlu.core.config import read_yaml
from danlu.core.errors import DataError, did_you_mean
from danlu.data.formats import FORMATS, usual_shape
from danlu.data.formats.shape import NO_COLUMNS, Columns, Shape, Tags
from danlu.data.sources.files import find_files, looks_like_path
from danlu.data.sources.hub import HubSource, fetch, fetch_file, is_hub_id

DatasetDir: TypeAlias = str | Path | Mapping[str, Any]
"""Folder with dataset_info.json; ``ONLINE`` (names are hub ids); ``REMOTE:owner/name``; or the entries."""

_REFUSED = {
    "script_url": "loading scripts of strangers are never run; convert the rows to JSON lines once",
    "cloud_file_name": "cloud storage is not read; copy the file and name it in file_name",
    "om_hub_url": "OpenMind is not supported; download the file and name it in file_name",
}
_PLACES = ("hf_hub_url", "ms_hub_url", "file_name")
_OTHERS = (
    "file_sha1",
    "formatting",
    "ranking",
    "subset",
    "split",
    "folder",
    "num_samples",
    "columns",
    "tags",
)
_KNOWN_KEYS = (*_PLACES, *_REFUSED, *_OTHERS)


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset: where its rows are and how to read them.

    Attributes:
        name: as the user wrote it.
        place: path or pattern, or the hub dataset.
        base: folder that a relative path is also looked for in.
        shape: None when the columns decide.
        described: the shape comes from dataset_info.json, so columns it leaves out are worth a word.
        sha1: checksum the (single) file should have.
        num_samples: so many rows drawn at random (again, when there are fewer).
        warnings: what is odd about the entry.
    """

    name: str
    place: str | HubSource
    base: Path | None = None
    shape: Shape | None = None
    described: bool = False
    sha1: str | None = None
    num_samples: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The place in words."""
        return self.place if isinstance(self.place, str) else self.place.repository

    def files(self) -> list[Path]:
        """The local files, fetched if need be.

        Raises:
            DataError: when there are none; the entry that names them is told.
        """
        if not isinstance(self.place, str):
            return fetch(self.place)
        try:
            return find_files(self.place, self.base)
        except DataError as error:
            if not self.described:
                raise
            entry = f"{self.base or Path()}/dataset_info.json:{self.name}"
            hint = error.hint if error.hint and error.hint.startswith("Did") else f"Paths start in {self.base or '.'}."
            raise DataError(f"the file {self.place} does not exist", where=entry, hint=hint) from error


def resolve(name: str, dataset_dir: DatasetDir = "data") -> Source:
    """What the name of a dataset stands for.

    Tried in this order: an entry of ``dataset_info.json``, a name of the built-in catalog, a file, folder or
    pattern, a hub id.

    Raises:
        DataError: when it is none of them, with the nearest names; or when its entry makes no sense.
    """
    entries, where = read_entries(dataset_dir)
    base = None if isinstance(dataset_dir, Mapping) else Path(dataset_dir)
    if name in entries:
        return entry_source(name, entries[name], base, where=f"{where}:{name}")
    if name in builtin():
        return builtin()[name].source()
    online = dataset_dir == "ONLINE"
    here = [folder for folder in (Path(), base) if folder and (folder / name).expanduser().exists()]
    if not online and (here or looks_like_path(name)):
        return Source(name, name, base)
    if is_hub_id(name):
        return Source(name, HubSource(name))
    near = did_you_mean(name, [*entries, *builtin()])
    raise DataError(
        f"there is no dataset named {name!r}",
        where=where if entries else None,
        hint=f"{near or 'Names are listed by: danlu data list.'} A path to a file or folder works as well.",
    )


def read_entries(dataset_dir: DatasetDir) -> tuple[dict[str, Any], str]:
    """The entries of ``dataset_info.json`` (none when there is no such file), and its path.

    Raises:
        DataError: when the file is broken, with the line.
    """
    if isinstance(dataset_dir, Mapping):
        return dict(dataset_dir), "dataset_dir"
    if dataset_dir == "ONLINE":
        return {}, "ONLINE"
    text = str(dataset_dir)
    if text.startswith("REMOTE:"):
        path = fetch_file(text.removeprefix("REMOTE:"), "dataset_info.json")
    else:
        path = Path(dataset_dir).expanduser() / "dataset_info.json"
    if not path.is_file():
        return {}, str(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"it is not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"it cannot be read ({error})", where=str(path)) from error
    if not isinstance(value, dict):
        raise DataError("it must map names to entries", where=str(path))
    return value, str(path)


def entry_source(name: str, entry: Any, base: Path | None, *, where: str) -> Source:
    """The source that an entry of ``dataset_info.json`` describes.

    Raises:
        DataError: for wrong types, an unknown format, and places that are not supported, with the reason.
    """
    if not isinstance(entry, dict):
        raise DataError("an entry is an object with file_name or hf_hub_url", where=where)
    warnings = [
        f"unknown key {key!r} is not read. {did_you_mean(key, _KNOWN_KEYS) or ''}".rstrip()
        for key in entry
        if key not in _KNOWN_KEYS
    ]
    return Source(
        name=name,
        place=_place(entry, where),
        base=base,
        shape=entry_shape(entry, where),
        described=True,
        sha1=_typed(entry, "file_sha1", str, where),
        num_samples=_count(entry, where),
        warnings=tuple(warnings),
    )


def _place(entry: dict[str, Any], where: str) -> str | HubSource:
    for key, site in (("hf_hub_url", "huggingface"), ("ms_hub_url", "modelscope")):
        if repository := _typed(entry, key, str, where):
            parts = {name: _typed(entry, name, str, where) for name in ("subset", "split", "folder")}
            return HubSource(repository, site, **parts)
    if place := _typed(entry, "file_name", str, where):
        return str(place)
    for key, reason in _REFUSED.items():
        if key in entry:
            raise DataError(f"{key} cannot be used: {reason}", where=where)
    raise DataError("it does not say where the rows are", where=where, hint=f"Give one of {', '.join(_PLACES)}.")


def _typed(entry: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = entry.get(key)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        names = {str: "text", bool: "true or false", dict: "an object", int: "a number"}
        raise DataError(f"{key} must be {names[kind]}, it is {value!r}", where=where)
    return value


def _count(entry: dict[str, Any], where: str) -> int | None:
    count: int | None = _typed(entry, "num_samples", int, where)
    if count is not None and count < 1:
        raise DataError(f"num_samples must be 1 or more, it is {count}", where=where)
    return count


def entry_shape(entry: Mapping[str, Any], where: str) -> Shape:
    """Formatting, columns and tags of an entry."""
    name = _typed(entry, "formatting", str, where) or "alpaca"
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS) or f"Known: {', '.join(FORMATS)}."
        raise DataError(f"unknown formatting {name!r}", where=where, hint=hint)
    ranking = bool(_typed(entry, "ranking", bool, where))
    columns = _columns(name, _typed(entry, "columns", dict, where), ranking, where)
    tags = usual_shape(name).tags
    if given := _typed(entry, "tags", dict, where):
        named = {key: value for key, value in _names(given, Tags, "tags", where).items() if value}
        tags = replace(tags, **named)
    return Shape(name, columns, tags, ranking)


def _columns(name: str, given: dict[str, Any] | None, ranking: bool, where: str) -> Columns:
    if given is not None:
        return replace(NO_COLUMNS, **_names(given, Columns, "columns", where))
    usual = usual_shape(name).columns
    if name not in ("alpaca", "pair", "sharegpt", "openai"):
        return usual
    plain = replace(usual, history=None, system=None, tools=None, kto_tag=None)
    return plain if ranking else replace(plain, chosen=None, rejected=None)


def _names(given: dict[str, Any], model: type, key: str, where: str) -> dict[str, str | None]:
    known = [item.name for item in fields(model)]
    for name, value in given.items():
        if name not in known:
            hint = did_you_mean(name, known) or f"Known: {', '.join(known)}."
            raise DataError(f"{key} has no {name!r}", where=where, hint=hint)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{key}.{name} must be text, it is {value!r}", where=where)
    return given


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A well-known dataset that danlu can name: data from ``assets/datasets``.

    Attributes:
        name: what the user writes.
        title: what its authors call it.
        hub: where it is.
        shape: how its rows are read.
        licence: as its publishers state it.
        language: zh, en, or several.
        rows: about how many; None when nobody says.
        notes: what to know about its rows.
        sample: a few rows of the same shape, written for danlu.
    """

    name: str
    title: str
    hub: HubSource
    shape: Shape
    licence: str
    language: str
    rows: int | None
    notes: str
    sample: tuple[dict[str, Any], ...]

    def source(self) -> Source:
        """Where and how to read it."""
        return Source(self.name, self.hub, shape=self.shape)


@cache
def builtin() -> dict[str, CatalogEntry]:
    """The built-in catalog by name."""
    folder = Path(str(files("danlu") / "assets" / "datasets"))
    entries = [_catalog_entry(path) for path in sorted(folder.glob("*.yaml"))]
    return {entry.name: entry for entry in entries}


def _catalog_entry(path: Path) -> CatalogEntry:
    value = read_yaml(path)
    place = value["source"]
    shape = entry_shape(value, str(path))
    return CatalogEntry(
        name=path.stem,
        title=value["title"],
        hub=HubSource(
            place["hub"],
            revision=place.get("revision"),
            subset=place.get("subset"),
            split=place.get("split"),
            files=tuple(place.get("files", ())),
        ),
        shape=shape,
        licence=value["licence"],
        language=value["language"],
        rows=value.get("rows"),
        notes=" ".join(value.get("notes", "").split()),
        sample=tuple(value["sample"]),
    )
