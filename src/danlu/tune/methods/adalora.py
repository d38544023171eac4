"""AdaLoRA: W + (alpha / r) B diag(e) A; entries of e that matter least are set to zero as training goes on.

B and A are kept near orthogonal by a penalty, so that e ranks directions (Zhang et al. 2023, arXiv:2303.10512).
The schedule of the total rank, and which entries go, are PEFT's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.core.errors import ConfigError, UsageError
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.lora import alpha, whole
from danlu.tune.methods.peft_adapters import load, put_on, targets
from danlu.tune.methods.peft_adapters import save as save_adapter

__all__ = ["after_step", "apply", "begin", "check", "load", "load_state", "penalty", "save", "save_state"]

STATE_FILE = "adalora_allocator.safetensors"
AVERAGES = ("exp_avg_ipt", "exp_avg_unc")


def check(config: TrainConfig, steps: int) -> None:
    """Refuse a schedule without steps in which the rank can fall.

    Raises:
        UsageError: naming the options.
    """
    options = config.adalora
    if options.adalora_init_r <= options.adalora_target_r:
        raise UsageError(
            f"adalora_init_r is {options.adalora_init_r} and adalora_target_r {options.adalora_target_r}: "
            "the rank could not fall",
            hint="Begin with about one and a half times the rank that is wanted at the end.",
        )
    if max(options.adalora_tinit, 1) >= steps - options.adalora_tfinal:  # one step at least shows what matters
        raise UsageError(
            f"this run has {steps} steps, and adalora_tinit {options.adalora_tinit} with adalora_tfinal "
            f"{options.adalora_tfinal} leave none for the rank to fall",
            hint="Lower them, or train longer.",
        )


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Put adapters beside the chosen linear layers, or continue given ones with a new schedule.

    Raises:
        ConfigError: when a target module does not exist, or experts are to be adapted.
    """
    options = config.adalora
    if config.lora.lora_experts:
        raise ConfigError("adalora does not reach experts", where="lora_experts", hint="Use finetuning_type=lora.")

    def settings(base: Any) -> Any:
        from peft import AdaLoraConfig

        return AdaLoraConfig(
            task_type="CAUSAL_LM",
            init_r=options.adalora_init_r,
            lora_alpha=whole(alpha(config.lora, options.adalora_init_r)),
            lora_dropout=config.lora.lora_dropout,
            target_modules=targets(base, config.lora.lora_target, "lora_target"),
            total_step=2**31,  # the real number is known when training begins
        )

    tuned, _ = put_on(model, config, settings)
    chosen = _settings(tuned)
    chosen.target_r, chosen.tinit, chosen.tfinal = (
        options.adalora_target_r,
        options.adalora_tinit,
        options.adalora_tfinal,
    )
    chosen.deltaT, chosen.orth_reg_weight = options.adalora_deltaT, options.adalora_orth_reg_weight
    chosen.beta1, chosen.beta2 = options.adalora_beta1, options.adalora_beta2
    allocator = _allocator(tuned)
    allocator.beta1, allocator.beta2 = chosen.beta1, chosen.beta2
    allocator.target_bgt = chosen.target_r * len(allocator.name_set)
    return tuned


def _settings(tuned: Tuned) -> Any:
    return tuned.adapter.peft_config[tuned.adapter.active_adapter]


def _allocator(tuned: Tuned) -> Any:
    return tuned.adapter.base_model.rankallocator


def begin(tuned: Tuned, steps: int) -> None:
    """Give the schedule the number of steps of the run."""
    _settings(tuned).total_step = steps


def penalty(tuned: Tuned) -> Tensor:
    """λ · mean over all A and B of ‖P Pᵀ - I‖ (Frobenius; P has the ranks as rows), as PEFT computes it."""
    parts = []
    for name, value in tuned.adapter.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            square = value @ value.t() if ".lora_A." in name else value.t() @ value
            parts.append(torch.linalg.matrix_norm(square - torch.eye(len(square), device=square.device)))
    mean: Tensor = torch.stack(parts).mean()
    return _settings(tuned).orth_reg_weight * mean


def after_step(tuned: Tuned, step: int) -> None:
    """Update what is known of every entry's importance and set to zero what the schedule takes away."""
    tuned.adapter.base_model.update_and_allocate(step)


def save(tuned: Tuned, folder: Path) -> None:
    """Write all ranks, those set to zero as zeros: PEFT's way of leaving them out cannot be trained further."""
    settings = _settings(tuned)
    pattern, settings.rank_pattern = settings.rank_pattern, None
    try:
        save_adapter(tuned, folder)
    finally:
        settings.rank_pattern = pattern


def save_state(tuned: Tuned, folder: Path) -> None:
    """Write the running averages of importance and which entries are left."""
    from safetensors.torch import save_file

    allocator = _allocator(tuned)
    state = {f"{kind}:{name}": value for kind in AVERAGES for name, value in getattr(allocator, kind).items()}
    for name, left in (_settings(tuned).rank_pattern or {}).items():
        state[f"rank_pattern:{name}"] = torch.tensor(left, dtype=torch.uint8)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / STATE_FILE)


def load_state(tuned: Tuned, folder: Path) -> None:
    """Read the averages and the entries that are left back."""
    from safetensors.torch import load_file

    allocator, pattern = _allocator(tuned), {}
    for name, value in load_file(folder / STATE_FILE).items():
        kind, _, key = name.partition(":")
        if kind == "rank_pattern":
            pattern[key] = value.bool().tolist()
            continue
        getattr(allocator, kind)[key] = value.to(tuned.model.device)
        allocator.ipt.setdefault(key, torch.zeros_like(value, device=tuned.model.device))
    _settings(tuned).rank_pattern = pattern or None
