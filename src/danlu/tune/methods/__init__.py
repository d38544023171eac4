"""Methods: which weights change. One module each, all with the same functions.

apply(model, config) -> Tuned      prepare the model for training (or to continue an adapter)
save(tuned, folder)                write what was trained, in the field's usual files
load(tuned, folder)                read it back to continue training exactly
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from danlu.core.registry import Registry


@dataclass(slots=True)
class Tuned:
    """A model prepared by a method.

    Attributes:
        model: the causal language model whose forward is trained.
        adapter: the PEFT wrapper around it, if the method uses one.
        prefix: the module that makes trained keys and values, if the method uses one.
        first_trained: number of the lowest layer with trained weights, if everything below it is frozen.
    """

    model: Any
    adapter: Any = None
    prefix: Any = None
    first_trained: int | None = None


METHODS = Registry(
    "method",
    {
        "full": "danlu.tune.methods.full",
        "freeze": "danlu.tune.methods.freeze",
        "lora": "danlu.tune.methods.lora",
        "p_tuning_v2": "danlu.tune.methods.p_tuning_v2",
    },
)
