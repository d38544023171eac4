"""Which weights change: one group for each family of methods."""

from __future__ import annotations

from typing import Literal

from danlu.core.config import Options, Words
from danlu.tune.options.fields import Count, Share, option

MethodName = Literal["full", "freeze", "lora", "p_tuning_v2"]


class MethodOptions(Options):
    """Which weights change."""

    finetuning_type: MethodName = option("lora", "full, freeze, lora or p_tuning_v2")


class FreezeOptions(Options):
    """Some layers of the model."""

    freeze_trainable_layers: int = option(2, "the last n layers are trained; negative: the first n")
    freeze_trainable_modules: Words = option(("all",), "parts of those layers, for instance mlp, self_attn")
    freeze_extra_modules: Words = option((), "modules outside the layers, for instance lm_head, norm")


class PrefixOptions(Options):
    """Trained keys and values in front of every layer."""

    pre_seq_len: Count = option(64, "length of the trained prefix, in tokens")
    prefix_projection: bool = option(False, "make the prefix with a two-layer network")
    prefix_dropout: Share = option(0.0, "dropout on the prefix while training")


class LoraOptions(Options):
    """Low-rank adapters."""

    lora_rank: Count = option(8, "rank r of the update")
    lora_alpha: float | None = option(None, "scale: the update is multiplied by alpha / r; 2 r by default")
    lora_dropout: Share = option(0.0, "dropout on the adapter's input")
    lora_target: Words = option(("all",), "modules to adapt; all = every linear layer but the head")
    additional_target: Words = option((), "modules trained in full and saved beside the adapter")
    use_rslora: bool = option(False, "scale by alpha / sqrt(r)")
    use_dora: bool = option(False, "learn magnitude and direction apart (DoRA)")
    pissa_init: bool = option(False, "start from the principal singular vectors (PiSSA)")
    pissa_iter: int = option(16, "iterations of the fast SVD for PiSSA; -1 for the exact one")
    loraplus_lr_ratio: float | None = option(None, "learning rate of B over that of A (LoRA+)", gt=0)
