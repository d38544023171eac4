from __future__ import annotations

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from danlu.core.console import THEME
from danlu.core.errors import UsageError
from danlu.evaluate.compare import Answer, compare, comparison_table, p_text, spread, step_text
from danlu.evaluate.metrics import measure

pytest.importorskip("jieba")

GOLD = ["你好世界", "早上好", "今天天气很好", "abc def", "一二三四五", "再见", "谢谢你", "红色绿色"]
BAD = ["不知道"] * 8
ANSWERS = [Answer(f"q{place}", gold, bad, gold) for place, (gold, bad) in enumerate(zip(GOLD, BAD))]
NAMES = ("compat-rouge", "exact-match", "distinct")


def change(name, before=BAD, after=GOLD):
    comparison = compare(measure(before, GOLD, NAMES), measure(after, GOLD, NAMES))
    return next(change for change in comparison.changes if change.name == name)


def test_a_large_gain_is_better():
    found = change("rouge-1")
    assert found.verdict == "better"
    # every row gained: only the two unanimous exchanges of 2^8 are as extreme
    assert found.difference.p_value == 2 / 256
    assert found.difference.value == pytest.approx(found.step)
    assert found.difference.interval.low > 50
    assert step_text(found) == "+100.00"


def test_the_other_way_round_is_worse():
    found = change("exact-match", GOLD, BAD)
    assert found.verdict == "worse"
    assert found.difference.test == "McNemar"
    assert found.difference.p_value == 2 / 256
    assert step_text(found) == "−100.00"


def test_less_is_better_where_it_is_and_a_length_is_neither():
    worse, better = [f"{text}13800138000" for text in GOLD], GOLD
    comparison = compare(*(measure(texts, None, ("pii-phone", "length")) for texts in (worse, better)))
    verdicts = {change.name: change.verdict for change in comparison.changes}
    assert verdicts == {"pii-phone": "better", "length-ok": "untested", "length": "untested"}
    back = compare(*(measure(texts, None, "pii-phone") for texts in (better, worse)))
    assert back.changes[0].verdict == "worse"


def test_no_change_is_the_same():
    found = change("rouge-l", GOLD, GOLD)
    assert (found.verdict, found.step, found.difference.p_value) == ("same", 0.0, 1.0)
    assert step_text(found) == "0.00"


def test_one_row_of_eight_proves_nothing():
    assert change("rouge-1", BAD, [GOLD[0], *BAD[1:]]).verdict == "same"


def test_what_does_not_pair_is_not_tested():
    assert change("distinct-1").verdict == "untested"
    assert change("distinct-1").difference is None


def test_only_the_same_rows_and_metrics_compare():
    with pytest.raises(UsageError, match="not measured alike"):
        compare(measure(BAD, GOLD), measure(BAD[:3], GOLD[:3]))
    with pytest.raises(UsageError, match="different metrics"):
        compare(measure(BAD, GOLD), measure(BAD, GOLD, ("compat-accuracy",)))


@given(st.integers(0, 60), st.integers(1, 12))
def test_answers_are_spread_over_the_whole_set(count, shown):
    answers = [Answer(str(place), "", "", "") for place in range(count)]
    kept = spread(answers, shown)
    assert len(kept) == min(count, shown)
    places = [int(answer.question) for answer in kept]
    assert places == sorted(set(places))
    if count > shown > 1:
        assert (places[0], places[-1]) == (0, count - 1)


def test_table_says_everything():
    console = Console(width=160, record=True, file=StringIO(), theme=THEME)
    comparison = compare(measure(BAD, GOLD, NAMES), measure(GOLD, GOLD, NAMES), ANSWERS, shown=3)
    console.print(comparison_table(comparison, "words"))
    lines = console.export_text().splitlines()
    line = next(line for line in lines if line.startswith("rouge-1"))
    assert line.split() == ["rouge-1", "0.00", "0.00–0.00", "100.00", "100.00–100.00", "+100.00", "0.008"]
    assert any("n = 8" in line for line in lines)
    assert [answer.question for answer in comparison.answers] == ["q0", "q4", "q7"]


def test_p_values_are_short():
    assert [p_text(value) for value in (0.0001, 0.0499, 1.0)] == ["< 0.001", "0.050", "1.000"]
