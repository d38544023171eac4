"""Opening what a command names: a run, or a model with adapters, with the options that belong to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.config import build
from danlu.core.errors import UsageError
from danlu.core.run import MANIFEST, RunDirectory, resolve_run
from danlu.models.runs import TrainedModel, open_run, plain_model
from danlu.tune.config import TrainConfig
from danlu.verbs.material import Text, generation_stops, open_text

if TYPE_CHECKING:
    from danlu.engine.local import LocalEngine

REWARD_HINT = (
    "`danlu score --run DIR dataset=…` scores the answers of any rows, "
    "`danlu eval` and `danlu predict` compare the two answers of pairs."
)
"""What a reward model is for."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A model ready to answer, and how it reads and writes."""

    model: Any
    text: Text
    source: TrainedModel


def settings(
    run: str | Path | None, model: str | None, adapter: Sequence[str], keys: Mapping[str, Any]
) -> tuple[TrainConfig, TrainedModel, Path]:
    """The options of a command: those of the run it names, changed by ``keys``.

    Returns:
        The options, what to open, and the folder that results go to.

    Raises:
        UsageError: unless exactly one of ``run`` and ``model`` is given.
    """
    if (run is None) == (model is None):
        raise UsageError("name either a run or a model", hint="--run DIR, or --model NAME [--adapter DIR].")
    values = dict(keys)
    if "dataset" in values:
        values.setdefault("eval_dataset", values.pop("dataset"))
    directory = resolve_run(Path(run)) if run is not None else None
    before = directory.read_config(TrainConfig).model_dump(exclude_defaults=True) if directory else {}
    if directory and "output_dir" not in values:
        before.get("output", {}).pop("output_dir", None)
    if model is not None:
        values["model_name_or_path"] = str(model)
    config = build(TrainConfig, _flat(before) | values, where="command line")
    source = open_run(directory.path) if directory else named_model(config, adapter)
    place = config.output.output_dir or (str(directory.path) if directory else f"runs/{Path(str(model)).name}-eval")
    return config, source, Path(place)


def named_model(config: TrainConfig, adapters: Sequence[str] = ()) -> TrainedModel:
    """The model that a configuration names, in the revision and from the folder that it names."""
    from danlu.models.loading import model_folder
    from danlu.models.sources import resolve_model

    options = config.model
    name = options.model_name_or_path
    asked = options.cache_dir is not None or options.model_revision != "main" or options.model_hub != "auto"
    if asked and resolve_model(name).kind == "hub":
        name = str(
            model_folder(name, revision=options.model_revision, cache_dir=options.cache_dir, hub=options.model_hub)
        )
    return plain_model(name, tuple(adapters))


def _flat(grouped: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in grouped.items():
        flat |= value if isinstance(value, dict) and key != "trainer" else {key: value}
    return flat


def open_model(config: TrainConfig, source: TrainedModel, *, device: str | None = None) -> Opened:
    """Load a model with its adapters and open its template."""
    from danlu.models.loading import model_folder
    from danlu.models.memory import keep_freed_memory

    keep_freed_memory()
    dtype = "bfloat16" if config.model.dtype == "auto" and config.compute.bf16 else config.model.dtype
    model, tokenizer = source.load(dtype=dtype, device=device)
    stops = generation_stops(model_folder(source.model))
    return Opened(model, open_text(tokenizer, config, stops), source)


def refuse_reward_model(source: TrainedModel) -> None:
    """Refuse to let a reward model answer: its weights were trained for a number, and what it wrote would be nonsense.

    Raises:
        UsageError: with the commands that it is for.
    """
    folder = source.run or Path(source.adapters[-1] if source.adapters else source.model)
    if not (folder / MANIFEST).is_file() or RunDirectory(folder).read_manifest().stage != "rm":
        return
    raise UsageError(
        "this is a reward model: it gives answers a number and does not write any",
        where=str(folder),
        hint=REWARD_HINT,
    )


def engine_of(opened: Opened) -> LocalEngine:
    """The engine that answers with an opened model."""
    from danlu.engine.local import LocalEngine

    return LocalEngine(opened.model, opened.text.tokenizer, opened.text.template)
