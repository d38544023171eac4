"""Batches: which sequences go together, in an order that depends only on the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from danlu.data.tokens import TokenStore

Batch = dict[str, Tensor]
Part: TypeAlias = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Token ids of a sequence, and for each whether it is trained."""


class Sequences(Dataset[int]):
    """The numbers of the items to train or evaluate on; the tokens stay on disk until a batch needs them.

    Args:
        store: the items.
        members: those to use.
        columns: further numbers of every item of the store, (n, …) each; a batch holds them under the same names.
    """

    def __init__(
        self, store: TokenStore, members: NDArray[np.int64], columns: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        self.store, self.members, self.columns = store, members, dict(columns or {})

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> int:
        return int(self.members[index])


class ShuffledBatches:
    """Batches of positions in a dataset, shuffled anew in each epoch.

    Args:
        size: number of sequences.
        batch_size: sequences in a batch; the last one may be smaller.
        seed: with the epoch, decides the order.
        groups: sequences that are packed together and counted as one, or None.
    """

    def __init__(self, size: int, batch_size: int, seed: int, groups: Sequence[Sequence[int]] | None = None) -> None:
        self.units: Sequence[Sequence[int]] = groups if groups is not None else [(place,) for place in range(size)]
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self.drop_last = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.units) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.units))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            yield [place for unit in chosen for place in self.units[unit]]


def pack_groups(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Put sequences into groups of at most ``capacity`` tokens: best fit, longest first.

    Returns:
        Groups of positions in ``lengths``.
    """
    room: list[int] = []
    groups: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    for place in np.argsort(-lengths, kind="stable"):
        length = int(lengths[place])
        fitting = min((left for left in by_room if left >= length and by_room[left]), default=None)
        if fitting is None:
            groups.append([int(place)])
            room.append(capacity - length)
            by_room.setdefault(room[-1], []).append(len(groups) - 1)
            continue
        group = by_room[fitting].pop()
        if not by_room[fitting]:
            del by_room[fitting]
        groups[group].append(int(place))
        room[group] -= length
        by_room.setdefault(room[group], []).append(group)
    return groups


def training_batches(
    store: TokenStore, members: NDArray[np.int64], batch_size: int, seed: int, packing: int | None = None
) -> ShuffledBatches:
    """The batches of a training: positions in ``members``.

    Args:
        store: the sequences.
        members: those that are trained on.
        batch_size: sequences (or packs of them) in a batch.
        seed: decides the order.
        packing: fill packs up to this many tokens, or None for one sequence a unit.
    """
    groups = pack_groups(store.lengths[members], packing) if packing else None
    return ShuffledBatches(len(members), batch_size, seed, groups)


def lay_out(items: Sequence[Sequence[Part]]) -> Batch:
    """Lay items side by side: sequences by themselves, or prompts followed by the answers that continue them.

    Args:
        items: the sequences of each item as (ids, trained); all items have equally many. Where there are several,
            the first is the prompt and each other one continues it.

    Returns:
        ``input_ids`` (1, T); ``position_ids`` (1, T) counting from 0 in each sequence, behind its prompt in an
        answer; ``bounds`` (s + 1) of the s sequences; ``at`` (m): places whose next token is trained; ``targets``
        (m): those tokens. With several parts also ``parents`` (s): the sequence that another one continues, or -1;
        ``owners`` (m): the number of the answer that a trained token belongs to; ``ends`` (a): the place of the
        last token of each of the a answers.
    """
    parts = [part for item in items for part in item]
    width = len(items[0])
    lengths = np.array([len(ids) for ids, _ in parts])
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.concatenate([ids for ids, _ in parts]).astype(np.int64)
    trained = np.concatenate([mask for _, mask in parts])
    number = np.arange(len(parts))
    head = number - number % width  # the first sequence of the same item
    continues = head != number
    offset = np.where(continues, lengths[head], 0)
    positions = np.arange(len(ids)) - np.repeat(bounds[:-1] - offset, lengths)
    trained[bounds[:-1][~continues]] = False
    targets_at = np.flatnonzero(trained)
    owner = np.repeat(number, lengths)[targets_at]
    first = targets_at == bounds[owner]  # the first token of an answer follows the last one of its prompt
    at = np.where(first, bounds[head[owner] + 1] - 1, targets_at - 1)
    batch = {
        "input_ids": torch.from_numpy(ids).unsqueeze(0),
        "position_ids": torch.from_numpy(positions).unsqueeze(0),
        "bounds": torch.from_numpy(bounds),
        "at": torch.from_numpy(at),
        "targets": torch.from_numpy(ids[targets_at]),
    }
    if width > 1:
        answer = np.cumsum(continues) - 1
        batch["parents"] = torch.from_numpy(np.where(continues, head, -1))
        batch["owners"] = torch.from_numpy(answer[owner])
        batch["ends"] = torch.from_numpy(bounds[1:][continues] - 1)
    return batch


def collate(store: TokenStore, members: Sequence[int]) -> Batch:
    """Items of a store laid out by :func:`lay_out`, with their numbers ``members`` (n) and ``values`` (n)."""
    batch = lay_out([store.parts(member) for member in members])
    batch["members"] = torch.tensor(members)
    batch["values"] = torch.from_numpy(store.values[list(members)])
    return batch
