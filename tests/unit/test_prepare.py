"""From names to sequences: the cache is found again by content, and by nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_tokenizer import GLM, make_template, make_tokenizer

from danlu.core.errors import DataError, UsageError
from danlu.data.encode import EncodingRules
from danlu.data.prepare import Prepared, Selection, prepare, tokenizer_digest
from danlu.data.schema import row_key


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", 4)


def write(path: Path, count: int) -> Path:
    lines = [json.dumps({"instruction": f"q {n}", "input": "", "output": f"a {n}"}) for n in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def prepared(rows: Path, *, source: str | None = None, rules: EncodingRules | None = None, **options: Any) -> Prepared:
    digest = options.pop("digest", "vocabulary")
    selection = Selection((str(rows),), **options.pop("selection", {}))
    template = make_template(source) if source else make_template()
    options.setdefault("folder", rows.parent / "cache")
    return prepare(selection, template, rules or EncodingRules(), tokenizer_digest=digest, **options)


def test_the_same_again_is_found(rows: Path) -> None:
    first, second = prepared(rows), prepared(rows)
    assert (first.reused, second.reused) == (False, True)
    assert second.store.ids.tolist() == first.store.ids.tolist()
    assert second.sources == first.sources
    assert first.sources[0].rows == 4
    assert not prepared(rows, again=True).reused
    loaded = Selection((str(rows),)).load("sft").rows
    assert first.store.keys.tolist() == [row_key(row) for row in loaded]


@pytest.mark.parametrize(
    "change",
    [
        {"source": GLM},
        {"rules": EncodingRules(cutoff_len=100)},
        {"rules": EncodingRules(mask_history=True)},
        {"digest": "another"},
        {"selection": {"max_samples": 3}},
        {"selection": {"separator": " "}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_is_another_entry(rows: Path, change: dict[str, Any]) -> None:
    prepared(rows)
    assert not prepared(rows, **change).reused


def test_another_content_of_the_file_is_another_entry(rows: Path) -> None:
    prepared(rows)
    write(rows, 5)
    after = prepared(rows)
    assert not after.reused
    assert len(after.store) == 5
    write(rows, 4)
    assert prepared(rows).reused


def test_bad_rows_are_remembered(rows: Path) -> None:
    rows.write_text(rows.read_text() + '{"instruction": "q", "output": 3}\n{broken\n')
    for reused in (False, True):
        found = prepared(rows)
        assert (found.reused, found.bad_rows) == (reused, 2)
        assert any(":5" in text for text in found.bad_examples)


def test_rows_that_are_all_too_long(rows: Path) -> None:
    for _ in range(2):  # also when the empty result is found in the cache
        with pytest.raises(
            DataError, match=r"all 4 rows are longer than cutoff_len=5 .*longest has \d\d.*Raise cutoff"
        ):
            prepared(rows, rules=EncodingRules(cutoff_len=5))


def test_nothing_to_train_on(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="empty"):
        prepared(empty)
    with pytest.raises(UsageError, match="no dataset"):
        prepare(Selection(()), make_template(), EncodingRules(), tokenizer_digest="x", folder=tmp_path / "c")
    with pytest.raises(DataError, match="missing"):
        prepared(tmp_path / "missing.jsonl")


def test_the_digest_of_a_tokenizer() -> None:
    first, second = make_tokenizer(), make_tokenizer(kind="always")
    assert tokenizer_digest(first) == tokenizer_digest(make_tokenizer())
    assert tokenizer_digest(first) != tokenizer_digest(second)
