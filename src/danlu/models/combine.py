"""Several LoRA adapters of one base as a single one, a weighted sum of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from danlu.core.errors import UsageError
from danlu.core.files import write_json
from danlu.core.run import MERGED
from danlu.models.adapters import AdapterInfo, attach, fitted, read_adapter, save
from danlu.models.folders import whole_folder
from danlu.models.loading import load_model, load_tokenizer
from danlu.models.quiet import quiet
from danlu.models.runs import TrainedModel, open_run, plain_model
from danlu.models.sources import read_folder_json

Method = Literal["linear", "cat", "svd", "ties", "dare_ties"]
METHODS: tuple[str, ...] = get_args(Method)
PRUNING = ("ties", "dare_ties")
SAME_RANK = ("linear", *PRUNING)
NAME = "default"
"""PEFT writes the adapter of this name into the folder itself, others into folders below."""


def combine(
    adapters: Sequence[str],
    target: Path,
    *,
    weights: Sequence[float] | None = None,
    method: Method = "cat",
    density: float = 0.5,
    rank: int | None = None,
    model: str | None = None,
) -> Path:
    """Write one LoRA adapter that is the weighted sum of several.

    With updates ΔWᵢ = sᵢ Bᵢ Aᵢ and weights wᵢ: ``cat`` is exactly Σ wᵢ ΔWᵢ, with the ranks added up; ``svd`` is its
    best approximation of the given rank; ``linear`` adds up A and B themselves, which is not the sum of the updates;
    ``ties`` and ``dare_ties`` do so too, after keeping a share of each (the largest; or random ones, scaled up) and
    only numbers of the majority's sign (Yadav et al. 2023, arXiv:2306.01708; Yu et al. 2024, arXiv:2311.03099).

    Args:
        adapters: runs, folders or hub ids, at least two.
        target: folder to write; a former merge there is replaced, anything else is refused.
        weights: one for each adapter; equal shares of 1 by default.
        method: how they are added.
        density: share that ``ties`` and ``dare_ties`` keep.
        rank: of the result with ``svd``; the largest of the given ones by default.
        model: the base; what the first adapter says by default.

    Raises:
        UsageError: when they are no LoRA adapters of one base, or do not go with the method.
        ModelError: when one is missing or does not fit the base.
    """
    infos = [read_adapter(adapter) for adapter in adapters]
    shares = list(weights) if weights else [1 / max(len(infos), 1)] * len(infos)
    _check_numbers(infos, shares, method, density)
    opened = [_open(info) for info in infos]
    _check_bases(infos, opened)
    _check_ranks(infos, method)
    source = plain_model(model) if model else opened[0]
    base = load_model(source.model, dtype="float32", device="cpu")
    combined = _combined(base, infos, shares, method, density=density, rank=rank)
    with whole_folder(target, marker=MERGED) as folder:
        save(combined, folder)
        load_tokenizer(source.tokenizer).save_pretrained(folder)
        told = {
            "base": source.model,
            "method": method,
            "adapters": [{"path": str(info.path), "weight": share} for info, share in zip(infos, shares)],
        }
        write_json(folder / MERGED, told | ({"density": density} if method in PRUNING else {}))
    return target


def _open(info: AdapterInfo) -> TrainedModel:
    if (info.path / "manifest.json").is_file():
        return open_run(info.path)
    return plain_model(str(info.base), [str(info.path)])


def _check_numbers(infos: Sequence[AdapterInfo], weights: Sequence[float], method: str, density: float) -> None:
    if len(infos) < 2:
        given = "1 adapter is given" if infos else "0 adapters are given"
        raise UsageError(given, hint="Name two or more, and a folder for the result.")
    if len(weights) != len(infos):
        raise UsageError(
            f"there are {len(weights)} weights for {len(infos)} adapters", where="--weights", hint="Give one to each."
        )
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}", where="--method", hint=f"Known: {', '.join(METHODS)}.")
    if not 0 < density <= 1:
        raise UsageError(f"the density is {density:g}", where="--density", hint="It is a share above 0, at most 1.")
    for info in infos:
        if info.kind != "LORA":
            raise UsageError(
                f"only LoRA adapters can be added up; this one is of the kind {info.kind}", where=str(info.path)
            )


def _check_bases(infos: Sequence[AdapterInfo], opened: Sequence[TrainedModel]) -> None:
    for info, source in zip(infos, opened):
        if len(source.adapters) > 1:
            raise UsageError(
                "the adapter stands on another one that was merged into its base",
                where=str(info.path),
                hint="Export each run and train on, or use adapters of the same plain base.",
            )
        if Path(source.model).name.casefold() != Path(opened[0].model).name.casefold():
            raise UsageError(
                f"the adapters have different bases: {opened[0].model} and {source.model}",
                where=str(info.path),
                hint="Only adapters of one base can be added up.",
            )


def _check_ranks(infos: Sequence[AdapterInfo], method: str) -> None:
    configs = [read_folder_json(info.path / "adapter_config.json") for info in infos]
    for info, config in zip(infos, configs):
        odd = {
            "use_dora": "DoRA's magnitudes",
            "modules_to_save": f"whole modules ({config.get('modules_to_save')})",
            "target_parameters": "adapters on experts",
        }
        what = next((words for key, words in odd.items() if config.get(key)), None)
        if what:
            raise UsageError(
                f"the adapter holds {what}, which are no update that could be added up", where=str(info.path)
            )
    if method not in SAME_RANK:
        return
    for info, config in zip(infos, configs):
        for key, word in (("r", "rank"), ("target_modules", "layers")):
            ours, first = config[key], configs[0][key]
            same = sorted(ours) == sorted(first) if isinstance(ours, list) else ours == first
            if not same:
                raise UsageError(
                    f"{method} needs the same {word} in every adapter: {first} and {ours}",
                    where=str(info.path),
                    hint="Use --method cat (exact) or svd.",
                )


def _combined(
    base: Any, infos: Sequence[AdapterInfo], weights: Sequence[float], method: str, *, density: float, rank: int | None
) -> Any:
    """A PEFT model whose only adapter is the sum."""
    import torch

    name = base.name_or_path
    names = [f"adapter{number}" for number in range(len(infos))]
    model = attach(base, infos[0].path)
    with quiet():
        for info, adapter in zip(infos, names):
            with fitted(info.path, base) as folder:
                model.load_adapter(str(folder), adapter)
        model.set_adapter(names[0])
        model.delete_adapter(NAME)
        extra: dict[str, Any] = {"density": density} if method in PRUNING else {}
        if method == "svd":
            extra["svd_rank"] = rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # dare_ties chooses at random
            model.add_weighted_adapter(names, list(weights), NAME, combination_type=method, **extra)
        model.set_adapter(NAME)
        for adapter in names:
            model.delete_adapter(adapter)
    model.peft_config[NAME].base_model_name_or_path = name
    return model
