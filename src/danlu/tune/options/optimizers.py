"""Options of single optimizers."""

from __future__ import annotations

from typing import Literal

from danlu.core.config import Options, Words
from danlu.tune.options.fields import Count, option


class GaloreOptions(Options):
    """How optim=galore_adamw projects gradients."""

    galore_target: Words = option(
        ("all",), "modules whose gradients are projected; all = every linear layer but the head"
    )
    galore_rank: Count = option(16, "rank of the projected gradients")
    galore_update_interval: Count = option(200, "optimizer steps between two new projections")
    galore_scale: float = option(2.0, "the update of projected weights is multiplied by this", gt=0)
    galore_proj_type: Literal["std", "reverse_std", "right", "left"] = option(
        "std", "the side that is projected: std = the longer one, reverse_std, right, left"
    )
