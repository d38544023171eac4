"""The loss on held-out rows while a model is trained, and what its objective tells beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from danlu.core.ranks import ranks
from danlu.tune.batches import Sequences, ShuffledBatches
from danlu.tune.parallel.loading import IDLE
from danlu.tune.parallel.together import sum_of_all
from danlu.tune.tally import Tally, of_all

if TYPE_CHECKING:
    from danlu.tune.trainer import DanluTrainer


def losses(trainer: DanluTrainer, evaluations: Mapping[str, Sequences], prefix: str) -> dict[str, float]:
    """Loss and metrics of each evaluation set as ``<prefix>_<name>_…``, and of all together as ``<prefix>_…``."""
    metrics: dict[str, float] = {}
    whole_total = whole_count = 0.0
    whole = Tally()
    for name, data in evaluations.items():
        start = f"{prefix}_{name}_" if name else f"{prefix}_"
        total, count, tally = _of_one(trainer, data)
        metrics |= {f"{start}loss": total / count, **{start + what: mean for what, mean in tally.means().items()}}
        whole_total, whole_count = whole_total + total, whole_count + count
        whole.merge(tally.sums)
    if evaluations:
        metrics[f"{prefix}_loss"] = whole_total / whole_count
        metrics |= {f"{prefix}_{what}": mean for what, mean in whole.means().items()}
    return metrics


@torch.no_grad()
def _of_one(trainer: DanluTrainer, data: Sequences) -> tuple[float, float, Tally]:
    """Summed loss, what it is divided by and what the objective gathered, of all processes; each row once."""
    size, place, inner = trainer.args.per_device_eval_batch_size, ranks(), trainer.learner
    batches = ShuffledBatches(len(data), size, None, rank=place.rank, processes=place.world)
    training = trainer.is_in_train
    learner = (
        trainer.model_wrapped if training else trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)
    )
    was_training, cache, before = learner.training, inner.cache, inner.tally
    learner.eval()
    inner.cache = None  # evaluation rows have numbers of their own
    gathered = Tally()
    total = count = 0.0
    for batch in trainer.loader(data, batches):
        inputs = trainer._prepare_inputs(batch)
        idle = inputs.pop(IDLE, None) is not None
        inner.tally = Tally() if idle else gathered
        loss = float(learner(**inputs))
        if not idle:
            total, count = total + loss, count + trainer.objective.count(inputs)
    learner.train(was_training)
    inner.cache, inner.tally = cache, before
    total, count = sum_of_all((total, count), trainer.args.device)
    return total, count, of_all(gathered)
