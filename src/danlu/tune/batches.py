"""Batches: which sequences go together, in an order that depends only on the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from danlu.core.ranks import ranks
from danlu.data.tokens import TokenStore

Batch = dict[str, Tensor]
Part: TypeAlias = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Token ids of a sequence, and for each whether it is trained."""


class Sequences(Dataset[int]):
    """The numbers of the items to train or evaluate on; the tokens stay on disk until a batch needs them.

    The place ``~n`` stands for the item at ``n`` in a batch that counts nothing; its number is then ``~number``.

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
        return int(self.members[index]) if index >= 0 else ~int(self.members[~index])


class ShuffledBatches:
    """One process's batches of positions in a dataset, shuffled anew in each epoch.

    The batches of all processes together are those that one process would have with their joint size: each is cut
    as evenly as possible, so that every sequence is seen once and all processes have the same number of batches.

    Args:
        size: number of sequences.
        batch_size: sequences in a batch of one process; the last ones may be smaller.
        seed: with the epoch, decides the order; None keeps the order of the dataset.
        groups: sequences that are packed together and counted as one, or None.
        rank: number of this process.
        processes: that share the batches.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int | None,
        groups: Sequence[Sequence[int]] | None = None,
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.units: Sequence[Sequence[int]] = groups if groups is not None else [(place,) for place in range(size)]
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self.rank, self.processes = rank, processes
        self.drop_last = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.units) // (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        """A process that gets nothing of the last batch still takes part: with the place ``~n`` of one of the first."""
        for shares in self.shares():
            yield shares[self.rank] or [~shares[0][0]]

    def shares(self) -> Iterator[list[list[int]]]:
        """For each batch, what every process gets of it."""
        count, joint = len(self.units), self.batch_size * self.processes
        order = np.arange(count)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(count)
        for start in range(0, count, joint):
            parts = np.array_split(order[start : start + joint], self.processes)
            yield [[place for unit in part for place in self.units[unit]] for part in parts]


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
    """This process's batches of a training: positions in ``members``.

    Args:
        store: the sequences.
        members: those that are trained on.
        batch_size: sequences (or packs of them) in a batch.
        seed: decides the order.
        packing: fill packs up to this many tokens, or None for one sequence a unit.
    """
    groups = pack_groups(store.lengths[members], packing) if packing else None
    place = ranks()
    return ShuffledBatches(len(members), batch_size, seed, groups, rank=place.rank, processes=place.world)


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
