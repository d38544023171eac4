"""Put adapters on a base model: check that they belong to it, attach them, merge them in order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.checkpoints import follow, newest
from danlu.core.console import warn
from danlu.core.errors import ModelError
from danlu.core.files import expanded
from danlu.models.folders import make_readable
from danlu.models.hub import fetch
from danlu.models.quiet import quiet
from danlu.models.sources import HUB_ID, read_folder_json
from danlu.models.stored_bits import in_whole
from danlu.models.weights import cast_weights

PROMPTS = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
"""Kinds that are trained keys and values, or embeddings from which the model makes them."""

BOTTLENECK = "DANLU_BOTTLENECK"
REFUSED = {"MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT"}
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """What an adapter folder says of itself.

    Attributes:
        path: the folder.
        kind: PEFT's name of the method, for instance ``LORA``.
        base: the model that it was trained on, as it was named then.
        official: whether it is a prefix as the scripts of ChatGLM saved it, without a description.
    """

    path: Path
    kind: str
    base: str | None
    official: bool = False

    @property
    def mergeable(self) -> bool:
        """Whether the adapter can become part of the weights."""
        return self.kind not in PROMPTS and self.kind != BOTTLENECK


def read_adapter(name: str | Path) -> AdapterInfo:
    """Find an adapter (a folder or a hub id) and read its description.

    Raises:
        ModelError: when there is none, its weights are missing, or its kind cannot be used correctly.
    """
    path = follow(expanded(name))
    if not path.exists() and not isinstance(name, Path) and HUB_ID.fullmatch(name) and "/" in name:
        path = fetch(name)
    if not (path / "adapter_config.json").is_file():
        return _official_prefix(path)
    config = read_folder_json(path / "adapter_config.json")
    info = AdapterInfo(path, str(config.get("peft_type")), config.get("base_model_name_or_path"))
    if info.kind in REFUSED:
        raise ModelError(
            f"adapters of the kind {info.kind} are not supported",
            where=str(path),
            hint="LoRA and its relatives, prefixes, prompts and bottleneck adapters are.",
        )
    if not any((path / file).is_file() for file in WEIGHT_FILES):
        raise ModelError(
            "the adapter has no weights", where=str(path), hint=f"Expected {WEIGHT_FILES[0]} in this folder."
        )
    return info


def _official_prefix(path: Path) -> AdapterInfo:
    """What a checkpoint of the official P-Tuning scripts is; it has no description.

    Raises:
        ModelError: when the folder is none either.
    """
    from danlu.models.chatglm.prefix import has_prefix

    if has_prefix(path):
        told = read_folder_json(path / "config.json") if (path / "config.json").is_file() else {}
        return AdapterInfo(path, "PREFIX_TUNING", told.get("_name_or_path") or None, official=True)
    what = "this is not an adapter: there is no adapter_config.json" if path.exists() else "there is no such adapter"
    checkpoint = newest(path)
    hint = f"Its newest checkpoint is {checkpoint}." if checkpoint else "Check the path."
    raise ModelError(what, where=str(path), hint=hint)


def attach(model: Any, adapter: str | Path, *, trainable: bool = False) -> Any:
    """Put one adapter on a model.

    Args:
        model: the base, as :func:`danlu.models.loading.load_model` returns it.
        adapter: a folder or hub id.
        trainable: whether the adapter is to be trained further; the base is frozen either way.

    Returns:
        A ``PeftModel``, a :class:`danlu.models.prefix.PrefixModel` for a prefix or prompt, or for bottleneck adapters
        the model itself, with them in place.

    Raises:
        ModelError: when the adapter belongs to a model of another shape, or is damaged.
    """
    info = read_adapter(adapter)
    _compare_names(info, model)
    if info.kind in PROMPTS:
        return _attach_prefix(model, info, trainable)
    if info.kind == BOTTLENECK:
        return _attach_bottlenecks(model, info, trainable)
    with fitted(info.path, model) as folder:
        attached = _attach_with_peft(model, info, folder, trainable)
    if info.kind == "LN_TUNING" and not trainable:  # a norm in float32 hands float32 to layers of lower precision
        for name, parameter in attached.named_parameters():
            if ".ln_tuning_layers." in name:
                parameter.data = parameter.data.to(model.dtype)
    return attached if trainable else attached.eval()


def _attach_with_peft(model: Any, info: AdapterInfo, folder: Path, trainable: bool) -> Any:
    from peft import PeftModel

    try:
        with quiet():
            attached = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except Exception as error:  # shape, key, pickle and safetensors errors share no base class
        raise _foreign(info, model, next(iter(str(error).strip().splitlines()), "")) from error
    _check_keys(attached, info, model, folder)
    return attached


def fitted(folder: Path, model: Any) -> AbstractContextManager[Path]:
    """The folder from which PEFT reads an adapter for ``model``; one of ChatGLM's first code is translated meanwhile.

    Raises:
        ModelError: when such an adapter cannot be translated, or has another shape.
    """
    from danlu.models.chatglm import lora

    return lora.fitted(folder, model)


def _attach_prefix(model: Any, info: AdapterInfo, trainable: bool) -> Any:
    from danlu.models.prefix import PrefixModel

    prefix = load_prefix(info, model.config).to(model.device)
    model.requires_grad_(False)
    prefix.requires_grad_(trainable)
    attached = PrefixModel(model, prefix)
    return attached.train() if trainable else attached.eval()


def load_prefix(info: AdapterInfo, config: Any, *, dropout: float = 0.0) -> Any:
    """The prefix or prompt of an adapter folder, for a model with ``config``.

    Raises:
        ModelError: when it is damaged or belongs to a model of another shape.
    """
    from danlu.models.prefix import PrefixEncoder
    from danlu.models.soft_prompt import SoftPrompt

    if info.official:
        from danlu.models.chatglm.prefix import import_prefix

        return import_prefix(info.path, config, dropout=dropout)
    kind = PrefixEncoder if info.kind == "PREFIX_TUNING" else SoftPrompt
    return kind.load(info.path, config, dropout=dropout)


def _attach_bottlenecks(model: Any, info: AdapterInfo, trainable: bool) -> Any:
    from danlu.models.bottleneck import Bottlenecks

    model.requires_grad_(False)
    Bottlenecks.load(info.path, model).put_on(model).requires_grad_(trainable)
    return model.train() if trainable else model.eval()


def _foreign(info: AdapterInfo, model: Any, detail: str) -> ModelError:
    return ModelError(
        f"the adapter does not fit {model.name_or_path or 'this model'} ({detail.strip()[:200]})",
        where=str(info.path),
        hint=f"It was trained on {info.base}." if info.base else "Give the base that it was trained on.",
    )


def _compare_names(info: AdapterInfo, model: Any) -> None:
    """Warn where names differ; whether the weights fit is decided by their shapes."""
    ours = str(getattr(model, "name_or_path", "") or "")
    theirs = info.base or ""
    if ours and theirs and Path(ours).name.casefold() != Path(theirs).name.casefold():
        warn(f"the adapter {info.path} was trained on {theirs} and is put on {ours}")


def _check_keys(attached: Any, info: AdapterInfo, model: Any, folder: Path) -> None:
    """PEFT leaves out what it cannot place: refuse an adapter that is not used whole.

    PEFT itself would read the vocabulary's size from the base's folder, which may be of another layout or only on
    the hub; here embeddings belong to an adapter that has them.
    """
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    with quiet():
        saved = set(load_peft_weights(str(folder), device="cpu"))
        placed = set(get_peft_model_state_dict(attached, save_embedding_layers=False))
        if saved - placed:
            placed |= saved & set(get_peft_model_state_dict(attached, save_embedding_layers=True))
    if saved != placed:
        missing, unused = placed - saved, saved - placed
        example = min(missing or unused)
        count = f"{len(missing)} weights are missing" if missing else f"{len(unused)} weights have no place"
        raise _foreign(info, model, f"{count}, for instance {example}")


def save(model: Any, folder: Path) -> None:
    """Write the adapter of a ``PeftModel``, the prefix of a ``PrefixModel``, or a model's bottleneck adapters.

    PEFT would ask the hub whether the base's vocabulary has changed; here only ``additional_target`` decides
    whether embeddings are saved, so nothing is looked up and nothing waits for a network.

    Args:
        model: with one adapter attached.
        folder: made if needed.

    Raises:
        OSError: when the disk is full or the folder cannot be written.
    """
    from danlu.models.bottleneck import bottlenecks_of
    from danlu.models.prefix import PrefixModel

    own = bottlenecks_of(model)
    if isinstance(model, PrefixModel):
        model.prefix.save(folder, base=model.name_or_path)
    elif own is not None:
        own.save(folder, base=model.name_or_path)
    else:
        with quiet():
            model.save_pretrained(str(folder), save_embedding_layers=False)
    make_readable(folder)


def merge(model: Any, adapters: Sequence[str | Path]) -> Any:
    """Make adapters part of the weights, in order, computed in float32 and rounded once at the end.

    Args:
        model: the base; it is changed.
        adapters: folders or hub ids.

    Raises:
        ModelError: when one of them does not fit or cannot be merged: a prefix has no place in the
            weights, a bottleneck is not linear.
    """
    infos = [read_adapter(adapter) for adapter in adapters]
    for info in infos:
        if not info.mergeable:
            raise ModelError(
                f"an adapter of the kind {info.kind} cannot be merged into the weights",
                where=str(info.path),
                hint="Use it as the last adapter; it stays beside the base model.",
            )
    if not infos:
        return model
    import torch

    model = in_whole(model)
    dtype, name = model.dtype, model.name_or_path
    cast_weights(model, torch.float32)
    for info in infos:
        model = merge_attached(attach(model, info.path))
        model.name_or_path = info.base or name  # a second adapter on the same base is no surprise
    model.name_or_path = name
    return cast_weights(model, dtype)


def merge_attached(model: Any) -> Any:
    """The base model with its attached adapter merged, and nothing of PEFT left on it."""
    with quiet():
        merged = model.merge_and_unload(safe_merge=True)
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        if leftover in vars(merged):
            delattr(merged, leftover)
    return merged


def attach_all(model: Any, adapters: Sequence[str | Path], *, trainable: bool = False) -> Any:
    """Merge all adapters but the last and attach the last; the model itself when there are none."""
    if not adapters:
        return model
    *earlier, last = adapters
    return attach(merge(model, earlier), last, trainable=trainable)
