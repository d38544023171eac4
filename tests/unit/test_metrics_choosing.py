"""What can be asked for by name, and which options go where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from danlu.core.errors import UsageError
from danlu.core.registry import Registry
from danlu.evaluate.metrics import METRIC_SETS, METRICS, Pairs, measure
from danlu.evaluate.metrics.calibration import binned, equal_mass, equal_width, error_of_bins
from danlu.evaluate.metrics.choosing import Choice, choose, columns_of
from danlu.evaluate.metrics.labels import class_f1, label_counts
from danlu.evaluate.metrics.self_bleu import clipped_counts, closest_lengths


def chosen(metrics: str | Sequence[str]) -> tuple[Choice, ...]:
    return choose(metrics, METRICS, METRIC_SETS)[0]


def test_sets_metrics_and_scores_by_name() -> None:
    assert chosen("rouge-l") == (Choice("compat-rouge", ("rouge-l",)),)
    assert chosen("rouge-l, f1 ,rouge-1") == (Choice("compat-rouge", ("rouge-l", "rouge-1")), Choice("f1"))
    assert chosen(["rouge-l", "compat-rouge"]) == chosen(["compat-rouge", "rouge-l"]) == (Choice("compat-rouge"),)
    assert [choice.name for choice in chosen("compat")] == list(METRIC_SETS["compat"])
    assert chosen("accuracy") == (Choice("accuracy"),)  # the metric, not the score of compat-accuracy
    assert choose("compat", METRICS, METRIC_SETS)[1] == "compat"
    assert choose("compat,f1", METRICS, METRIC_SETS)[1] == "custom"


@pytest.mark.parametrize("metrics", ["", " , ", ()])
def test_no_metric_is_refused(metrics: str) -> None:
    with pytest.raises(UsageError, match="no metric is named"):
        chosen(metrics)


def test_a_single_score_is_the_one_of_the_whole_metric() -> None:
    pytest.importorskip("jieba")
    texts = ["今天天气很好", "你好世界"], ["今天天气真好", "你好"]
    assert measure(*texts, "rouge-l").means() == {"rouge-l": measure(*texts, "compat").means()["rouge-l"]}


def test_an_option_goes_to_every_metric_that_has_it() -> None:
    measured = measure(["[1]", "{}"], None, "json,regex", options={"kind": "array", "pattern": "1"})
    assert measured.means() == {"json": 50.0, "regex": 50.0}


@pytest.mark.parametrize(
    ("metrics", "options", "reason"),
    [
        ("json", {"kinds": "array"}, "Did you mean kind"),
        ("f1", {"kind": "array"}, "Their options: none"),
        ("regex", {}, "needs pattern="),
        ("accuracy,compat-accuracy", {}, "two of the metrics give a score named 'accuracy'"),
    ],
)
def test_wrong_options_are_explained(metrics: str, options: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        measure(["a"], ["a"], metrics, options=options)


def test_a_metric_of_another_package_has_options_too() -> None:
    table = Registry("thing", {"mine": f"{__name__}:shouted"})
    (column,) = columns_of([Choice("mine")], table, Pairs(("Ab", "c"), None), {"mark": "A"})
    assert column.value == 50.0


def shouted(pairs: Pairs, *, mark: str) -> tuple[object, ...]:
    from danlu.evaluate.metrics.column import share_column

    return (share_column("mine", [mark in text for text in pairs.predictions], mark),)


def test_pairs_without_references_or_a_field_say_so() -> None:
    pairs = Pairs(("a",), None, {"p": ("x",)})
    with pytest.raises(UsageError, match="--reference-column"):
        _ = pairs.references
    with pytest.raises(UsageError, match="Further columns of these predictions: p"):
        pairs.numbers("confidence")
    with pytest.raises(UsageError, match="does not hold numbers"):
        pairs.numbers("p")
    assert not pairs.chinese


def test_set_f1_by_hand() -> None:
    assert measure(["今天天气很好"], ["今天天气真好"], "set-f1").means()["set-f1"] == 80.0
    rows = measure(["红、绿", "绿，红", "红", "", "a b"], ["绿、红", "红、绿", "红、绿、蓝", "红", "b a"], "set-f1")
    assert rows.columns[0].rows.tolist() == [100, 100, 50, 0, 100]
    listed = measure(["red cat; dog", "dog"], ["dog；Red Cat", "a dog"], "set-f1", options={"separator": ";；"})
    assert listed.columns[0].rows.tolist() == [100, 0]


GOLD, MINE = list("000112"), list("010122")


def test_label_f1_literals() -> None:
    means = measure(MINE, GOLD, "label-f1").means()
    assert means["macro-f1"] == pytest.approx(65.5556, abs=5e-5)
    assert means["micro-f1"] == pytest.approx(66.6667, abs=5e-5)
    each = class_f1(label_counts(MINE, GOLD, "012").sum(axis=0))
    assert each.tolist() == pytest.approx([80, 50, 200 / 3])


def test_an_answer_that_is_no_label_is_a_class_of_its_own() -> None:
    means = measure(["yes", "maybe"], ["yes", "yes"], "label-f1").means()
    assert means["macro-f1"] == pytest.approx(100 / 3)  # yes 2/3, maybe 0
    assert means["micro-f1"] == 50.0
    with pytest.raises(UsageError, match="no class labels"):
        measure([str(number) for number in range(300)], ["1"] * 300, "label-f1")


CONFIDENCE = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.95, 0.85, 0.65, 0.75, 0.5])
RIGHT = np.array([1, 1, 0, 1, 0, 1, 1, 0, 1, 0.0])


def test_calibration_literals() -> None:
    for places, expected in ((equal_width(CONFIDENCE, 10), 0.275), (equal_mass(CONFIDENCE, 5), 0.225)):
        assert error_of_bins(binned(CONFIDENCE, RIGHT, places).sum(axis=0), 10) == pytest.approx(expected)
    options = {"bins": 1, "correct": "right"}
    fields = {"confidence": CONFIDENCE.tolist(), "right": RIGHT.tolist()}
    means = measure(["a"] * 10, None, "calibration", options=options, fields=fields).means()
    assert means == {
        "ece": pytest.approx(0.125),
        "ece-mass": pytest.approx(0.125),
        "brier": pytest.approx(0.17625),
    }
    texts = ["A" if right else "B" for right in RIGHT]
    by_text = measure(texts, ["A"] * 10, "calibration", fields={"confidence": CONFIDENCE}).means()
    assert by_text["ece"] == pytest.approx(0.275)


def test_bins_are_open_below_and_closed_above() -> None:
    assert equal_width(np.array([0, 0.1, 0.1000001, 0.3, 1.0]), 10).tolist() == [0, 0, 1, 2, 9]
    assert equal_mass(np.array([0.5, 0.1, 0.9]), 2).tolist() == [0, 0, 1]


def test_what_is_no_probability_is_refused() -> None:
    for values, options in (([1.5], {}), ([0.5], {"bins": 0}), ([0.5], {"correct": "confidence"})):
        with pytest.raises(UsageError):
            measure(["a"], ["a"], "calibration", options=options, fields={"confidence": values})


def test_self_bleu_literals() -> None:
    pytest.importorskip("sacrebleu")
    texts = ["我喜欢苹果和香蕉", "我喜欢苹果和香蕉", "他在公园里跑步"]
    measured = measure(texts, None, "self-bleu")
    assert measured.columns[0].rows.tolist() == pytest.approx([100, 100, 0])
    with pytest.raises(UsageError, match="only one"):
        measure(texts[:1], None, "self-bleu")


def test_counts_and_lengths_without_the_text_itself() -> None:
    correct, totals = clipped_counts([list("aab"), list("ab"), list("aaac")])
    assert correct == [[3, 2, 0, 0], [2, 1, 0, 0], [2, 1, 0, 0]]
    assert totals == [[3, 2, 1, 0], [2, 1, 0, 0], [4, 3, 2, 1]]
    assert closest_lengths([3, 2, 4, 4]) == [2, 3, 4, 4]
    assert closest_lengths([5, 5]) == [5, 5]
