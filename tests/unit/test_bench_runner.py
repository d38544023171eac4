from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import DataError, UsageError
from danlu.data.schema import Conversation
from danlu.engine.mock import MockEngine, constant, echo, oracle
from danlu.engine.protocol import Scored, ScoreRequest
from danlu.evaluate.benchmarks.results import Results, read_results
from danlu.evaluate.benchmarks.runner import waiting_questions
from danlu.verbs.bench import bench, prepare, run_task

HEADER = "id,question,A,B,C,D,answer"
CHOICES = "甲,乙,丙,丁"


def table(letters: str, *, explained: bool = False) -> str:
    rows = [f"{place},题{place}？,{CHOICES},{letter}" for place, letter in enumerate(letters)]
    if explained:
        return "\n".join([f"{HEADER},explanation", *(f"{row},1. 因为。" for row in rows)]) + "\n"
    return "\n".join([HEADER, *rows]) + "\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "ceval"
    for split, (logic, law) in {"val": ("ABCD", "AA"), "dev": ("ABCDA", "BBBBB")}.items():
        (root / split).mkdir(parents=True)
        explained = split == "dev"
        (root / split / f"logic_{split}.csv").write_text(table(logic, explained=explained), encoding="utf-8")
        (root / split / f"law_{split}.csv").write_text(table(law, explained=explained), encoding="utf-8")
    (root / "test").mkdir()
    (root / "test" / "logic_test.csv").write_text("id,question,A,B,C,D\n7,题？,甲,乙,丙,丁\n", encoding="utf-8")
    return root


def run(data: Path, engine: Any, tmp_path: Path, **options: Any) -> Results:
    options = {"subjects": ("logic", "law")} | options
    return bench("ceval", engine=engine, data=data, output=tmp_path / "out", **options)


def value(results: Results, scope: str, name: str, average: str) -> float:
    (found,) = [n.value for n in results.numbers if (n.scope, n.name, n.average) == (scope, name, average)]
    return found


def test_a_constant_letter_gives_known_numbers(data: Path, tmp_path: Path) -> None:
    results = run(data, constant("A"), tmp_path)
    assert value(results, "subject", "logic", "micro") == 0.25
    assert value(results, "all", "all", "micro") == pytest.approx(3 / 6)
    assert value(results, "all", "all", "macro") == pytest.approx((0.25 + 1) / 2)
    assert results.headline is not None
    assert (results.headline.average, results.headline.n) == ("macro", 6)
    document = read_results(tmp_path / "out")
    assert document == results.document
    assert {score["protocol"] for score in document["scores"]} == {"ceval/official"}
    assert all(len(score["digest"]) == 12 and score["shots"] == 5 for score in document["scores"])
    assert set(document["data"]["files"]) == {f"{s}/{n}_{s}.csv" for s in ("dev", "val") for n in ("logic", "law")}
    assert document["diagnostics"]["mass"] == pytest.approx(1)
    assert document["diagnostics"]["chance"] == 0.25


@pytest.mark.parametrize("protocol", ["official", "official-chat", "official-cot", "chatglm2", "lm-eval"])
def test_an_oracle_is_always_right(data: Path, tmp_path: Path, protocol: str) -> None:
    task = prepare("ceval", data=data, subjects=("logic",), protocol=protocol)
    answers = {question.key: question.item.answer for question in waiting_questions(task)}
    if protocol == "official-cot":
        answers = {key: f"想一想。\n所以答案是{letter}。" for key, letter in answers.items()}
    results = run_task(task, oracle(answers), {}, tmp_path / "out")
    assert results.headline is not None
    assert results.headline.value == 1
    assert results.document["diagnostics"].get("unparsed", 0) == 0


def test_a_mode_in_two_stages_asks_twice(data: Path, tmp_path: Path) -> None:
    engine = echo()
    results = run(data, engine, tmp_path, protocol="chatglm2", subjects=("logic",))
    assert len(engine.asked) == 8
    assert engine.asked[:4] == engine.asked[4:]
    assert all(row["reply"].endswith("答：") and "log_probs" in row for row in results.rows)
    assert not any("partial" in row for row in results.rows)


def test_replies_without_an_answer_are_counted(data: Path, tmp_path: Path) -> None:
    results = run(data, constant("不知道"), tmp_path, protocol="official-chat")
    assert results.document["diagnostics"]["unparsed"] == 1
    assert "ties" not in results.document["diagnostics"]
    assert results.headline is not None
    assert results.headline.value == 0


def test_equal_choices_are_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(data, constant("?"), tmp_path)
    assert results.document["diagnostics"]["ties"] == 6
    assert {row["predicted"] for row in results.rows} == {"A"}
    assert "6 of 6 questions have two likeliest choices that are equal" in capsys.readouterr().err


class Stopping(MockEngine):
    """Breaks off after so many answers."""

    def __init__(self, after: int) -> None:
        super().__init__(lambda key, prompt: "A")
        self.after = after

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        for number, scored in enumerate(super().score(requests)):
            if number == self.after:
                raise KeyboardInterrupt
            yield scored


def test_it_goes_on_where_it_was_stopped(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(data, constant("A"), tmp_path / "whole")
    task = prepare("ceval", data=data, subjects=("logic", "law"))
    with pytest.raises(KeyboardInterrupt):
        run_task(task, Stopping(4), {"engine": "MockEngine"}, tmp_path / "out")
    file = tmp_path / "out" / "samples.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    file.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # a kill in the middle of a line
    engine = constant("A")
    again = run_task(task, engine, {"engine": "MockEngine"}, tmp_path / "out")
    assert len(engine.asked) == 3
    assert list(again.rows) == list(whole.rows)
    assert again.document["scores"] == whole.document["scores"]
    told = capsys.readouterr().err
    assert "1 lines that were cut off" in told
    assert "3 of 6 answers are kept" in told
    engine = constant("A")
    run_task(task, engine, {"engine": "MockEngine"}, tmp_path / "out")
    assert engine.asked == []


def test_another_model_or_protocol_starts_over(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = prepare("ceval", data=data, subjects=("logic",))
    run_task(task, constant("A"), {"model": "one"}, tmp_path / "out")
    engine = constant("B")
    run_task(task, engine, {"model": "two"}, tmp_path / "out")
    assert len(engine.asked) == 4
    assert "4 answers of another model, protocol" in capsys.readouterr().err
    assert len((tmp_path / "out" / "samples.previous.jsonl").read_text().splitlines()) == 4
    keys = {question.key for question in waiting_questions(task)}
    other = prepare("ceval", data=data, subjects=("logic",), shots=4)
    assert keys.isdisjoint(question.key for question in waiting_questions(other))


def test_a_template_counts_only_in_a_chat(data: Path) -> None:
    from dataclasses import replace

    for protocol, same in (("official", True), ("tutorial-chat", False)):
        task = prepare("ceval", data=data, subjects=("logic",), protocol=protocol)
        one, two = (waiting_questions(replace(task, model={"template": name}))[0].key for name in "ab")
        assert (one == two) is same


def test_demonstrations_are_dropped_to_fit_and_counted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = constant("A")
    engine.context = 150  # type: ignore[attr-defined]
    results = run(data, engine, tmp_path, subjects=("logic",))
    assert {row["shots"] for row in results.rows} < {0, 1, 2, 3, 4}
    assert results.document["diagnostics"]["shots_dropped"] == 4
    assert "4 of 4 prompts are too long" in capsys.readouterr().err


def test_without_labels_a_submission_is_written(data: Path, tmp_path: Path) -> None:
    results = run(data, constant("C"), tmp_path, split="test", subjects=("logic",))
    assert results.numbers == []
    assert json.loads((tmp_path / "out" / "submission.json").read_text()) == {"logic": {"7": "C"}}
    assert "correct" not in results.rows[0]


def test_conversations_reach_the_engine(data: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def known(key: str, prompt: Any) -> str:
        seen.append(prompt)
        return "A"

    run(data, MockEngine(known), tmp_path, protocol="llamafactory", shots=1, limit=1)
    assert all(isinstance(prompt, Conversation) and len(prompt.messages) == 3 for prompt in seen)
    assert len(seen) == 2


def test_wrong_wishes(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="6 demonstrations are wanted and law has 5.*--shots 5"):
        run(data, constant("A"), tmp_path, shots=6, subjects=("law",))
    with pytest.raises(UsageError, match="limit is at least 1"):
        run(data, constant("A"), tmp_path, limit=0)
    with pytest.raises(UsageError, match="either a run or a model"):
        bench("ceval", data=data, subjects=("logic",))
    with pytest.raises(UsageError, match="engine answers by itself"):
        bench("ceval", data=data, engine=constant("A"), model="x", subjects=("logic",))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(DataError, match="not the result of danlu bench"):
        read_results(tmp_path)


@pytest.mark.parametrize(("letter", "right"), [("A", 310), ("B", 338), ("C", 344), ("D", 354)])
def test_the_published_labels(shared: Path, tmp_path: Path, letter: str, right: int) -> None:
    results = bench("ceval", engine=constant(letter), data=shared / "data/benchmarks/ceval", output=tmp_path, shots=0)
    assert value(results, "all", "all", "micro") == right / 1346
    hard = next(n for n in results.numbers if n.name == "hard")
    assert (hard.n, hard.subjects) == (152, 8)
