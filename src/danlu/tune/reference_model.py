"""What the model said before training: log-probabilities of answers, computed once and kept.

Objectives that compare with a reference need of it only one number an answer. It is the model as training begins, with
an adapter that is continued but without a prefix or prompt that is new; so no second model is held in memory, and no
forward pass is made twice.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from danlu.core.console import progress
from danlu.core.files import replacing
from danlu.core.manifest import weights_fingerprint
from danlu.core.workspace import cache_folder
from danlu.data.tokens import TokenStore
from danlu.tune.batches import collate
from danlu.tune.config import TrainConfig
from danlu.tune.learner import Learner
from danlu.tune.methods.lora import initial
from danlu.tune.methods.low_rank_start import CHANGES_BASE
from danlu.tune.objectives.pairs import answers
from danlu.tune.parallel.together import objects_of_all


def reference_key(config: TrainConfig, folder: Path, store: TokenStore) -> str:
    """A hash of what decides the numbers, to the last digit: rows, weights, their precision, how they are computed.

    An adapter that begins at zero changes nothing, but a start that decomposes the weights rounds them.
    """
    compute, model = config.compute, config.model
    start = f"{config.lora!r} {compute.seed}" if initial(config.lora) in CHANGES_BASE else ""
    adapters = [f"{path}:{weights_fingerprint(Path(path).expanduser())}" for path in model.adapter_name_or_path]
    parts = [
        store.folder.name,
        str(weights_fingerprint(folder)),
        *adapters,
        f"{model.dtype} {model.flash_attn} {compute.bf16} {compute.fp16} {compute.pure_bf16}",
        f"{config.quant!r} {config.method!r} {start} {config.optimizer.per_device_train_batch_size}",
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def reference_log_probs(
    learner: Learner,
    store: TokenStore,
    *,
    key: str,
    batch_size: int,
    precision: AbstractContextManager[Any],
    rank: tuple[int, int] = (0, 1),
) -> NDArray[np.float32]:
    """Log-probability of every answer of a store under the model as it is now.

    Args:
        learner: before training.
        store: prompts with two answers each.
        key: from :func:`reference_key`; found again in the cache.
        batch_size: items in one forward pass.
        precision: what training computes in.
        rank: number of this process and how many there are; each computes a share, and all get the whole.

    Returns:
        (items, 2).
    """
    place = cache_folder("reference") / f"{key}.npy"
    found: NDArray[np.float32] | None = np.load(place) if place.exists() else None
    if found is not None and len(found) != len(store):
        found = None
    # Another run may write them between the looks of two processes, and machines have caches of their own.
    if all(objects_of_all(found is not None)) and found is not None:
        return found
    order = np.argsort(-store.lengths, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    own = [(batch, log_probs_of(learner, store, batch, precision)) for batch in _told(batches[rank[0] :: rank[1]])]
    result = np.zeros((len(store), store.width - 1), dtype=np.float32)
    for batch, values in (pair for pairs in objects_of_all(own) for pair in pairs):
        result[batch] = values
    if rank[0] == 0:
        with replacing(place) as temporary, temporary.open("wb") as stream:
            np.save(stream, result)
    return result


def _told(batches: list[NDArray[np.int64]]) -> Any:
    with progress("reference", len(batches)) as line:
        for batch in batches:
            yield batch
            line.advance()


@torch.no_grad()
def log_probs_of(
    learner: Learner, store: TokenStore, members: NDArray[np.int64], precision: AbstractContextManager[Any]
) -> NDArray[np.float32]:
    """Log-probability of every answer of some items under the model as it is now, (members, answers)."""
    was_training = learner.training
    learner.eval()
    device = next(learner.parameters()).device
    batch = {name: value.to(device) for name, value in collate(store, members.tolist()).items()}
    with precision:
        found = answers(learner, batch).log_p
    learner.train(was_training)
    result: NDArray[np.float32] = found.float().cpu().numpy()
    return result
