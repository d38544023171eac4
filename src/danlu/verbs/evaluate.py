"""`danlu eval` and `danlu predict`: answers of a model to rows, written as they come, and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from danlu.core.console import note, progress, warn
from danlu.core.errors import DataError, UsageError
from danlu.core.files import write_json
from danlu.core.ranks import ranks
from danlu.core.results import write_results
from danlu.core.run import RunDirectory, is_run
from danlu.data.prepare import names_of, prepare, tokenizer_digest
from danlu.data.schema import Row, row_key
from danlu.engine.options import EngineOptions
from danlu.engine.protocol import GenerationOptions
from danlu.evaluate.metrics import Measurement, measure
from danlu.evaluate.predictions import FILE_NAME, PredictionFile
from danlu.evaluate.results import prefixed, print_metrics, print_scores
from danlu.models.runs import TrainedModel, open_run, plain_model
from danlu.tune.config import TrainConfig
from danlu.verbs.asking import Asking, asking_of, check_service, engine_options
from danlu.verbs.known_rows import warn_of_known_rows
from danlu.verbs.material import Text, evaluation_rows, generation_stops, open_text, rules, tell, training_rows
from danlu.verbs.opening import Opened, engine_of, named_model, open_model, refuse_reward_model, settings
from danlu.verbs.questions import Question, answer, generation_options, questions
from danlu.verbs.stages import BY_LOSS, held_members, measure_stage, rows_of, write_pair_scores

HERE = EngineOptions()
"""A model in this process."""

STYLES = {"danlu": "danlu", "et": "et", "llamafactory": "lf"}


def evaluate(
    run: str | Path | None = None, *, model: str | None = None, adapter: Sequence[str] = (), **keys: Any
) -> dict[str, float]:
    """Measure a run or a model on rows with known answers, by generating answers.

    Args:
        run: a run directory or one of its checkpoints; its own options are used where ``keys`` say nothing.
        model: without a run, the model.
        adapter: adapters on ``model``.
        keys: options of :class:`TrainConfig`, flat or grouped: ``dataset`` (or ``eval_dataset``), ``max_samples``,
            ``metric_set``, ``max_new_tokens``, ``output_dir``, …; and of :class:`EngineOptions`: with ``api`` the
            model is one behind a URL.

    Returns:
        metric → value, with the prefix ``eval_``.
    """
    engines, rest = engine_options(keys)
    check_service(engines, run, model, adapter)
    config, source, folder = settings(run, model, adapter, rest)
    return _measure(config, source, folder, split="eval", engines=engines)


def predict(
    run: str | Path | None = None, *, model: str | None = None, adapter: Sequence[str] = (), **keys: Any
) -> Path:
    """Write an answer for every row, as it is finished, and measure them; arguments as for :func:`evaluate`.

    Returns:
        The file generated_predictions.jsonl.
    """
    engines, rest = engine_options(keys)
    check_service(engines, run, model, adapter)
    config, source, folder = settings(run, model, adapter, rest)
    _measure(config, source, folder, split="predict", write_rows=True, engines=engines)
    return folder / FILE_NAME


def after_training(config: TrainConfig, folder: Path) -> None:
    """What ``do_eval`` and ``do_predict`` ask for, with the run just trained or the model that is named."""
    named = Path(config.model.model_name_or_path)
    if config.task.do_train:
        source = open_run(folder)
    elif is_run(named):
        source = open_run(named)
    else:
        source = named_model(config, config.model.adapter_name_or_path)
    if config.task.do_eval:
        by_loss = not config.task.predict_with_generate and config.output.file_style != "danlu"
        _measure(config, source, folder, split="eval", by_loss=by_loss)
    if config.task.do_predict:
        _measure(config, source, folder, split="predict", write_rows=True)


def _measure(
    config: TrainConfig,
    source: TrainedModel,
    folder: Path,
    *,
    split: str,
    write_rows: bool = False,
    by_loss: bool = False,
    engines: EngineOptions = HERE,
) -> dict[str, float]:
    if engines.api is not None and (config.task.stage in BY_LOSS or not config.data.eval_dataset):
        raise UsageError("no rows to answer are named", where=engines.api, hint="Give dataset=NAME of stage sft.")
    folder.mkdir(parents=True, exist_ok=True)
    if config.task.stage in BY_LOSS:
        if write_rows and config.task.stage != "rm":
            raise UsageError(
                f"a run of stage {config.task.stage} is measured on rows of its own kind, which need no answers",
                hint="Use `danlu eval`, or add stage=sft and name conversations to have them answered.",
            )
        return (
            write_pair_scores(config, source, folder)
            if write_rows
            else measure_stage(config, source, folder, split=split)
        )
    refuse_reward_model(source)
    rows = _rows(config, source)
    if by_loss:
        opened, started = open_model(config, source), time.monotonic()
        values: dict[str, Any] = {"loss": _loss(config, opened)}
        steps = -(-len(rows) // config.log.per_device_eval_batch_size)
        values = dict(prefixed(values, split, runtime=time.monotonic() - started, samples=len(rows), steps=steps))
    else:
        with asking_of(config, source, engines) as asking:
            started = time.monotonic()
            measured, asked = _answers(config, asking, rows, folder, write_rows=write_rows)
        values = _written(config, measured, asked, folder, split=split, runtime=time.monotonic() - started)
    write_results(folder, split, values)
    if by_loss or config.generate.metric_set == "compat":
        print_metrics(split, values)
    return values


def _written(
    config: TrainConfig, measured: Measurement, asked: int, folder: Path, *, split: str, runtime: float
) -> dict[str, Any]:
    """The results of measured answers; scores are written and shown."""
    steps = -(-asked // config.log.per_device_eval_batch_size)
    if config.output.file_style == "danlu":
        named = ", ".join(config.data.eval_dataset) or "held-out rows of the training data"
        write_json(folder / f"{split}_scores.json", [{**asdict(score), "data": named} for score in measured.scores])
    if config.generate.metric_set == "standard":
        print_scores(measured)
    return dict(prefixed(measured.means(), split, runtime=runtime, samples=asked, steps=steps))


def _rows(config: TrainConfig, source: TrainedModel) -> list[Row]:
    """The rows to measure on: those named, else the ones the run held out."""
    if config.data.eval_dataset:
        loaded = evaluation_rows(config).load("sft")
        if loaded.bad:
            warn(f"{len(loaded.bad)} rows could not be read, for instance {loaded.bad[0]}")
        warn_of_known_rows([row_key(row) for row in loaded.rows], source, names_of(loaded.sources))
        return loaded.rows
    if config.data.val_size > 0 and config.data.dataset:
        return _held_out(config, source.run)[: config.data.max_samples]
    raise UsageError(
        "no rows to measure on are named",
        hint="Give dataset=NAME or a file; a run that was trained with val_size knows its own held-out rows.",
    )


def _held_out(config: TrainConfig, run: Path | None = None) -> list[Row]:
    """The rows that training holds out."""
    from danlu.models.loading import load_tokenizer, model_folder

    config = _as_trained(config, run)
    model = config.model
    folder = model_folder(
        model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir, hub=model.model_hub
    )
    text = open_text(load_tokenizer(folder), config, generation_stops(folder))
    prepared = prepare(
        training_rows(config), text.template, rules(config), tokenizer_digest=tokenizer_digest(text.tokenizer)
    )
    rows = training_rows(config).load("sft").rows
    return [rows[number] for number in sorted({int(prepared.store.rows[i]) for i in held_members(config, prepared)})]


def _as_trained(config: TrainConfig, run: Path | None) -> TrainConfig:
    """The options that decided what a run held out, whatever has been asked for since."""
    return config if run is None else RunDirectory(run).read_config(TrainConfig)


def _loss(config: TrainConfig, opened: Opened) -> float:
    """Mean loss on the rows named for evaluation, else on those the run held out."""
    from danlu.tune.measuring import learner_of, measure_rows

    prepared, members = rows_of(config, opened)
    tell(prepared, "evaluation")
    size = config.log.per_device_eval_batch_size
    loss: float = measure_rows(learner_of(opened.model, config), prepared.store, members, size).loss
    return loss


def _answers(
    config: TrainConfig, asking: Asking, rows: Sequence[Row], folder: Path, *, write_rows: bool
) -> tuple[Measurement, int]:
    """Ask, keep answers as they come, and measure them all.

    The answers of `predict` are its result; those of `eval` are kept in a hidden file until they are measured, so
    that a killed evaluation goes on where it was.
    """
    asked = questions(rows, asking.render, rules(config))
    if not asked:
        raise DataError("none of the rows ends with an answer to compare with")
    style: Any = STYLES[config.output.file_style]
    path = folder / (FILE_NAME if write_rows else ".evaluation.jsonl")
    file = PredictionFile(path, style, len(asked), fingerprint=_fingerprint(config, asking, asked))
    given = {item.index: item.predict for item in file.predictions()}
    if given:
        note(f"{len(given)} of {len(asked)} answers are there already")
    waiting = {number: question for number, question in enumerate(asked) if number not in given}
    cut, endless = 0, 0
    with progress("answers", len(asked)) as line:
        line.advance(len(given))

        def finished(number: int, completion: Any) -> None:
            nonlocal cut, endless
            question = asked[number]
            given[number] = completion.text
            cut += completion.cut_tokens > 0
            endless += completion.finish_reason == "length"
            file.add(number, question.text, completion.text, question.label, key=f"{question.key:016x}")
            line.advance()

        answer(asking.engine, waiting, generation_options(config.generate, config.compute.seed), finished)
    if cut:
        warn(f"{cut} prompts are longer than the model can read: their beginning was left out")
    if endless:
        limit = config.generate.max_new_tokens
        note(f"{endless} of {len(waiting)} answers reached max_new_tokens={limit} and end there")
    measured = measure(
        [given[number] for number in range(len(asked))], [q.label for q in asked], config.generate.metric_set
    )
    if not write_rows:
        file.discard()
    elif not file.finished:
        file.finish(measured.rows() if style == "danlu" else None)
    return measured, len(asked)


def ask(opened: Opened, asked: Sequence[Question], options: GenerationOptions) -> list[str]:
    """A model's answers to all questions, in their order."""
    engine = engine_of(opened)
    given: dict[int, str] = {}
    with progress("answers", len(asked)) as line:

        def finished(number: int, completion: Any) -> None:
            given[number] = completion.text
            line.advance()

        answer(engine, dict(enumerate(asked)), options, finished)
    return [given[number] for number in range(len(asked))]


def _fingerprint(config: TrainConfig, asking: Asking, asked: Sequence[Question]) -> dict[str, str]:
    import hashlib

    keys = hashlib.sha256(" ".join(f"{question.key:x}" for question in asked).encode()).hexdigest()[:16]
    options = generation_options(config.generate, config.compute.seed)
    return {**asking.identity, "rows": keys, "generation": repr(options)}


def generation_measure(config: TrainConfig, text: Text) -> Callable[[Any], Mapping[str, float]]:
    """Metrics of generated answers for a model in training; see :class:`danlu.tune.trainer.DanluTrainer`."""
    rows = evaluation_rows(config).load("sft").rows if config.data.eval_dataset else _held_out(config)
    asked = questions(rows, partial(text.template.render, generation_prompt=True), rules(config))
    options = generation_options(config.generate, config.compute.seed)

    def measured(tuned: Any) -> Mapping[str, float]:
        from danlu.models.prefix import PrefixModel
        from danlu.tune.parallel.together import objects_of_all

        model = PrefixModel(tuned.model, tuned.prefix) if tuned.prefix is not None else tuned.model
        place = ranks()
        mine = asked[place.rank :: place.world]
        answers = ask(Opened(model, text, plain_model("")), mine, options) if mine else []
        predictions = [""] * len(asked)
        for rank, given in enumerate(objects_of_all(answers)):
            predictions[rank :: place.world] = given
        return measure(predictions, [question.label for question in asked], config.generate.metric_set).means()

    return measured
