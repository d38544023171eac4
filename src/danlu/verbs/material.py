"""What verbs share: the model's tokenizer and template, the rows of a configuration, the run directory's name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.console import note, warn
from danlu.core.manifest import DataRecord
from danlu.data.encode import EncodingRules
from danlu.data.loading import SourceInfo
from danlu.data.named_templates import adopt, choose_template
from danlu.data.prepare import Prepared, Selection
from danlu.data.templates import Template
from danlu.tune.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Text:
    """How a model reads and writes: its tokenizer, and the template that every verb uses."""

    tokenizer: PreTrainedTokenizerBase
    template: Template


def open_text(tokenizer: Any, config: TrainConfig, stop_ids: Iterable[int] = ()) -> Text:
    """The template of a tokenizer under a configuration; a named one is written into the tokenizer."""
    if config.task.stage == "pt" and not tokenizer.chat_template and not config.encode.template:
        plain, _ = choose_template(tokenizer, "plain")  # text needs no turns; nothing is written into the tokenizer
        return Text(tokenizer, Template(tokenizer, source=plain, stop_ids=stop_ids))
    remark = adopt(tokenizer, config.encode.template)
    if remark:
        note(remark)
    options: dict[str, Any] = (
        {} if config.encode.enable_thinking is None else {"enable_thinking": config.encode.enable_thinking}
    )
    return Text(
        tokenizer,
        Template(tokenizer, stop_ids=stop_ids, default_system=config.encode.default_system, **options),
    )


def generation_stops(folder: Path) -> list[int]:
    """End-of-answer tokens that a model folder's generation_config.json names."""
    import json

    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    given = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    return [number for number in (given if isinstance(given, list) else [given]) if isinstance(number, int)]


def training_rows(config: TrainConfig) -> Selection:
    """The rows to train on."""
    return _selection(config, config.data.dataset)


def evaluation_rows(config: TrainConfig, names: Iterable[str] | None = None) -> Selection:
    """The rows to evaluate on."""
    return _selection(config, tuple(names) if names is not None else config.data.eval_dataset, mixed=False)


def _selection(config: TrainConfig, names: tuple[str, ...], *, mixed: bool = True) -> Selection:
    data = config.data
    return Selection(
        names=names,
        dataset_dir=data.dataset_dir,
        max_samples=data.max_samples,
        on_bad_row=data.on_bad_row,
        separator=data.prompt_separator,
        mix_strategy=data.mix_strategy if mixed else "concat",
        interleave_probs=data.interleave_probs if mixed else (),
        seed=config.compute.seed,
    )


def rules(config: TrainConfig) -> EncodingRules:
    """How rows become sequences."""
    options = config.encode
    return EncodingRules(
        cutoff_len=options.cutoff_len,
        truncation=options.truncation,
        train_on_prompt=options.train_on_prompt,
        mask_history=options.mask_history,
        unstable_template=options.unstable_template,
        max_source_length=options.max_source_length,
        max_target_length=options.max_target_length,
        source_prefix=options.source_prefix,
    )


def tell(prepared: Prepared, what: str) -> None:
    """Say what became of the rows: nothing is lost silently."""
    report = prepared.store.report
    found = "found in the cache" if prepared.reused else "tokenised"
    note(
        f"{what}: {report['sequences']} sequences from {report['rows']} rows, {report['tokens']} tokens, "
        f"{report['supervised']} trained, longest {report['longest']} ({found})"
    )
    if report["divided"]:
        note(
            f"{report['divided']} conversations became a sequence for each answer: the model's chat template writes "
            "an answer otherwise once turns follow"
        )
    for source in prepared.sources:
        for warning in source.warnings:
            warn(f"{source.name}: {warning}")
    losses = {
        "left_out": "rows left out because they are longer than cutoff_len",
        "too_long": "rows longer than cutoff_len, shortened or split",
        "shortened": "rows with a text cut to max_source_length or max_target_length",
        "untrainable": "rows without anything to train",
        "refused": "rows that the chat template refuses",
        "same": "pairs whose two answers are the same: they teach no preference",
    }
    for key, words in losses.items():
        count = report[key] - (report["left_out"] if key == "too_long" else 0)
        if count:
            places = report["examples"].get("too_long" if key == "left_out" else key, [])
            warn(f"{count} {words}, for instance {', '.join(places[:2])}")
    if bool(report["wanted"]) != bool(report["unwanted"]):
        missing = "unwanted" if report["wanted"] else "wanted"
        warn(f"there is no {missing} answer among them: kto then only pushes all answers one way")
    if prepared.bad_rows:
        warn(
            f"{prepared.bad_rows} rows could not be read, for instance {prepared.bad_examples[0]} "
            "(`danlu data check` names them all)"
        )


def data_records(sources: Iterable[SourceInfo]) -> tuple[DataRecord, ...]:
    """Sources as the manifest keeps them."""
    return tuple(DataRecord(name=s.name, path=s.path, sha256=s.sha256, rows=s.rows) for s in sources)


def default_output(config: TrainConfig) -> Path:
    """``runs/<date>-<first dataset>-<method>``."""
    first = Path(config.data.dataset[0]).stem if config.data.dataset else "eval"
    return Path("runs") / f"{date.today().isoformat()}-{first}-{config.method.finetuning_type}"
