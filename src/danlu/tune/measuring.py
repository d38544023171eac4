"""A model measured on tokenised rows outside of training: its mean loss, and what the objective tells beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from danlu.data.tokens import TokenStore
from danlu.models.abilities import computing_parts, examine
from danlu.models.value_head import ValueHead
from danlu.tune.config import TrainConfig
from danlu.tune.learner import Learner
from danlu.tune.tally import Tally


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    Attributes:
        loss: mean, per trained token or per pair, as the objective counts.
        metrics: name → mean over the rows.
        count: what the loss was divided by.
        rows: name → one number for each row, of those metrics that have one for each.
    """

    loss: float
    metrics: dict[str, float]
    count: int
    rows: dict[str, list[float]]


def learner_of(model: Any, settings: TrainConfig, head: ValueHead | None = None) -> Learner:
    """A model that was opened to answer (plain, with adapters or with a prefix), ready to be measured."""
    inner, prefix = computing_parts(model)
    learner = Learner(inner, examine(inner), prefix, settings=settings)
    if head is not None:
        learner.value_head = head.to(inner.device)
    return learner.eval()


@torch.no_grad()
def measure_rows(
    learner: Learner,
    store: TokenStore,
    members: Sequence[int],
    batch_size: int,
    reference: NDArray[np.float32] | None = None,
) -> Measured:
    """Mean loss of a learner on some items of a store.

    Args:
        learner: from :func:`learner_of`.
        store: tokenised rows.
        members: numbers of the items to measure.
        batch_size: items in one forward pass.
        reference: log-probabilities of every answer of the store before training, where the objective needs them.
    """
    learner.tally = Tally(keep=True)
    device = learner.model.device
    total, count = 0.0, 0
    for start in range(0, len(members), batch_size):
        chosen = list(members[start : start + batch_size])
        batch = learner.objective.build(store, chosen)
        if reference is not None:
            batch["reference"] = torch.from_numpy(reference[chosen])
        total += float(learner(**{name: value.to(device) for name, value in batch.items()}))
        count += learner.objective.count(batch)
    rows = {name: values for name, values in (learner.tally.rows or {}).items() if len(values) == len(members)}
    return Measured(total / count, learner.tally.means(), count, rows)
