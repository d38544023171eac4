from __future__ import annotations

import math
from typing import Any

import pytest

from danlu.evaluate.benchmarks.aggregate import diagnostics, numbers
from danlu.evaluate.benchmarks.catalog import benchmark_named
from danlu.evaluate.benchmarks.schema import Item, Protocol
from danlu.evaluate.benchmarks.scoring import expected_calibration_error, from_log_probs, from_reply, one_choice_brier
from danlu.evaluate.benchmarks.submission import problems

SURE = [0.9, 0.8, 0.7, 0.6, 0.55, 0.95, 0.85, 0.65, 0.75, 0.5]
RIGHT = [1, 1, 0, 1, 0, 1, 1, 0, 1, 0]


def test_calibration_against_reference_values() -> None:
    assert expected_calibration_error(SURE, RIGHT) == pytest.approx(0.275)
    assert expected_calibration_error(SURE, RIGHT, bins=5, equal_mass=True) == pytest.approx(0.225)
    assert expected_calibration_error(SURE, RIGHT, bins=1) == pytest.approx(0.125)
    rows = [{"confidence": sure, "correct": right} for sure, right in zip(SURE, RIGHT)]
    assert one_choice_brier(rows) == pytest.approx(0.17625)
    assert math.isnan(expected_calibration_error([], []))


def test_log_probabilities_of_letters() -> None:
    item = Item("0", "s", "?", ("w", "x"), ("B",))
    found = from_log_probs(Protocol(question="q"), item, [math.log(0.2), math.log(0.6)])
    assert found["predicted"] == "B"
    assert found["mass"] == pytest.approx(0.8)
    assert found["margin"] == pytest.approx(math.log(3), abs=1e-6)
    assert found["confidence"] == pytest.approx(0.75)
    assert found["brier"] == pytest.approx(2 * 0.25**2)
    assert found["correct"] == 1
    assert "correct" not in from_log_probs(Protocol(question="q"), Item("0", "s", "?", ("w", "x")), [-1, -2])
    tiny = from_log_probs(Protocol(question="q"), item, [-2000.0, -2001.0])
    assert (tiny["predicted"], tiny["mass"]) == ("A", 0)


def test_continuations_by_length() -> None:
    item = Item("0", "s", "?", ("short", "a much longer one"), ("B",))
    found = from_log_probs(Protocol(question="q", mode="continuation"), item, [-5.0, -8.0])
    assert (found["predicted"], found["correct"]) == ("A", 0)
    assert (found["predicted_norm"], found["correct_norm"]) == ("B", 1)


def test_no_answer_is_wrong() -> None:
    item = Item("0", "s", "?", ("w", "x"), ("B",))
    assert from_reply(Protocol(question="q", extractor="letter-only"), item, "?") == {"predicted": None, "correct": 0}


def rows_of(subject: str, right: int, n: int, **more: Any) -> list[dict[str, Any]]:
    return [{"subject": subject, "id": str(place), "correct": int(place < right), **more} for place in range(n)]


def test_macro_and_micro() -> None:
    rows = rows_of("logic", 1, 10) + rows_of("law", 30, 30) + rows_of("college_physics", 0, 5)
    found = {(n.scope, n.name, n.average): n for n in numbers(benchmark_named("ceval"), rows, "macro")}
    assert found["all", "all", "macro"].value == pytest.approx((0.1 + 1 + 0) / 3)
    assert found["all", "all", "micro"].value == pytest.approx(31 / 45)
    assert found["category", "Humanities", "macro"].value == pytest.approx(0.55)
    assert found["group", "hard", "micro"].n == 5
    assert [n for n in found.values() if n.headline] == [found["all", "all", "macro"]]
    assert found["all", "all", "micro"].interval.method == "wilson"
    for number in found.values():
        assert number.interval.low <= number.value <= number.interval.high


def test_questions_of_one_passage_are_drawn_together() -> None:
    alone = rows_of("logic", 30, 60)
    together = [{**row, "group": str(place // 10)} for place, row in enumerate(alone)]
    one, two = (
        next(n for n in numbers(benchmark_named("ceval"), rows, "macro") if (n.scope, n.average) == ("all", "micro"))
        for rows in (alone, together)
    )
    assert two.interval.method == "bootstrap"
    assert two.value == one.value
    assert two.interval.high - two.interval.low > 1.5 * (one.interval.high - one.interval.low)


def test_diagnostics() -> None:
    rows = [
        {"predicted": None, "correct": 0, "reply": "?", "finish": "length", "choices": 4, "prompt_tokens": 3},
        {
            "predicted": "A",
            "correct": 1,
            "reply": "A",
            "finish": "stop",
            "choices": 5,
            "prompt_tokens": 4,
            "cut_tokens": 1,
        },
    ]
    found = diagnostics(rows)
    assert (found["unparsed"], found["length"], found["prompt_tokens"], found["cut"]) == (0.5, 0.5, 7, 1)
    assert found["chance"] == pytest.approx(0.225)
    assert diagnostics([]) == {"n": 0}


def test_submissions() -> None:
    ceval = benchmark_named("ceval")
    good = {
        name: {str(place): "A" for place in range(subject.counts["test"])} for name, subject in ceval.subjects.items()
    }
    assert problems(ceval, good) == []
    bad = {name: dict(answers) for name, answers in good.items() if name != "law"}
    del bad["logic"]["3"]
    bad["logic"]["204"] = "A"
    bad["marxism"]["0"] = "ABDC"
    bad["extra"] = {}
    assert problems(ceval, bad) == [
        "law: the subject is missing",
        "extra: there is no such subject",
        "marxism:0: 'ABDC' is not one of A, B, C, D",
        "logic: id 3 is missing",
        "logic: id 204 is not in the test file",
    ]
    assert problems(ceval, []) == ["it is no object of subjects"]
    ids = {"logic": [Item("x", "logic", "?")]}
    assert "logic: id x is missing" in problems(ceval, good, ids)
