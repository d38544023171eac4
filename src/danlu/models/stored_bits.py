"""Checkpoints whose weights are stored in few bits: what reading one takes, and what can be done with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from danlu.core.console import note
from danlu.core.errors import MissingDependency, ModelError
from danlu.models.sources import read_folder_json

INSTEAD = "Use the release whose weights are not quantised."


@dataclass(frozen=True, slots=True)
class StoredBits:
    """One format, as ``assets/quantisations.yaml`` describes it.

    Attributes:
        name: ``quant_method`` of config.json.
        packages: what transformers needs to read it, as the package index names them.
        trains: whether an adapter on such weights can be trained.
        extra: the danlu extra that carries the packages.
        whole: class of transformers that reads the weights as ordinary ones, or None.
    """

    name: str
    packages: tuple[str, ...]
    trains: bool
    extra: str | None = None
    whole: str | None = None


@cache
def formats() -> dict[str, StoredBits]:
    """Every format that is known, by name."""
    text = (files("danlu") / "assets" / "quantisations.yaml").read_text(encoding="utf-8")
    entries = yaml.safe_load(text)["methods"].items()
    return {name: StoredBits(name, **{**entry, "packages": tuple(entry["packages"])}) for name, entry in entries}


def stored_bits(folder: Path) -> StoredBits | None:
    """The format of a model folder's weights; None for ordinary ones.

    Raises:
        ModelError: when the format is not known.
    """
    said = read_folder_json(folder / "config.json").get("quantization_config")
    if not isinstance(said, Mapping):
        return None
    older = "bitsandbytes" if "load_in_4bit" in said or "load_in_8bit" in said else "an unnamed format"
    name = str(said.get("quant_method") or older)
    if name not in formats():
        raise ModelError(
            f"the weights are stored in {name}, which danlu does not know",
            where=str(folder / "config.json"),
            hint=INSTEAD,
        )
    return formats()[name]


def reading(folder: Path, place: Any) -> dict[str, Any]:
    """What ``from_pretrained`` is told to read such weights; empty for ordinary ones.

    Args:
        folder: of the model.
        place: the device.

    Raises:
        MissingDependency: naming the package that is not installed, before any weight is read.
        ModelError: when the format is not known.
    """
    found = stored_bits(folder)
    if found is None:
        return {}
    for package in found.packages:
        try:
            version(package)
        except PackageNotFoundError:
            purpose = f"to read weights stored in {found.name} (or take the release that is not quantised)"
            raise MissingDependency(package, purpose, found.extra) from None
    if found.whole is None:
        return {"device_map": {"": place}}
    import transformers

    note(f"The weights are stored in {found.name}; they are read as ordinary ones, which takes more memory.")
    return {"quantization_config": getattr(transformers, found.whole)(dequantize=True)}


def check_trainable(folder: Path, *, whole: bool) -> None:
    """Refuse a training that such weights do not allow.

    Args:
        folder: of the model.
        whole: whether the weights themselves would change.

    Raises:
        ModelError: with what to do instead.
    """
    found = stored_bits(folder)
    if found is None or found.whole is not None:
        return
    if whole:
        raise ModelError(
            f"weights stored in {found.name} cannot be changed themselves",
            where=str(folder),
            hint=f"Train an adapter on them, for instance finetuning_type=lora. Or: {INSTEAD[0].lower()}{INSTEAD[1:]}",
        )
    if not found.trains:
        raise ModelError(f"no gradient flows through weights stored in {found.name}", where=str(folder), hint=INSTEAD)


def is_in_few_bits(model: Any) -> bool:
    """Whether a loaded model keeps its weights in few bits."""
    return getattr(model, "hf_quantizer", None) is not None


def in_whole(model: Any) -> Any:
    """The model with ordinary weights, into which adapters can be merged; itself if it has them.

    Raises:
        ModelError: when its format cannot be turned back.
    """
    if not is_in_few_bits(model):
        return model
    name, path = str(getattr(model.quantization_method, "value", model.quantization_method)), model.name_or_path
    import torch

    try:
        model = model.dequantize(dtype=torch.float32)
    except NotImplementedError as error:
        raise ModelError(
            f"adapters cannot be merged into weights stored in {name}",
            where=str(path),
            hint="Use base and adapter together with --run, or merge into the release that is not quantised: "
            "danlu export model_name_or_path=THAT adapter_name_or_path=RUN.",
        ) from error
    note(f"The base's weights are stored in {name}; what they stand for is computed, so that adapters can be merged.")
    model.name_or_path = path
    return ordinary(model)


def ordinary(model: Any) -> Any:
    """A dequantised model without what transformers remembers of the format: it would be written back so, or fail."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    vars(model).pop("_weight_conversions", None)
    return model
