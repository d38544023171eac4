"""Measuring runs whose stage is not answered by generating: loss and the stage's own numbers on rows of its kind."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.core.console import warn
from danlu.core.errors import DataError, RunError, UsageError
from danlu.core.files import write_text
from danlu.core.results import write_results
from danlu.core.run import RunDirectory
from danlu.data.prepare import Prepared, names_of, prepare, tokenizer_digest
from danlu.data.schema import Preference
from danlu.evaluate.results import prefixed, print_metrics
from danlu.evaluate.statistics import bootstrap_interval, wilson_interval
from danlu.models.runs import TrainedModel
from danlu.tune.config import TrainConfig
from danlu.verbs.known_rows import warn_of_known_rows
from danlu.verbs.material import evaluation_rows, rules, tell, training_rows
from danlu.verbs.opening import REWARD_HINT, Opened, open_model
from danlu.verbs.rewards import reward_model, score_rows, summarise, value_head

if TYPE_CHECKING:
    from danlu.tune.measuring import Measured

BY_LOSS = frozenset({"pt", "rm", "dpo", "ipo", "kto", "orpo", "simpo"})
"""Stages whose runs are measured by loss and their own numbers; the others by generated answers."""

PREDICTIONS = "generated_predictions.jsonl"


def measure_stage(config: TrainConfig, source: TrainedModel, folder: Path, *, split: str) -> dict[str, Any]:
    """Loss and metrics on the rows named for evaluation, else on those the run held out; written and printed.

    Accuracy and margin get a 95 % interval, and ``<split>_rows.jsonl`` keeps the numbers of every pair, for paired
    tests; the old tools' file styles have neither.

    Raises:
        UsageError: when there are no rows.
        RunError: when the model before training is needed and not known.
    """
    reference = _reference_model(config, source)
    opened = open_model(config, source)
    started = time.monotonic()
    prepared, members = rows_of(config, opened)
    tell(prepared, "evaluation")
    if config.data.eval_dataset:
        warn_of_known_rows(prepared.store.keys.tolist(), source, names_of(prepared.sources))
    found = _measured(config, opened, prepared, members, reference)
    values: dict[str, Any] = {"loss": found.loss, **found.metrics}
    if config.output.file_style == "danlu" and found.rows:
        values |= intervals(found.rows)
        write_rows(folder / f"{split}_rows.jsonl", prepared.store.rows[members].tolist(), found.rows)
    if config.task.stage == "pt":
        values["perplexity"] = math.exp(min(values["loss"], 700.0))
    runtime = time.monotonic() - started
    steps = -(-len(members) // config.log.per_device_eval_batch_size)
    named = dict(prefixed(values, split, runtime=runtime, samples=len(members), steps=steps))
    write_results(folder, split, named)
    print_metrics(split, named)
    return named


def rows_of(config: TrainConfig, opened: Opened) -> tuple[Prepared, list[int]]:
    """Tokenised rows and which of them to measure."""
    named = bool(config.data.eval_dataset)
    if not named and not (config.data.val_size > 0 and config.data.dataset):
        raise UsageError(
            "no rows to measure on are named",
            hint="Give dataset=NAME or a file; a run that was trained with val_size knows its own held-out rows.",
        )
    if not named and opened.source.run is not None:
        config = RunDirectory(opened.source.run).read_config(TrainConfig)
    prepared = prepare(
        evaluation_rows(config) if named else training_rows(config),
        opened.text.template,
        rules(config),
        tokenizer_digest=tokenizer_digest(opened.text.tokenizer),
        stage=config.task.stage,
    )
    return prepared, list(range(len(prepared.store))) if named else held_members(config, prepared)


def held_members(config: TrainConfig, prepared: Prepared) -> list[int]:
    """The items of a training set that are held out."""
    from danlu.tune.session import split_members

    _, held = split_members(prepared.store, config.data.val_size, config.compute.seed)
    return [int(member) for member in held]


def _measured(
    config: TrainConfig, opened: Opened, prepared: Prepared, members: Sequence[int], before: TrainedModel | None
) -> Measured:
    from danlu.models.value_head import hidden_width
    from danlu.tune.measuring import learner_of, measure_rows

    size = config.log.per_device_eval_batch_size
    reference = None if before is None else _reference(config, before, prepared, members)
    width = hidden_width(opened.model)
    head = value_head(opened.source, width) if config.task.stage == "rm" else None
    learner = learner_of(opened.model, config, head)
    found: Measured = measure_rows(learner, prepared.store, members, size, reference)
    return found


def intervals(rows: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """95 % intervals of means that have a number for each row: Wilson's of accuracy, a bootstrap of the margin."""
    found: dict[str, float] = {}
    if "accuracy" in rows:
        share = wilson_interval(int(sum(rows["accuracy"])), len(rows["accuracy"]))
        found |= {"accuracy_low": share.low, "accuracy_high": share.high}
    if "margin" in rows:
        mean = bootstrap_interval(rows["margin"])
        found |= {"margin_low": mean.low, "margin_high": mean.high}
    return found


def write_rows(path: Path, numbers: Sequence[int], rows: Mapping[str, Sequence[float]]) -> None:
    """One line for each row, in the order of the dataset: its index and its numbers; accuracy is 0 or 1."""
    lines = (
        json.dumps({"index": number, **dict(zip(rows, values))})
        for number, values in zip(numbers, zip(*rows.values(), strict=True), strict=True)
    )
    write_text(path, "".join(line + "\n" for line in lines))


def _reference_model(config: TrainConfig, source: TrainedModel) -> TrainedModel | None:
    """The model as it was before training, where the stage compares with it."""
    from danlu.tune.objectives import OBJECTIVES, needs

    if "reference" not in needs(OBJECTIVES[config.task.stage]):
        return None
    if source.run is None:
        raise RunError(
            f"stage {config.task.stage} compares a model with what it was before training, and that is not known here",
            hint="Measure a run with --run DIR.",
        )
    manifest = RunDirectory(source.run).read_manifest()
    base = manifest.base
    if base is None:
        raise RunError("the manifest does not name the base model", where=str(source.run))
    name = base.path if Path(base.path).exists() else base.name
    adapters = tuple(dict.fromkeys((*manifest.merged, *manifest.parents)))
    return TrainedModel(name, adapters, source.tokenizer)


def _reference(config: TrainConfig, before: TrainedModel, prepared: Prepared, members: Sequence[int]) -> Any:
    """Log-probabilities of the answers under the model before training; only those of ``members`` are computed."""
    from contextlib import nullcontext

    from danlu.tune.measuring import learner_of
    from danlu.tune.reference_model import log_probs_of

    learner = learner_of(open_model(config, before).model, config)
    found = np.zeros((len(prepared.store), prepared.store.width - 1), dtype=np.float32)
    size = config.log.per_device_eval_batch_size
    for start in range(0, len(members), size):
        chosen = np.asarray(members[start : start + size])
        found[chosen] = log_probs_of(learner, prepared.store, chosen, nullcontext())
    return found


def write_pair_scores(config: TrainConfig, source: TrainedModel, folder: Path) -> dict[str, Any]:
    """What a reward model says of pairs, in the schema of the old tools: generated_predictions.jsonl.

    ChatGLM-Efficient-Tuning names them ``accept`` and ``reject`` and rounds to two digits, LLaMA-Factory ``chosen`` and
    ``rejected``.

    Raises:
        DataError: when there are no pairs.
    """
    started = time.monotonic()
    loaded = evaluation_rows(config).load()
    pairs = [row for row in loaded.rows if isinstance(row, Preference)]
    if not pairs:
        raise DataError(
            "this is a reward model: it compares the two answers of pairs, and there are none among these rows",
            where=names_of(loaded.sources),
            hint=REWARD_HINT,
        )
    if loaded.bad:
        warn(f"{len(loaded.bad)} rows could not be read, for instance {loaded.bad[0]}")
    if len(pairs) < len(loaded.rows):
        warn(f"{len(loaded.rows) - len(pairs)} rows are no pairs and are left out")
    opened = open_model(config, source)
    scored = score_rows(reward_model(opened), pairs)
    old = config.output.file_style == "et"
    names = ("accept", "reject") if old else ("chosen", "rejected")
    lines = [
        json.dumps({name: round(value, 2) if old else value for name, value in zip(names, item.scores)})
        for item in scored
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / PREDICTIONS, "\n".join(lines) + ("" if old else "\n"))
    summary = summarise(scored)
    steps = -(-len(pairs) // config.log.per_device_eval_batch_size)
    values = {"accuracy": summary["accuracy"], "margin": summary["margin"]}
    runtime = time.monotonic() - started
    named = dict(prefixed(values, "predict", runtime=runtime, samples=len(pairs), steps=steps))
    write_results(folder, "predict", named)
    print_metrics("predict", named)
    return named
