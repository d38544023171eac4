"""Open what a training left: which base model, which adapter, which tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.checkpoints import follow, newest
from danlu.core.errors import RunError
from danlu.core.files import expanded, read_json
from danlu.models.adapters import attach_all, read_adapter
from danlu.models.loading import DataType, has_tokenizer, load_model, load_tokenizer
from danlu.models.sources import has_weights
from danlu.models.zoo import packaged_models


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model to use: a base and what was put on it.

    Attributes:
        model: name or folder of the base; the run itself after full or freeze tuning.
        adapters: merged in order, the last one attached.
        tokenizer: where the tokenizer is.
        method: the method of the run, if it is one.
        run: the run directory, None for a plain model.
        stage: what the run learnt.
        base: what full or freeze tuning started from, if ``model`` is the run itself and the run says it.
        options: what was chosen in training, as a model card shows it.
    """

    model: str
    adapters: tuple[str, ...]
    tokenizer: str
    method: str | None = None
    run: Path | None = None
    stage: str | None = None
    base: str | None = None
    options: Mapping[str, str] | None = None

    def load(
        self, *, dtype: DataType = "auto", device: str | None = None, attention: str | None = None
    ) -> tuple[Any, Any]:
        """The model with its adapters, ready to answer, and the tokenizer.

        Raises:
            ModelError: when one of them cannot be loaded or they do not belong together.
        """
        for adapter in self.adapters:
            read_adapter(adapter)
        model = load_model(self.model, dtype=dtype, device=device, attention=attention)
        return attach_all(model, self.adapters).eval(), load_tokenizer(self.tokenizer)


def adapter_chain(adapters: Sequence[str]) -> tuple[str, ...]:
    """Adapters with those that each of them stands on: what was merged into the base before it was trained.

    Folders become absolute, so that the chain can be recorded.
    """
    chain: list[str] = []
    for adapter in adapters:
        folder = follow(expanded(adapter))
        local = folder.is_dir()
        below = [str(item) for item in _manifest(folder).get("merged", ())] if local else []
        for item in (*below, str(folder.resolve()) if local else adapter):
            if item not in chain:
                chain.append(item)
    return tuple(chain)


def plain_model(model: str, adapters: Sequence[str] = ()) -> TrainedModel:
    """A model named on the command line, with adapters; the last adapter's own tokenizer wins.

    A prefix of ChatGLM's scripts lies beside a copy of the base's tokenizer as it was then; the base's own is taken.
    """
    adapters = adapter_chain(adapters)
    last = Path(adapters[-1]) if adapters else None
    own = last is not None and has_tokenizer(last) and not _is_official_prefix(last)
    return TrainedModel(model, tuple(adapters), str(last) if own else model)


def _is_official_prefix(folder: Path) -> bool:
    from danlu.models.chatglm.prefix import has_prefix

    return not (folder / "adapter_config.json").is_file() and has_prefix(folder)


def open_run(path: str | Path) -> TrainedModel:
    """Read a run directory, or one checkpoint of it.

    Raises:
        RunError: when it is not a run, or does not say which base model it needs.
    """
    folder = follow(expanded(path))
    if not folder.is_dir():
        raise RunError("there is no such run directory", where=str(folder))
    manifest = _manifest(folder)
    method, stage = manifest.get("method") or None, manifest.get("stage") or None
    if (folder / "config.json").is_file() and has_weights(folder):
        if not manifest and _is_official_prefix(folder):
            raise _whose_prefix(folder)
        own = has_tokenizer(folder)
        told = manifest.get("base") or manifest.get("base_model")
        before = _base(manifest, folder) if told or not own else None
        return TrainedModel(str(folder), (), str(folder) if own else str(before), method, folder, stage, before)
    if not (folder / "adapter_config.json").is_file():
        raise _nothing_trained(folder)
    base = _base(manifest, folder)
    tokenizer = str(folder) if has_tokenizer(folder) else base
    below = tuple(str(item) for item in manifest.get("merged", ()))
    return TrainedModel(base, (*below, str(folder)), tokenizer, method, folder, stage)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunError("the manifest is not a JSON object", where=str(path))
    return value


def _base(manifest: dict[str, Any], folder: Path) -> str:
    """The base: a packaged name, the recorded folder if it is there, the recorded name, what the adapter says."""
    record = manifest.get("base") or manifest.get("base_model") or {}
    place, name = record.get("path"), record.get("name")
    if name in packaged_models():
        return str(name)
    if place and Path(place).exists():
        return str(place)
    if name:
        return str(name)
    adapter = folder / "adapter_config.json"
    recorded = read_json(adapter).get("base_model_name_or_path") if adapter.is_file() else None
    if recorded:
        return str(recorded)
    raise RunError(
        "the run does not say which base model it needs",
        where=str(folder),
        hint="Use --model BASE --adapter RUN instead of --run.",
    )


def _whose_prefix(folder: Path) -> RunError:
    """A checkpoint of ChatGLM's P-Tuning scripts looks like a model: config.json and pytorch_model.bin."""
    return RunError(
        "the folder holds a prefix of the official P-Tuning scripts and does not say for which model",
        where=str(folder),
        hint="Give the ChatGLM model with --model (model_name_or_path) and this folder with --adapter "
        "(adapter_name_or_path).",
    )


def _nothing_trained(folder: Path) -> RunError:
    checkpoint = newest(folder)
    if checkpoint is not None:
        hint = f"The training did not finish; its newest checkpoint is --run {checkpoint}."
    else:
        hint = "A run holds adapter_config.json or config.json with weights."
    return RunError("there is no trained model in this folder", where=str(folder), hint=hint)
