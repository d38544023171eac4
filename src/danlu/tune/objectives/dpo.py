"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from danlu.tune.batches import Batch
from danlu.tune.objectives.pairs import answers, build, count, tell

if TYPE_CHECKING:
    from danlu.tune.learner import Learner

__all__ = ["NEEDS", "build", "count", "loss"]

NEEDS = frozenset({"reference"})
BETA = 0.1


def loss(learner: Learner, batch: Batch) -> Tensor:
    """Σ over pairs of the chosen ``pref_loss`` of β h, plus ``pref_ftx`` times the mean -log p of the better answer.

    With h = (log π(y_w) - log π_ref(y_w)) - (log π(y_l) - log π_ref(y_l)) and label smoothing ε (Mitchell 2023):
    sigmoid: -(1 - ε) log σ(β h) - ε log σ(-β h); hinge: max(0, 1 - β h) (Zhao et al. 2023, SLiC).
    """
    options = learner.settings.preference
    beta = BETA if options.pref_beta is None else options.pref_beta
    found = answers(learner, batch)
    rewards = beta * (found.log_p - batch["reference"])
    h = rewards[:, 0] - rewards[:, 1]
    tell(learner, rewards, found.log_p)
    if options.pref_loss == "hinge":
        losses = F.relu(1 - h)
    else:
        smooth = options.dpo_label_smoothing
        losses = -(1 - smooth) * F.logsigmoid(h) - smooth * F.logsigmoid(-h)
    return (losses - options.pref_ftx * found.mean[:, 0]).sum()
