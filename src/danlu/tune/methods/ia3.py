"""IA³: outputs of a few layers are multiplied by a trained vector, y = l ⊙ W x (Liu et al. 2022, arXiv:2205.05638).

In a feed-forward layer the input is multiplied instead, y = W (l ⊙ x).
"""

from __future__ import annotations

from typing import Any

from danlu.core.errors import ConfigError
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.peft_adapters import load, put_on, save, targets

__all__ = ["apply", "load", "save"]


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Put vectors on the chosen linear layers, or continue given ones.

    Raises:
        ConfigError: when a layer does not exist, or a feed-forward layer is not among the targets.
    """
    options = config.ia3

    def settings(base: Any) -> Any:
        from peft import IA3Config

        chosen = targets(base, options.ia3_target, "ia3_target")
        inside = targets(base, options.ia3_feedforward, "ia3_feedforward")
        outside = [name for name in inside if name not in chosen]
        if outside:
            raise ConfigError(
                f"{outside[0]} is in ia3_feedforward and not in ia3_target",
                where="ia3_feedforward",
                hint="ia3_feedforward says which of the targets are multiplied at their input.",
            )
        return IA3Config(task_type="CAUSAL_LM", target_modules=chosen, feedforward_modules=inside)

    return put_on(model, config, settings)[0]
