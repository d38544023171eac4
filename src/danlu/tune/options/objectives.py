"""What is learnt: one group for each family of objectives."""

from __future__ import annotations

from typing import Literal

from danlu.core.config import Options
from danlu.tune.options.fields import option


class PreferenceOptions(Options):
    """Learning from preferences (rm, dpo, ipo, kto, orpo, simpo)."""

    pref_beta: float | None = option(
        None, "how strongly the model is held to the reference; 0.1 by default, 2.0 for simpo", gt=0
    )
    pref_loss: Literal["sigmoid", "hinge"] = option("sigmoid", "dpo: the loss of the margin")
    pref_ftx: float = option(0.0, "weight of the plain likelihood of the better answer, added to the loss", ge=0)
    dpo_label_smoothing: float = option(0.0, "dpo: share of pairs that are taken to be labelled wrongly", ge=0, lt=0.5)
    simpo_gamma: float = option(0.5, "simpo: margin that the better answer must have", ge=0)
    kto_chosen_weight: float = option(1.0, "kto: weight of wanted answers", ge=0)
    kto_rejected_weight: float = option(1.0, "kto: weight of unwanted answers", ge=0)
