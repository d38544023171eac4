"""Batches: every sequence once an epoch, in an order that seed and epoch decide; packs that hold what they may."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.encode import EncodingReport
from danlu.data.templates import Encoded
from danlu.data.tokens import Item, write_store
from danlu.tune.batches import ShuffledBatches, collate, pack_groups, training_batches

pytestmark = pytest.mark.model


@given(size=st.integers(1, 40), batch_size=st.integers(1, 9), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_every_position_once(size: int, batch_size: int, seed: int, epoch: int) -> None:
    batches = ShuffledBatches(size, batch_size, seed)
    batches.set_epoch(epoch)
    found = list(batches)
    assert sorted(place for batch in found for place in batch) == list(range(size))
    assert len(found) == len(batches)
    assert all(len(batch) == batch_size for batch in found[:-1])
    again = ShuffledBatches(size, batch_size, seed)
    list(again)  # what was drawn before does not matter
    again.set_epoch(epoch)
    assert list(again) == found


@given(
    size=st.integers(1, 60),
    batch_size=st.integers(1, 5),
    processes=st.integers(1, 5),
    packs=st.booleans(),
    data=st.data(),
)
def test_processes_share_each_batch(
    size: int, batch_size: int, processes: int, packs: bool, data: st.DataObject
) -> None:
    groups = [[place] for place in range(size)]
    if packs:
        cuts = sorted(data.draw(st.sets(st.integers(1, size))) | {0, size})
        groups = [list(range(start, end)) for start, end in zip(cuts[:-1], cuts[1:])]
    alone = ShuffledBatches(size, batch_size * processes, 3, groups)
    ranks = [ShuffledBatches(size, batch_size, 3, groups, rank=rank, processes=processes) for rank in range(processes)]
    for batches in (alone, *ranks):
        batches.set_epoch(2)
    found = [list(batches) for batches in ranks]
    assert {len(batches) for batches in found} == {len(alone)} == {len(batches) for batches in ranks}
    for joint, *shares in zip(alone, *found):
        real = [[place for place in share if place >= 0] for share in shares]
        assert sorted(place for share in real for place in share) == sorted(joint)
        assert all(real) or all(len(share) == 1 and ~share[0] in joint for share in shares if share[0] < 0)
        units = [sum(group[0] in share for group in groups) for share in real]
        assert max(units) - min(units) <= 1


def test_without_a_seed_the_order_is_that_of_the_rows() -> None:
    assert list(ShuffledBatches(5, 2, None)) == [[0, 1], [2, 3], [4]]
    assert list(ShuffledBatches(5, 2, None, rank=1, processes=2)) == [[2, 3], [~4]]


def test_seed_and_epoch_change_the_order() -> None:
    orders = set()
    for seed in (1, 2):
        for epoch in (0, 1):
            batches = ShuffledBatches(30, 30, seed)
            batches.set_epoch(epoch)
            orders.add(tuple(next(iter(batches))))
    assert len(orders) == 4


@given(lengths=st.lists(st.integers(1, 50), max_size=60), capacity=st.integers(50, 120))
def test_packs(lengths: list[int], capacity: int) -> None:
    groups = pack_groups(np.array(lengths, dtype=np.int64), capacity)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    totals = [sum(lengths[place] for place in group) for group in groups]
    assert all(total <= capacity for total in totals)
    if len(totals) > 1:  # no two groups could have been one
        assert sum(sorted(totals)[:2]) > capacity


def test_collate_lays_sequences_side_by_side(tmp_path: Path) -> None:
    rows = [
        Item(0, (Encoded([11, 12, 13], [True, False, True]),)),
        Item(1, (Encoded([21, 22], [False, True]),)),
        Item(2, (Encoded([31], [False]),)),
    ]
    store = write_store(tmp_path / "store", rows, [1, 2, 3], EncodingReport())
    batch = collate(store, [1, 0])
    assert batch["input_ids"].tolist() == [[21, 22, 11, 12, 13]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert batch["bounds"].tolist() == [0, 2, 5]
    assert batch["at"].tolist() == [0, 3]  # the first token of a sequence has nothing before it to be predicted from
    assert batch["targets"].tolist() == [22, 13]
    assert batch["members"].tolist() == [1, 0]
    assert store[0][1].tolist() == [True, False, True]  # the file is not changed


def test_training_batches_pack_the_members(tmp_path: Path) -> None:
    rows = [Item(n, (Encoded([5] * (n + 1), [True] * (n + 1)),)) for n in range(6)]
    store = write_store(tmp_path / "store", rows, range(6), EncodingReport())
    members = np.array([1, 3, 5])
    packed = training_batches(store, members, 1, 7, packing=6)
    assert sorted(sorted(batch) for batch in packed) == [[0, 1], [2]]  # 2 + 4 tokens, and 6
