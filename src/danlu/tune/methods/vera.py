"""VeRA: W + diag(b) B diag(d) A with A and B random, frozen and shared by all layers (Kopiczko et al. 2024).

Only the vectors d (r) and b (out) are trained, so an adapter is far smaller than LoRA's.
"""

from __future__ import annotations

from typing import Any

from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.peft_adapters import load, put_on, save, targets

__all__ = ["apply", "load", "save"]


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Put the shared matrices and a layer's own vectors beside the chosen linear layers, or continue given ones.

    Raises:
        ConfigError: when a layer does not exist.
    """
    options = config.vera

    def settings(base: Any) -> Any:
        from peft import VeraConfig

        return VeraConfig(
            task_type="CAUSAL_LM",
            r=options.vera_rank,
            target_modules=targets(base, options.vera_target, "vera_target"),
            vera_dropout=options.vera_dropout,
            d_initial=options.vera_d_initial,
            projection_prng_key=options.vera_projection_prng_key,
            save_projection=True,
        )

    return put_on(model, config, settings)[0]
