"""Methods: which weights change. One module each, all with the same functions.

apply(model, config) -> Tuned      prepare the model for training, or continue the last of the given adapters
save(tuned, folder)                write what was trained, in the field's usual files
load(tuned, folder)                read it back to continue training exactly

What is trained are the parameters that ``apply`` leaves with ``requires_grad``. For inference every folder that
``save`` wrote opens through :func:`danlu.models.adapters.attach` (or is a whole model), and is merged by
:func:`danlu.models.adapters.merge` if its kind can be. A module may have these besides; most have none:

check(config, steps)               refuse options that do not go with the number of optimizer steps
begin(tuned, steps)                called once, before the first step, with the number of steps of the whole run
penalty(tuned) -> Tensor           a scalar that is added to the mean loss of each step
after_step(tuned, step)            called after optimizer step ``step`` (from 1), while its gradients are still there
save_state(tuned, folder)          what a resumed run needs and the result does not; into checkpoints only
load_state(tuned, folder)          read that back
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from danlu.core.registry import Registry


@dataclass(slots=True)
class Tuned:
    """A model prepared by a method.

    Attributes:
        model: the causal language model whose forward is trained.
        adapter: the PEFT wrapper around it, if the method uses one.
        prefix: the module that makes trained keys and values, if the method uses one.
        first_trained: number of the lowest layer with trained weights, if everything below it is frozen.
        start: what the method keeps of the state in which training began, for writing its result.
    """

    model: Any
    adapter: Any = None
    prefix: Any = None
    first_trained: int | None = None
    start: Any = None


METHODS = Registry(
    "method",
    {
        name: f"danlu.tune.methods.{name}"
        for name in (
            *("full", "freeze", "lora", "adalora", "vera", "oft", "ia3", "ln_tuning"),
            *("p_tuning_v2", "prefix_tuning", "p_tuning", "prompt_tuning", "adapter"),
        )
    },
)


@dataclass(frozen=True, slots=True)
class Family:
    """What other code needs to know of a method.

    Attributes:
        kind: ``whole`` weights, a ``peft`` adapter, a ``prompt`` (trained keys and values), or a ``bottleneck``.
        peft_type: what ``adapter_config.json`` says, None for whole weights.
        options: the names worth showing on the model card.
    """

    kind: Literal["whole", "peft", "prompt", "bottleneck"]
    peft_type: str | None = None
    options: tuple[str, ...] = ()

    @property
    def mergeable(self) -> bool:
        """Whether the result can become part of the base's weights."""
        return self.kind in ("whole", "peft")


_PREFIX = ("pre_seq_len", "prefix_dropout")
FAMILIES = {
    "full": Family("whole"),
    "freeze": Family("whole", None, ("freeze_trainable_layers", "freeze_trainable_modules")),
    "lora": Family("peft", "LORA", ("lora_rank", "lora_alpha", "lora_dropout", "lora_target")),
    "adalora": Family("peft", "ADALORA", ("adalora_init_r", "adalora_target_r", "lora_alpha", "lora_target")),
    "vera": Family("peft", "VERA", ("vera_rank", "vera_target")),
    "oft": Family("peft", "OFT", ("oft_block_size", "oft_rank", "oft_target")),
    "ia3": Family("peft", "IA3", ("ia3_target", "ia3_feedforward")),
    "ln_tuning": Family("peft", "LN_TUNING", ("ln_target",)),
    "p_tuning_v2": Family("prompt", "PREFIX_TUNING", (*_PREFIX, "prefix_projection")),
    "prefix_tuning": Family("prompt", "PREFIX_TUNING", (*_PREFIX, "prefix_hidden_size")),
    "p_tuning": Family("prompt", "P_TUNING", (*_PREFIX, "encoder_reparameterization_type", "encoder_hidden_size")),
    "prompt_tuning": Family("prompt", "PROMPT_TUNING", (*_PREFIX, "prompt_tuning_init")),
    "adapter": Family(
        "bottleneck", "DANLU_BOTTLENECK", ("adapter_placement", "adapter_length", "adapter_act", "adapter_dropout")
    ),
}


def family(method: str) -> Family:
    """What is known of a method; one of another package is taken for a PEFT adapter.

    Raises:
        UsageError: for an unknown name.
    """
    if method not in FAMILIES:
        METHODS.target(method)
        return Family("peft")
    return FAMILIES[method]


def call(method: Any, hook: str, *arguments: Any) -> Any:
    """Call a hook that a method may have; None where it has none."""
    own = getattr(method, hook, None)
    return own(*arguments) if own is not None else None
