"""The model zoo: what is known of each family, as data under ``assets/models``. Nothing heavy is imported."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from danlu.core.errors import MissingDependency, UsageError, did_you_mean

Kind = Literal["base", "chat", "reasoning"]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Licence(_Entry):
    """Under which terms weights are given.

    Attributes:
        name: SPDX identifier, or what the publisher calls it.
        url: its text, where it is no SPDX licence.
        restricted: what limits commercial use, in words; None where nothing does.
    """

    name: str
    url: str | None = None
    restricted: str | None = None


def _licence(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


LicenceField = Annotated[Licence, BeforeValidator(_licence)]


class Release(_Entry):
    """One published set of weights.

    Attributes:
        id: on the Hugging Face hub.
        modelscope: on ModelScope, where it is called otherwise there.
        parameters: in billions, as the publisher rounds it.
        context: tokens it was trained for, where they differ from the family's.
        kind: ``base`` continues text, ``chat`` answers, ``reasoning`` thinks first.
        licence: where it differs from the family's.
        template: where it differs from the family's.
    """

    id: str
    modelscope: str | None = None
    parameters: float = Field(gt=0)
    context: int | None = None
    kind: Kind
    licence: LicenceField | None = None
    template: str | None = None


class Modules(_Entry):
    """Names of the linear layers, as ``lora_target`` takes them.

    Attributes:
        attention: of attention, or what stands in its place.
        mlp: of the feed-forward layers; the last one leads back to the hidden size.
        fused: those of them whose weights are read past the layer by a fused kernel: adapters would be ignored.
    """

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    fused: tuple[str, ...] = ()


class NeedsCode(_Entry):
    """Why transformers cannot read a family by itself, and what to use instead."""

    reason: str
    instead: str


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model carried by a Python package, as the zoo describes it.

    Attributes:
        name: what it is called on the command line.
        title: what it is called elsewhere.
        parameters: number of weights.
        context: longest sequence, in tokens.
        languages: ISO 639-1 codes.
        licence: SPDX identifier.
        source: address of the original release.
        package: name on the package index; ``module`` is what it is imported as.
        file: the GGUF file inside the package.
    """

    name: str
    title: str
    parameters: int
    context: int
    languages: tuple[str, ...]
    licence: str
    source: str
    package: str
    module: str
    file: str

    def gguf(self) -> Path:
        """The file, found without running any code of the package.

        Raises:
            MissingDependency: when the package is not installed.
        """
        spec = importlib.util.find_spec(self.module)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder) / self.file
            if path.is_file():
                return path
        raise MissingDependency(f"--no-deps {self.package}", f"for the model {self.name}")


class ModelFamily(_Entry):
    """Models of one publisher with one layout, as ``assets/models/NAME.yaml`` describes them.

    Attributes:
        name: short, as on the command line.
        title: as the publisher writes it.
        publisher: who made it.
        source: address of the releases.
        model_types: what ``config.json`` calls it.
        licence: of the releases that say nothing else.
        context: tokens that the releases were trained for, where they say nothing else.
        template: ``own``, or the named template that fits models which bring none.
        packed: whether sequences can be computed side by side; False: batches are padded.
        modules: names of the linear layers.
        quirks: what to know before training one.
        releases: published weights.
        packaged: weights that come as a Python package.
        tiny: numbers of a configuration small enough for a test, with ``model_type``.
        like: the family that has the same layout, in place of ``tiny``.
        needs_code: set where transformers has no code for it.
    """

    name: str
    title: str
    publisher: str
    source: str
    model_types: tuple[str, ...]
    licence: LicenceField
    context: int | None = None
    template: str
    packed: bool = True
    modules: Modules
    quirks: tuple[str, ...] = ()
    releases: tuple[Release, ...]
    packaged: tuple[PackagedModel, ...] = ()
    tiny: dict[str, Any] | None = None
    like: str | None = None
    needs_code: NeedsCode | None = None

    def licence_of(self, release: Release) -> Licence:
        """The licence of one release."""
        return release.licence or self.licence

    def context_of(self, release: Release) -> int | None:
        """The context of one release, in tokens."""
        return release.context or self.context

    def template_of(self, release: Release) -> str:
        """``own``, or the named template to use with one release."""
        return release.template or self.template


@cache
def families() -> dict[str, ModelFamily]:
    """Every family, by name, in alphabetical order."""
    found = (ModelFamily.model_validate(yaml.load(text, LOADER)) for text in _texts())
    return {family.name: family for family in sorted(found, key=lambda item: item.name)}


@cache
def packaged_models() -> dict[str, PackagedModel]:
    """Weights that come as Python packages, by name; only the files that have some are read."""
    entries = [entry for text in _texts() if "\npackaged:" in text for entry in yaml.load(text, LOADER)["packaged"]]
    return {entry["name"]: PackagedModel(**{**entry, "languages": tuple(entry["languages"])}) for entry in entries}


def _texts() -> list[str]:
    folder = resources.files("danlu") / "assets" / "models"
    files = sorted(folder.iterdir(), key=lambda item: item.name)
    return [file.read_text(encoding="utf-8") for file in files if file.name.endswith(".yaml")]


def find(name: str) -> tuple[ModelFamily, Release | None] | None:
    """The family, and the release if one is meant, that a family name, title or id stands for; None if unknown."""
    wanted = name.casefold()
    for family in families().values():
        if wanted in (family.name.casefold(), family.title.casefold()):
            return family, None
    for family in families().values():
        for release in family.releases:
            ids = (release.id, release.modelscope or release.id, release.id.partition("/")[2])
            if wanted in (one.casefold() for one in ids):
                return family, release
    return None


def family_of_type(model_type: str) -> ModelFamily | None:
    """The first family whose ``config.json`` says ``model_type``, if any is known."""
    return next((family for family in families().values() if model_type in family.model_types), None)


def family_named(name: str) -> ModelFamily:
    """A family by its name.

    Raises:
        UsageError: for an unknown name, with the nearest.
    """
    known = families()
    if name not in known:
        raise UsageError(f"there is no model family named {name!r}", hint=did_you_mean(name, known) or None)
    return known[name]


def modelscope_id(name: str) -> str:
    """What ModelScope calls a model of the Hugging Face hub; the same name where nothing else is known."""
    found = find(name) if "/" in name else None
    release = found[1] if found else None
    return (release.modelscope or release.id) if release else name
