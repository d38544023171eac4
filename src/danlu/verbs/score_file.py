"""`danlu score FILE`: metrics of predictions that are in a file, whichever tool wrote them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.errors import UsageError
from danlu.core.files import expanded, replacing, write_json
from danlu.evaluate.metrics import METRIC_SETS, METRICS, Measurement, measure
from danlu.evaluate.metrics.catalogue import cards
from danlu.evaluate.metrics.choosing import choose
from danlu.evaluate.statistics import standard_error
from danlu.evaluate.tables import Table, read_table

if TYPE_CHECKING:
    from danlu.evaluate.metrics.perplexity import TokenScorer


def score_file(
    file: str | Path,
    metrics: str | Iterable[str] = "standard",
    *,
    predict_column: str = "",
    reference_column: str = "",
    output: str | Path | None = None,
    rows: str | Path | None = None,
    run: str | Path | None = None,
    model: str | None = None,
    adapter: Sequence[str] = (),
    **options: Any,
) -> Measurement:
    """Measure the predictions in a file.

    Args:
        file: JSON lines, JSON, csv, tsv or parquet with one prediction a row.
        metrics: names of sets, metrics or scores, as a list or with commas; `danlu metrics list` shows them.
        predict_column: the column of the answers; ``predict`` and other usual names are found.
        reference_column: the column of the references; ``label`` and other usual names are found.
        output: a JSON file for the scores.
        rows: a JSON lines file for the rows with the scores of each.
        run: for metrics that ask a model, such as perplexity: a run or one of its checkpoints.
        model: the same without a run.
        adapter: adapters on ``model``.
        options: options of the metrics, such as ``encoder`` or ``pattern``; and ``seed``, of the intervals.

    Raises:
        DataError: when the file cannot be read.
        UsageError: for unknown metrics or options, or when references are needed and missing.
    """
    metrics = metrics if isinstance(metrics, str) else tuple(metrics)
    asking = [choice.name for choice in choose(metrics, METRICS, METRIC_SETS)[0] if _asks_a_model(choice.name)]
    if not asking and (run is not None or model is not None):
        raise UsageError(
            "none of these metrics asks a model",
            hint="Leave --run and --model out, or add `--metrics perplexity`. Reward models score rows: dataset=….",
        )
    if asking and run is None and model is None:
        raise UsageError(f"{asking[0]} asks a model, and none is named", hint="--run DIR, or --model NAME.")
    seed = int(options.pop("seed", 42))
    table = read_table(expanded(file), predict_column=predict_column, reference_column=reference_column)
    if asking:
        options["scorer"] = token_scorer(run, model, adapter)
    measured = measure(table.predictions, table.references, metrics, seed=seed, options=options, fields=table.fields)
    if output:
        write_json(expanded(output), summary(measured, str(file)))
    if rows:
        _write_rows(expanded(rows), table, measured)
    return measured


def _asks_a_model(name: str) -> bool:
    card = cards().get(name)  # a metric of another package has none
    return card is not None and "model" in card.needs


def token_scorer(run: str | Path | None, model: str | None, adapter: Sequence[str] = ()) -> TokenScorer:
    """A run or a model, opened to say how likely it finds each token of a text."""
    from danlu.engine.local import LocalEngine
    from danlu.evaluate.metrics.perplexity import EngineScorer
    from danlu.verbs.opening import open_model, refuse_reward_model, settings

    config, source, _ = settings(run, model, adapter, {})
    refuse_reward_model(source)
    opened = open_model(config, source)
    # one row at a time: all its tokens are scored, and their probabilities over the vocabulary are in memory together
    engine = LocalEngine(opened.model, opened.text.tokenizer, opened.text.template, batch_size=1)
    return EngineScorer(engine, Path(str(run or model)).name)


def summary(measured: Measurement, name: str) -> list[dict[str, Any]]:
    """Every score with interval, n and protocol, as danlu eval keeps them; means and shares with standard error."""
    found = []
    for score, column in zip(measured.scores, measured.columns, strict=True):
        row: dict[str, Any] = {**asdict(score), "data": name}
        if column.kind in ("mean", "share") and score.n > 1:
            row["stderr"] = standard_error(column.rows)
        found.append(row)
    return found


def _write_rows(path: Path, table: Table, measured: Measurement) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        for row, scores in zip(table.rows, measured.rows(), strict=True):
            stream.write(json.dumps({**row, **scores}, ensure_ascii=False) + "\n")
