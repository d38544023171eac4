"""`danlu demo`: the whole loop on a real model in a few minutes, on data that danlu brings about itself."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from danlu.core.config import build
from danlu.core.console import out
from danlu.core.events import read_events
from danlu.core.manifest import installed_versions
from danlu.core.run import RunDirectory
from danlu.evaluate.compare import Answer, Comparison, compare, comparison_table
from danlu.evaluate.metrics import Measurement, measure
from danlu.evaluate.report import Report, write_report
from danlu.models.runs import TrainedModel, open_run, plain_model
from danlu.tune.config import TrainConfig
from danlu.verbs.asking import local_asking
from danlu.verbs.evaluate import ask
from danlu.verbs.export import export
from danlu.verbs.material import evaluation_rows, rules
from danlu.verbs.opening import engine_of, open_model
from danlu.verbs.questions import Question, generation_options, questions
from danlu.verbs.train import train

METRICS = ("exact-match", "f1", "rouge-char", "compat-bleu", "chrf")
HEADLINE = "f1"
QUESTION = "Explain the command `danlu data check`."

SETTINGS: dict[str, Any] = {
    "model_name_or_path": "smollm2-135m",
    "finetuning_type": "lora",
    "lora_rank": 16,
    "bf16": True,
    "cutoff_len": 512,
    "num_train_epochs": 5,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "logging_steps": 2,
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "plot_loss": True,
    "overwrite_output_dir": True,
    "max_new_tokens": 64,
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A model's answers to the held-out questions and their scores."""

    answers: Sequence[str]
    scores: Measurement


def demo(output: str | Path) -> Path:
    """Measure, tune, measure again, report, export and ask one question.

    Args:
        output: folder that receives ``tuned`` (the run), ``merged`` (the export) and ``report.html``.

    Returns:
        The report.
    """
    started = time.monotonic()
    folder = Path(output)
    data = Path(str(files("danlu") / "assets" / "demo"))
    run = folder / "tuned"
    places = {
        "dataset": str(data / "train.jsonl"),
        "eval_dataset": str(data / "heldout.jsonl"),
        "output_dir": str(run),
    }
    config = build(TrainConfig, {**SETTINGS, **places}, where="the demo's settings")
    _step(1, "Measure the untuned model on questions that training will not contain")
    before, asked = _measured(config, plain_model(config.model.model_name_or_path))
    _step(2, "Tune it with LoRA on danlu's own words")
    train(config, command=["danlu", "demo"])
    _step(3, "Measure again, on the same questions")
    after, _ = _measured(config, open_run(run))
    answers = [
        Answer(_last_text(question), question.label, one, two)
        for question, one, two in zip(asked, before.answers, after.answers, strict=True)
    ]
    comparison = compare(before.scores, after.scores, answers, shown=10)
    out.print(comparison_table(comparison, f"{len(asked)} held-out questions, before and after"))
    report = folder / "report.html"
    write_report(report, _report(config, comparison, run, time.monotonic() - started), language="en")
    _step(4, "Export the merged model, checked by its logits")
    merged = folder / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    export(run=str(run), output_dir=str(merged))
    _step(5, "Ask the exported model")
    _chat_once(config, merged)
    _next_steps(folder, run, merged, report, time.monotonic() - started)
    return report


def _step(number: int, text: str) -> None:
    out.print(f"\n[accent]{number}[/accent] {text}", soft_wrap=True)


def _measured(config: TrainConfig, source: TrainedModel) -> tuple[Measured, list[Question]]:
    opened = open_model(config, source)
    asked = questions(evaluation_rows(config).load("sft").rows, local_asking(opened).render, rules(config))
    answers = ask(opened, asked, generation_options(config.generate, config.compute.seed))
    return Measured(answers, measure(answers, [question.label for question in asked], METRICS)), asked


def _last_text(question: Question) -> str:
    return question.prompt.messages[-1].content


def _chat_once(config: TrainConfig, merged: Path) -> None:
    from danlu.data.schema import Conversation, Message

    engine = engine_of(open_model(config, plain_model(str(merged))))
    options = generation_options(config.generate, config.compute.seed)
    out.print(f"[quiet]you[/quiet]    {QUESTION}", soft_wrap=True)
    out.print("[quiet]model[/quiet]  ", end="")
    for piece in engine.stream(Conversation((Message("user", QUESTION),)), options):
        out.print(piece, end="", markup=False, soft_wrap=True)
    out.print()


def _report(config: TrainConfig, comparison: Comparison, run: Path, seconds: float) -> Report:
    manifest = RunDirectory(run).read_manifest()
    losses = [(event["step"], event["loss"]) for event in read_events(run / "events.jsonl", "log") if "loss" in event]
    source = manifest.data[0]
    versions = installed_versions(("danlu", "torch", "transformers", "peft"))
    return Report(
        title={"zh": "SmolLM2 学会了丹炉的词", "en": "SmolLM2 learned danlu's words"},
        summary={
            "zh": f"SmolLM2-135M-Instruct 用 LoRA 在 {source.rows} 行中英文问答上训练，测的是没有训练过的问法。",
            "en": f"SmolLM2-135M-Instruct, tuned with LoRA on {source.rows} questions about danlu in Chinese and "
            "English, and asked in words that were not in the training data.",
        },
        comparison=comparison,
        headline=HEADLINE,
        losses=tuple(losses),
        facts={
            "model": f"{config.model.model_name_or_path} ({manifest.base.weights if manifest.base else ''})",
            "method": f"lora, r = {config.lora.lora_rank}, alpha = {2 * config.lora.lora_rank}, all linear layers",
            "data": f"danlu's own words: {source.rows} rows trained, {comparison.n} rows held out",
            "data_hash": f"sha256:{source.sha256}",
            "generation": f"greedy, at most {config.generate.max_new_tokens} new tokens",
            "seed": str(config.compute.seed),
            "versions": " · ".join(f"{name} {version}" for name, version in versions.items()),
            "machine": f"{platform.machine()}, {platform.system()}",
            "duration": f"{seconds / 60:.1f} min",
            "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "run": str(run),
            "command": "danlu demo",
        },
    )


def _next_steps(folder: Path, run: Path, merged: Path, report: Path, seconds: float) -> None:
    out.print(f"\nDone in {seconds / 60:.1f} minutes. Open [accent]{report}[/accent] in a browser.", soft_wrap=True)
    out.print("What to try next:")
    for command, words in (
        (f"danlu chat --model {merged}", "talk to the exported model"),
        (f"danlu eval --run {run} metric_set=standard max_new_tokens=64", "every metric with its interval"),
        ("danlu data check YOUR.jsonl", "see whether your own rows can be trained on"),
        ("danlu train model_name_or_path=smollm2-135m dataset=YOUR.jsonl bf16=true", "tune on them"),
    ):
        out.print(f"  {command}\n      [quiet]{words}[/quiet]", soft_wrap=True, highlight=False)
