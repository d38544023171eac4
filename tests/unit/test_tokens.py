"""Tokenised rows on disk: what was written is read, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.errors import RunError
from danlu.data.encode import EncodingReport
from danlu.data.templates import Encoded
from danlu.data.tokens import Item, TokenStore, write_store

SEQUENCES = st.lists(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=6), max_size=6)


@given(sequences=SEQUENCES)
def test_round_trip(sequences: list[list[tuple[int, bool]]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("store") / "inner" / "key"
    rows = [(n * 2, Encoded([i for i, _ in row], [flag for _, flag in row])) for n, row in enumerate(sequences)]
    items = [Item(number, (encoded,)) for number, encoded in rows]
    keys = [2**64 - 1 - n for n in range(2 * len(rows))]
    written = write_store(folder, items, keys, EncodingReport(rows=7))
    for store in (written, TokenStore(folder)):
        assert len(store) == len(rows)
        assert store.rows.tolist() == [number for number, _ in rows]
        assert store.keys.tolist() == keys
        assert store.report["rows"] == 7
        assert store.lengths.tolist() == [len(encoded.ids) for _, encoded in rows]
        for place, (_, encoded) in enumerate(rows):
            ids, trained = store[place]
            assert ids.tolist() == encoded.ids
            assert trained.tolist() == encoded.trained
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def rows():
        yield Item(0, (Encoded([1], [True]),))
        raise ValueError("row 2 is odd")

    with pytest.raises(ValueError, match="odd"):
        write_store(tmp_path / "store", rows(), [1], EncodingReport())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RunError, match=r"No space left.*DANLU_CACHE"):
        write_store(tmp_path / "store", [Item(0, (Encoded([1], [True]),))], [1], EncodingReport())
    assert list(tmp_path.iterdir()) == []


def test_written_again_it_is_replaced(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [Item(0, (Encoded([1], [True]),))], [1], EncodingReport())
    store = write_store(tmp_path / "store", [Item(0, (Encoded([5, 6], [True, True]),))], [1], EncodingReport())
    assert store[0][0].tolist() == [5, 6]
