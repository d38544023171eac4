"""The files that other tools' users look for in a run directory, with their exact keys.

All functions take plain values. Two styles exist where the old tools differ: ``et``
(ChatGLM-Efficient-Tuning) and ``llamafactory``, which danlu's own runs share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from danlu.core.config import Options
from danlu.core.files import write_json, write_text
from danlu.core.results import shown_metric
from danlu.models.card import hub_id
from danlu.tune.config import TrainConfig
from danlu.tune.methods import family
from danlu.tune.options.running import FileStyle

LOG_KEYS = (
    *("current_steps", "total_steps", "loss", "eval_loss", "predict_loss", "reward", "accuracy"),
    *("learning_rate", "epoch", "percentage", "elapsed_time", "remaining_time"),
)
LOG_EXTRAS = ("throughput", "total_tokens", "vram_allocated", "vram_reserved")
ET_MODEL_CARD = "---\nlibrary_name: peft\n---\n## Training procedure\n\n### Framework versions\n\n\n- PEFT {}\n"


def log_values(
    logs: Mapping[str, Any], *, step: int, total_steps: int, elapsed: float, done: int | None = None
) -> dict[str, Any]:
    """One log event in the words of trainer_log.jsonl.

    Args:
        logs: what the trainer logged: any of loss, eval_loss, learning_rate, epoch, reward, …
        step: optimizer steps so far.
        total_steps: optimizer steps in all; 0 outside training.
        elapsed: seconds since training began (in this process).
        done: steps made in this process, for the estimate; all by default.
    """
    made = step if done is None else done
    left = elapsed / made * (total_steps - step) if made > 0 else 0.0
    return {
        **{key: logs.get(key) for key in (*LOG_KEYS, *LOG_EXTRAS)},
        "current_steps": step,
        "total_steps": total_steps,
        "percentage": round(step / total_steps * 100, 2) if total_steps > 0 else 100.0,
        "elapsed_time": str(timedelta(seconds=int(elapsed))),
        "remaining_time": str(timedelta(seconds=int(max(left, 0.0)))),
    }


def log_line(values: Mapping[str, Any], style: FileStyle) -> str:
    """One line of trainer_log.jsonl, with its line end.

    ``et``: the eleven keys of the old tool with nulls. Otherwise ``learning_rate`` is ``lr``, accuracy and
    throughput may follow, and nulls are left out.
    """
    if style == "et":
        line = {key: values.get(key) for key in LOG_KEYS if key != "accuracy"}
    else:
        named = {"learning_rate": "lr"}
        line = {named.get(key, key): values.get(key) for key in (*LOG_KEYS, *LOG_EXTRAS)}
        line = {key: value for key, value in line.items() if value is not None}
    return json.dumps(line) + "\n"


def append_log(folder: Path, values: Mapping[str, Any], style: FileStyle) -> None:
    """Append one line to trainer_log.jsonl with a single write."""
    with (folder / "trainer_log.jsonl").open("ab", buffering=0) as stream:
        stream.write(log_line(values, style).encode())


def finetuning_args(config: TrainConfig) -> dict[str, Any]:
    """The method's options under ChatGLM-Efficient-Tuning's names."""
    method, lora = config.method, config.lora
    modules = ",".join("qkv" if name == "query_key_value" else name for name in config.freeze.freeze_trainable_modules)
    names = {"p_tuning_v2": "p_tuning"}
    return {
        "finetuning_type": names.get(method.finetuning_type, method.finetuning_type),
        "lora_alpha": float(lora.lora_alpha if lora.lora_alpha is not None else 2 * lora.lora_rank),
        "lora_dropout": lora.lora_dropout,
        "lora_rank": lora.lora_rank,
        "lora_target": list(lora.lora_target),
        "name_module_trainable": modules,
        "num_layer_trainable": config.freeze.freeze_trainable_layers,
        "pre_seq_len": config.prefix.pre_seq_len,
        "prefix_projection": config.prefix.prefix_projection,
    }


def write_finetuning_args(folder: Path, config: TrainConfig) -> None:
    """Write finetuning_args.json (254 bytes for the old tool's defaults)."""
    write_json(folder / "finetuning_args.json", finetuning_args(config), indent=2, sort_keys=True)


def training_args(config: TrainConfig) -> dict[str, Any]:
    """The options of a run in one flat mapping, as TrainingArguments are usually shown; without secrets."""
    groups = (config.task, config.output, config.optimizer, config.compute, config.log, config.generate)
    flat: dict[str, Any] = {}
    for group in groups:
        flat |= group.model_dump(mode="json")
    passed = {key: value for key, value in config.trainer.items() if not key.endswith("token")}
    return flat | passed


def write_training_args(folder: Path, config: TrainConfig) -> None:
    """Write training_args.bin, which the old tool's last version filled with JSON text."""
    write_json(folder / "training_args.bin", training_args(config), indent=2, sort_keys=True)


def write_model_card(
    folder: Path,
    config: TrainConfig,
    *,
    base_model: str,
    data: Sequence[str] = (),
    scores: Mapping[str, float] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write README.md: what the model is, from which data and options it came, and how it scored.

    Args:
        folder: the run directory.
        config: the run's options; in style ``et`` the card is the short one of that tool.
        base_model: hub id or folder of the base model.
        data: the sources, one line each.
        scores: metric → number, measured after training.
        versions: package → version.
    """
    found = dict(versions or {})
    if config.output.file_style == "et":
        write_text(folder / "README.md", ET_MODEL_CARD.format(found.get("peft", "0.4.0")))
        return
    title = folder.resolve().name
    parts = [_card_head(title, config, base_model)]
    parts.append("## Data\n\n" + ("\n".join(f"- {line}" for line in data) or "Not recorded."))
    parts.append("## Options\n\n" + _table("option", card_options(config)))
    if scores:
        parts.append(
            "## Scores\n\n" + _table("metric", {key: shown_metric(key, scores[key]) for key in sorted(scores)})
        )
    if found:
        parts.append("## Versions\n\n" + "\n".join(f"- {name} {found[name]}" for name in found))
    parts.append("Every option is in `run.yaml`, the lineage in `manifest.json`.")
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _card_head(title: str, config: TrainConfig, base_model: str) -> str:
    method = config.method.finetuning_type
    adapter = family(method).peft_type is not None and family(method).kind != "bottleneck"
    head = [f"base_model: {json.dumps(hub_id(base_model) or base_model, ensure_ascii=False)}"]
    head += ["library_name: peft" if adapter else "library_name: transformers"]
    head += ["tags:", "- danlu", f"- {method}", f"- {config.task.stage}"]
    front = "\n".join(["---", *head, "---"])
    text = f"{base_model}, tuned with danlu: stage {config.task.stage}, method {method}."
    return f"{front}\n\n# {title}\n\n{text}"


def card_options(config: TrainConfig) -> dict[str, str]:
    """The options that a model card shows: of the optimizer, and those of the run's method."""
    optimizer, compute, method = config.optimizer, config.compute, config.method.finetuning_type
    options: dict[str, Any] = {
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": optimizer.lr_scheduler_type,
        "num_train_epochs": optimizer.num_train_epochs,
        "max_steps": optimizer.max_steps if optimizer.max_steps > 0 else None,
        "per_device_train_batch_size": optimizer.per_device_train_batch_size,
        "gradient_accumulation_steps": optimizer.gradient_accumulation_steps,
        "optim": optimizer.optim,
        "cutoff_len": config.encode.cutoff_len,
        "seed": compute.seed,
        "precision": next((name for name in ("bf16", "fp16", "pure_bf16") if getattr(compute, name)), "fp32"),
    }
    known = {key: value for _, group in config if isinstance(group, Options) for key, value in group}
    if known["lora_alpha"] is None:
        known["lora_alpha"] = float(2 * (known["lora_rank"] if method == "lora" else known["adalora_init_r"]))
    for key in (*family(method).options, "quantization_bit"):
        options[key] = ", ".join(known[key]) if isinstance(known[key], tuple) else known[key]
    return {key: str(value) for key, value in options.items() if value is not None}


def _table(title: str, rows: Mapping[str, str]) -> str:
    return "\n".join([f"| {title} | value |", "|---|---|", *(f"| {key} | {rows[key]} |" for key in rows)])
