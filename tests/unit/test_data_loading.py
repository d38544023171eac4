"""Loading and mixing: what training gets, and what it is told."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.errors import ConfigError, DataError, UsageError
from danlu.data.loading import load_dataset, load_rows
from danlu.data.mixing import Strategy, mix, sample
from danlu.data.schema import Document, Example


def put(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def alpaca(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in range(start, start + count)]


def questions(rows: list[Any]) -> list[str]:
    return [row.conversation.messages[0].content for row in rows]


def test_a_bare_file(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", alpaca(3))
    loaded = load_rows(str(path))
    assert questions(loaded.rows) == ["q0", "q1", "q2"]
    assert loaded.bad == []
    info = loaded.sources[0]
    assert (info.name, info.path, info.rows, info.bad) == (str(path), str(path), 3, 0)
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(loaded.rows[2].origin) == f"{path}:3"
    assert load_dataset(str(path)) == loaded.rows


def test_bad_rows_are_values_or_an_error(tmp_path: Path) -> None:
    rows = alpaca(4)
    rows[1]["output"] = ""
    path = put(tmp_path, "x.jsonl", rows)
    loaded = load_rows([str(path)])
    assert questions(loaded.rows) == ["q0", "q2", "q3"]
    assert [str(row) for row in loaded.bad] == [f"{path}:2:output: the answer is empty"]
    assert (loaded.sources[0].rows, loaded.sources[0].bad) == (3, 1)
    with pytest.raises(DataError, match=r"x\.jsonl:2:output: the answer is empty"):
        load_rows([str(path)], on_bad_row="error")


def test_nothing_usable_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", [{"instruction": "q", "output": ""}] * 3)
    with pytest.raises(DataError, match=r"x\.jsonl:1:output: none of its 3 rows can be used"):
        load_rows(str(path))
    (tmp_path / "y.json").write_text("[]")
    with pytest.raises(DataError, match="there is no row in this file"):
        load_rows(str(tmp_path / "y.json"))
    (tmp_path / "z.jsonl").write_text("not json\n" * 80)
    with pytest.raises(DataError, match="none of its 80 rows can be used"):
        load_rows(str(tmp_path / "z.jsonl"))


def test_no_name_at_all() -> None:
    with pytest.raises(UsageError, match="no dataset is named"):
        load_rows(" , ")


def test_max_samples_takes_the_first_of_each_dataset(tmp_path: Path) -> None:
    first, second = put(tmp_path, "a.jsonl", alpaca(100)), put(tmp_path, "b.jsonl", alpaca(100, 500))
    loaded = load_rows(f"{first},{second}", max_samples=2)
    assert questions(loaded.rows) == ["q0", "q1", "q500", "q501"]
    assert len(load_rows(str(first), max_samples=70).rows) == 70
    assert len(load_rows(str(tmp_path / "*.jsonl"), max_samples=130).rows) == 130


def test_a_stage_takes_its_own_kind_of_rows(tmp_path: Path) -> None:
    rows = [*alpaca(2), {"instruction": "q", "input": "", "output": ["good", "bad"]}]
    path = put(tmp_path, "x.jsonl", rows)
    assert [row.message for row in load_rows(str(path), stage="sft").bad] == [
        "stage sft trains on conversations, this row is for pairs of a better and a worse answer"
    ]
    assert len(load_rows(str(path), stage="rm").rows) == 1
    assert len(load_rows(str(path), stage="kto").rows) == 1  # a pair is a wanted and an unwanted answer
    with pytest.raises(DataError, match="trains on plain text"):
        load_rows(str(path), stage="pt")


def test_separator_of_the_old_tool(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", [{"instruction": "q", "input": "x", "output": "a"}])
    assert questions(load_rows(str(path)).rows) == ["q\nx"]
    assert questions(load_rows(str(path), separator="").rows) == ["qx"]


def described(folder: Path, **entry: Any) -> Path:
    entry = {"file_name": "x.jsonl", **entry}
    (folder / "dataset_info.json").write_text(json.dumps({"mine": entry}), encoding="utf-8")
    return folder


def test_a_wrong_checksum_is_a_warning(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", alpaca(2))
    right = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
    assert load_rows("mine", dataset_dir=described(tmp_path, file_sha1=right)).sources[0].warnings == ()
    wrong = "0" * 40
    warning = load_rows("mine", dataset_dir=described(tmp_path, file_sha1=wrong)).sources[0].warnings[0]
    assert f"checksum of {path} differs" in warning
    assert wrong in warning
    assert right in warning


def test_columns_that_the_entry_leaves_out_are_said(tmp_path: Path) -> None:
    put(tmp_path, "x.jsonl", [{**row, "system": "s", "history": [["1", "2"]]} for row in alpaca(2)])
    loaded = load_rows("mine", dataset_dir=described(tmp_path))
    assert questions(loaded.rows) == ["q0", "q1"]
    assert [text.split("'")[1] for text in loaded.sources[0].warnings] == ["history", "system"]
    columns = {"prompt": "instruction", "response": "output", "history": "history", "system": "system"}
    loaded = load_rows("mine", dataset_dir=described(tmp_path, columns=columns))
    assert loaded.sources[0].warnings == ()
    assert questions(loaded.rows) == ["s", "s"]


def test_plain_text_for_pretraining(tmp_path: Path) -> None:
    put(tmp_path, "x.jsonl", [{"text": "words"}])
    loaded = load_rows("mine", dataset_dir=described(tmp_path, columns={"prompt": "text"}), stage="pt")
    assert loaded.rows == [Document("words")]


def test_num_samples_draws_and_repeats(tmp_path: Path) -> None:
    put(tmp_path, "x.jsonl", alpaca(10))
    few = load_rows("mine", dataset_dir=described(tmp_path, num_samples=4))
    assert len(set(questions(few.rows))) == 4
    many = load_rows("mine", dataset_dir=described(tmp_path, num_samples=25))
    assert len(many.rows) == 25
    assert set(questions(many.rows)) == {f"q{i}" for i in range(10)}
    assert "some come several times" in many.sources[0].warnings[-1]
    again = load_rows("mine", dataset_dir=described(tmp_path, num_samples=25))
    assert questions(again.rows) == questions(many.rows)
    other = load_rows("mine", dataset_dir=described(tmp_path, num_samples=25), seed=1)
    assert questions(other.rows) != questions(many.rows)
    assert len(load_rows("mine", dataset_dir=described(tmp_path, num_samples=25), max_samples=3).rows) == 3


def test_a_folder_mixes_kinds_of_files(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", alpaca(1))
    (tmp_path / "b.csv").write_text("question,answer\nwhy,because\n")
    (tmp_path / "c.json").write_text(json.dumps({"conversations": [{"from": "human", "value": "q"}]}))
    loaded = load_rows(str(tmp_path))
    assert questions(loaded.rows) == ["q0", "why"]
    assert [row.field for row in loaded.bad] == ["conversations[0]"]
    assert loaded.sources[0].path == str(tmp_path)
    before = loaded.sources[0].sha256
    (tmp_path / "b.csv").write_text("question,answer\nwhy,so\n")
    assert load_rows(str(tmp_path)).sources[0].sha256 != before


def test_the_garbage_collector_is_left_as_it_was(tmp_path: Path) -> None:
    import gc

    path = put(tmp_path, "x.jsonl", alpaca(1))
    load_rows(str(path))
    assert gc.isenabled()
    with pytest.raises(DataError):
        load_rows(str(tmp_path / "none.json"))
    assert gc.isenabled()


def test_datasets_are_mixed_as_told(tmp_path: Path) -> None:
    first, second = put(tmp_path, "a.jsonl", alpaca(2)), put(tmp_path, "b.jsonl", alpaca(4, 10))
    loaded = load_rows([str(first), str(second)], mix_strategy="interleave_under")
    assert questions(loaded.rows) == ["q0", "q10", "q1"]
    assert [info.rows for info in loaded.sources] == [2, 4]


def test_strategies_in_turn() -> None:
    groups = [["a", "b"], ["1", "2", "3", "4"]]
    assert mix(groups) == ["a", "b", "1", "2", "3", "4"]
    assert mix(groups, "interleave_under") == ["a", "1", "b"]
    assert mix(groups, "interleave_over") == ["a", "1", "b", "2", "a", "3", "b", "4"]
    assert mix(groups, "interleave_once") == ["a", "1", "b", "2", "3", "4"]
    assert mix([[], ["1"]], "interleave_under") == []
    assert mix([[], ["1"]], "interleave_once") == ["1"]
    assert mix([], "interleave_once") == []


def test_weights_are_followed() -> None:
    groups = [["a"] * 5000, ["b"] * 5000]
    share = Counter(mix(groups, "interleave_under", [0.8, 0.2], seed=3))
    assert 3.5 < share["a"] / share["b"] < 4.6


@pytest.mark.parametrize(
    ("strategy", "weights", "message"),
    [
        ("concat", [1.0, 1.0], "not for concat"),
        ("interleave_once", [1.0], "1 weights for 2 datasets"),
        ("interleave_once", [1.0, 0.0], "above 0"),
        ("interleave_once", [1.0, float("nan")], "above 0"),
    ],
)
def test_weights_that_do_not_fit(strategy: Strategy, weights: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mix([["a"], ["b"]], strategy, weights)


GROUPS = st.lists(st.lists(st.integers(), min_size=1, max_size=6), min_size=1, max_size=4)


@given(groups=GROUPS, seed=st.integers(0, 99), weighted=st.booleans())
def test_what_each_strategy_promises(groups: list[list[int]], seed: int, weighted: bool) -> None:
    tagged = [[(index, place) for place in range(len(group))] for index, group in enumerate(groups)]
    weights = [1.0 + index for index in range(len(groups))] if weighted else []
    once = mix(tagged, "interleave_once", weights, seed=seed)
    assert sorted(once) == sorted(row for group in tagged for row in group)
    over = mix(tagged, "interleave_over", weights, seed=seed)
    assert set(over) == set(once)
    under = mix(tagged, "interleave_under", weights, seed=seed)
    assert len(set(under)) == len(under)
    assert any(set(group) <= set(under) for group in tagged)
    for strategy in ("interleave_once", "interleave_over", "interleave_under"):
        assert mix(tagged, strategy, weights, seed=seed) == mix(tagged, strategy, weights, seed=seed)
        for index in range(len(groups)):
            mine = [place for which, place in mix(tagged, strategy, weights, seed=seed) if which == index]
            assert mine == [place % len(groups[index]) for place in range(len(mine))]


@given(count=st.integers(1, 40), size=st.integers(1, 15))
def test_samples_use_every_row_before_any_comes_twice(count: int, size: int) -> None:
    drawn = Counter(sample(range(size), count))
    assert drawn.total() == count
    assert len(drawn) == min(count, size)
    assert sample([], count) == []


def test_rows_are_examples(tmp_path: Path) -> None:
    assert all(isinstance(row, Example) for row in load_dataset(str(put(tmp_path, "x.jsonl", alpaca(2)))))


@pytest.mark.parametrize("text", ["[]", "[[[[]]]]", "[\n\n]"])
def test_a_file_without_rows_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="there is no row in"):
        load_rows(str(tmp_path / "x.json"))


@pytest.mark.parametrize(
    "row",
    [{"instruction": "q", "output": None}, {"messages": [{"role": "user", "content": "q"}]}],
    ids=["alpaca", "openai"],
)
def test_stages_that_answer_themselves_need_no_answer(row: dict[str, object], tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", [row] * 2)
    for stage in ("ppo", "grpo"):
        assert len(load_rows(str(path), stage=stage).rows) == 2
    with pytest.raises(DataError, match="answer.*data check .* --stage sft"):
        load_rows(str(path), stage="sft")
