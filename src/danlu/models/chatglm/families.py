"""The families that share the ChatGLM layout, and which of them a folder belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from danlu.core.errors import ModelError, did_you_mean
from danlu.models.sources import read_folder_json

Generation: TypeAlias = Literal["v1", "v2"]
ROLE_TOKEN = "<|assistant|>"
TOKENIZER_TEXTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenization_chatglm.py")


@dataclass(frozen=True, slots=True)
class Family:
    """One entry of ``assets/chatglm/families.yaml``, which says what each field means."""

    name: str
    aliases: tuple[str, ...]
    title: str
    generation: Generation
    positions: Literal["none", "divide", "base"]
    names: tuple[str, ...]
    vocabulary: int | None
    roles: bool
    eos: int | list[int]
    pad: int
    source: str


@cache
def families() -> dict[str, Family]:
    """Every family, by name."""
    text = (resources.files("danlu") / "assets" / "chatglm" / "families.yaml").read_text(encoding="utf-8")
    entries = yaml.safe_load(text)["families"]
    made = [
        Family(**{**entry, "aliases": tuple(entry["aliases"]), "names": tuple(entry["names"])}) for entry in entries
    ]
    return {family.name: family for family in made}


def family_names() -> list[str]:
    """Every name that ``family=`` takes: families and their long-context variants."""
    return [name for family in families().values() for name in (family.name, *family.aliases)]


def find_family(name: str) -> Family:
    """The family of a name or of one of its aliases.

    Raises:
        ModelError: when there is no such family.
    """
    for family in families().values():
        if name == family.name or name in family.aliases:
            return family
    known = ", ".join(family_names())
    raise ModelError(
        f"there is no ChatGLM family {name!r}", hint=did_you_mean(name, family_names()) or f"One of {known}."
    )


def generation(config: Mapping[str, Any]) -> Generation | None:
    """Which generation of the ChatGLM layout a ``config.json`` describes; None for any other model.

    ``v1`` is ChatGLM-6B, ``v2`` is what ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B share.
    """
    if config.get("model_type") != "chatglm":
        return None
    if "padded_vocab_size" in config:
        return "v2"
    return "v1" if "inner_hidden_size" in config or "position_encoding_2d" in config else None


def recognise(folder: Path, config: Mapping[str, Any], asked: str | None = None) -> Family | None:
    """The family of a folder of generation v2: the one that is asked for, or the only one that its files allow.

    The vocabulary tells GLM-4; the name that config.json or tokenizer_config.json carries, and the role tokens of
    the tokenizer, tell the others. None when nothing tells, or when two signs disagree.

    Raises:
        ModelError: when the family that is asked for does not exist or is of another generation.
    """
    if asked is not None:
        family = find_family(asked)
        if family.generation != "v2":
            raise ModelError(f"this is not a {family.title}: its config.json is of a later layout", where=str(folder))
        return family
    later = [family for family in families().values() if family.generation == "v2"]
    for family in later:
        if family.vocabulary is not None and config.get("padded_vocab_size") == family.vocabulary:
            return family
    named = _by_name(folder, config, later)
    if any(ROLE_TOKEN in text for text in _texts(folder)):
        with_roles = {family.name for family in later if family.roles and family.vocabulary is None}
        named = named & with_roles if named else with_roles
    return families()[named.pop()] if len(named) == 1 else None


def _by_name(folder: Path, config: Mapping[str, Any], later: list[Family]) -> set[str]:
    path = folder / "tokenizer_config.json"
    tokenizer = read_folder_json(path) if path.is_file() else {}
    given = " ".join(str(value) for value in (config.get("_name_or_path"), tokenizer.get("name_or_path"))).lower()
    return {family.name for family in later if any(word in given for word in family.names)}


def _texts(folder: Path) -> list[str]:
    files = (folder / name for name in TOKENIZER_TEXTS)
    return [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]
