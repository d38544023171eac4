"""From danlu's options to transformers' TrainingArguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.core.console import note
from danlu.core.errors import ConfigError, did_you_mean
from danlu.models.quiet import quiet
from danlu.tune.config import TrainConfig
from danlu.tune.optimizers import OWN, STAND_IN
from danlu.tune.parallel.configs import deepspeed_settings


def training_arguments(config: TrainConfig, output: Path, *, total_steps: int, checkpointing: bool) -> Any:
    """Build the arguments of transformers' Trainer.

    Args:
        config: the run's options.
        output: the run directory.
        total_steps: optimizer steps of the whole run, for ratios.
        checkpointing: whether activations are recomputed.

    Raises:
        ConfigError: when ``trainer`` names something that TrainingArguments does not have, or a value is refused.
    """
    from dataclasses import fields

    from transformers import TrainingArguments

    values = _values(config, total_steps)
    values |= {"output_dir": str(output), "gradient_checkpointing": checkpointing}
    values["deepspeed"] = deepspeed_settings(config.parallel)
    if checkpointing:
        values["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    known = {field.name for field in fields(TrainingArguments)}
    for name, value in config.trainer.items():
        if name not in known:
            raise ConfigError(
                f"transformers' TrainingArguments has no argument {name!r}",
                where=f"trainer.{name}",
                hint=did_you_mean(name, known),
            )
        values[name] = value
        if name.endswith("checkpointing_kwargs") and dict(value or {}).get("offload") and not _accelerated():
            raise ConfigError(
                "there is no GPU whose memory activations could leave",
                where=f"trainer.{name}",
                hint="Leave offload out; gradient_checkpointing=true alone saves memory here.",
            )
    try:
        with quiet():
            made = TrainingArguments(**values)
            count = made.n_gpu
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"transformers refuses the training arguments: {error}") from error
    if count > 1:
        note(f"one of {count} GPUs is used; nproc={count} uses all")
        made._n_gpu = 1  # else transformers would copy the model to all of them at each step
    return made


def _values(config: TrainConfig, total_steps: int) -> dict[str, Any]:
    optimizer, compute, log, output = config.optimizer, config.compute, config.log, config.output
    early = log.early_stopping_steps is not None
    metric = log.metric_for_best_model or ("loss" if log.load_best_model_at_end or early else None)
    return {
        "num_train_epochs": optimizer.num_train_epochs,
        "max_steps": optimizer.max_steps,
        "per_device_train_batch_size": optimizer.per_device_train_batch_size,
        "per_device_eval_batch_size": log.per_device_eval_batch_size,
        "gradient_accumulation_steps": optimizer.gradient_accumulation_steps,
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": optimizer.lr_scheduler_type,
        "lr_scheduler_kwargs": dict(optimizer.lr_scheduler_kwargs),
        "warmup_steps": warmup_steps(config, total_steps),
        "optim": STAND_IN if optimizer.optim in OWN else optimizer.optim,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm,
        "bf16": compute.bf16,
        "fp16": compute.fp16,
        "seed": compute.seed,
        "dataloader_num_workers": compute.dataloader_num_workers,
        "neftune_noise_alpha": compute.neftune_noise_alpha,
        "ddp_timeout": config.parallel.ddp_timeout,
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        "save_strategy": output.save_strategy,
        "save_steps": _steps(output.save_steps),
        "save_total_limit": output.save_total_limit,
        "save_only_model": output.save_only_model,
        "logging_strategy": log.logging_strategy,
        "logging_steps": _steps(log.logging_steps),
        "logging_first_step": log.logging_first_step,
        "logging_nan_inf_filter": False,
        "report_to": list(log.report_to) or "none",
        "run_name": log.run_name,
        "eval_strategy": log.eval_strategy,
        "eval_steps": None if log.eval_steps is None else _steps(log.eval_steps),
        "load_best_model_at_end": log.load_best_model_at_end,
        "metric_for_best_model": metric,
        "greater_is_better": _greater_is_better(metric, log.greater_is_better),
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "use_cpu": not _accelerated(),
    }


def _accelerated() -> bool:
    import torch

    return bool(torch.cuda.is_available() or torch.backends.mps.is_available())


def warmup_steps(config: TrainConfig, total_steps: int) -> int:
    """Steps of rising learning rate: given as a count, a share below 1, or ``warmup_ratio``."""
    given = config.optimizer.warmup_steps
    if given >= 1:
        return int(given)
    share = given or config.optimizer.warmup_ratio
    return -int(-share * total_steps // 1)


def _steps(value: float) -> int | float:
    return value if value < 1 else int(value)


def _greater_is_better(metric: str | None, given: bool | None) -> bool | None:
    if given is not None or metric is None:
        return given
    return not metric.endswith("loss")
