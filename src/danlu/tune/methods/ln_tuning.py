"""LN tuning: only the weights of the normalisation layers are trained (Zhao et al. 2023, arXiv:2312.11420)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from danlu.core.errors import ConfigError, did_you_mean
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.peft_adapters import load, put_on, save
from danlu.tune.weights import master_dtype

__all__ = ["apply", "load", "save"]


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Train copies of the chosen normalisation layers, or continue given ones.

    Raises:
        ConfigError: when the model has no such layer.
    """

    def settings(base: Any) -> Any:
        from peft import LNTuningConfig

        return LNTuningConfig(task_type="CAUSAL_LM", target_modules=_targets(base, config.ln.ln_target))

    tuned, _ = put_on(model, config, settings)
    for parameter in tuned.adapter.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(master_dtype(config))
    return tuned


def _targets(model: Any, wanted: tuple[str, ...]) -> list[str]:
    """Names of layers that hold nothing but one vector of weights, and perhaps one of biases."""
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if name and _is_norm(module)}
    for name in wanted:
        if name != "all" and name not in names:
            raise ConfigError(
                f"the model has no normalisation layer named {name!r}",
                where="ln_target",
                hint=did_you_mean(name, names) or f"It has {', '.join(sorted(names))}; all means every one.",
            )
    return sorted(names) if "all" in wanted else list(wanted)


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1 and not list(module.children())
