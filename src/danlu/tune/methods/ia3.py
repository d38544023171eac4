"""IA³: outputs of a few layers are multiplied by a trained vector, y = l ⊙ W x (Liu et al. 2022, arXiv:2205.05638).

In a feed-forward layer the input is multiplied instead, y = W (l ⊙ x).
"""

from __future__ import annotations

from typing import Any

from danlu.core.errors import ConfigError
from danlu.models.zoo import family_of_type
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.peft_adapters import linear_names, load, put_on, save, targets
from danlu.tune.options.methods import Ia3Options

__all__ = ["apply", "load", "save"]


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Put vectors on the chosen linear layers, or continue given ones.

    Raises:
        ConfigError: when a layer does not exist, or a feed-forward layer is not among the targets.
    """
    options = config.ia3

    def settings(base: Any) -> Any:
        from peft import IA3Config

        wanted = _of_the_family(base, options)
        chosen = targets(base, wanted.ia3_target, "ia3_target")
        inside = targets(base, wanted.ia3_feedforward, "ia3_feedforward")
        outside = [name for name in inside if name not in chosen]
        if outside:
            raise ConfigError(
                f"{outside[0]} is in ia3_feedforward and not in ia3_target",
                where="ia3_feedforward",
                hint="ia3_feedforward says which of the targets are multiplied at their input.",
            )
        return IA3Config(task_type="CAUSAL_LM", target_modules=chosen, feedforward_modules=inside)

    return put_on(model, config, settings)[0]


KEYS_AND_VALUES = ("k_proj", "v_proj", "query_key_value", "qkv_proj", "kv_b_proj")
"""What families call the layers that make keys and values, perhaps together with queries."""


def _of_the_family(model: Any, options: Ia3Options) -> Ia3Options:
    """The options, with the names that the model's family has where the usual ones are meant and it lacks them."""
    usual, family = Ia3Options(), family_of_type(str(model.config.model_type))
    same = (options.ia3_target, options.ia3_feedforward) == (usual.ia3_target, usual.ia3_feedforward)
    if family is None or not same or linear_names(model).keys() >= set(usual.ia3_target):
        return options
    outside = tuple(name for name in family.modules.attention if name in KEYS_AND_VALUES)
    inside = family.modules.mlp[-1:]
    if not outside:
        return options
    return options.model_copy(update={"ia3_target": (*outside, *inside), "ia3_feedforward": inside})
