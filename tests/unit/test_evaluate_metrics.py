from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.core.errors import MissingDependency, UsageError
from danlu.evaluate.metrics import METRIC_SETS, METRICS, measure
from danlu.evaluate.metrics.ngrams import character_bleu, common_subsequence, ngrams
from danlu.evaluate.metrics.words import content_units, content_words, mostly_chinese, normalise

pytest.importorskip("jieba")
pytest.importorskip("sacrebleu")

ALPHABET = st.sampled_from([*"ab7好世界。，! \n", "你好", "the ", "3.14", "Ａ"])
texts = st.lists(ALPHABET, max_size=12).map("".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=5)


def table_lcs(first, second) -> int:
    """The quadratic textbook table."""
    row = [0] * (len(second) + 1)
    for item in first:
        above, row = row, [0] * (len(second) + 1)
        for place, other in enumerate(second, start=1):
            row[place] = above[place - 1] + 1 if item == other else max(above[place], row[place - 1])
    return row[-1]


@given(st.lists(st.integers(0, 4), max_size=90), st.lists(st.integers(0, 4), max_size=90))
@settings(deadline=None)
def test_bit_parallel_subsequence_equals_the_table(first, second):
    length = common_subsequence(first, second)
    assert length == table_lcs(first, second)
    assert length == common_subsequence(second, first)


def test_subsequence_of_long_texts():
    first, second = [*range(3000)], [*range(0, 6000, 2)]
    assert common_subsequence(first, second) == 1500


@given(texts)
def test_ngrams_are_neighbours(text):
    for order in (1, 2, 3):
        pieces = ngrams(text, order)
        assert len(pieces) == max(0, len(text) - order + 1)
        assert all("".join(piece) in text for piece in pieces)


@given(pairs)
@settings(deadline=None, max_examples=60)
def test_scores_and_intervals_stay_on_their_scale(rows):
    for name in METRIC_SETS:
        measured = measure([one for one, _ in rows], [two for _, two in rows], name)
        for score, column in zip(measured.scores, measured.columns, strict=True):
            assert 0 <= score.value <= score.scale + 1e-6, score
            assert -1e-9 <= score.low <= score.high <= score.scale + 1e-6, score
            assert score.n == len(rows) == len(column.rows)
            assert column.rows.min() >= 0
            assert column.rows.max() <= score.scale + 1e-6


@given(pairs)
@settings(deadline=None, max_examples=40)
def test_f_measures_are_symmetric(rows):
    names = ("compat-rouge", "rouge-word", "rouge-char", "f1", "exact-match")
    one, two = ([row[side] for row in rows] for side in (0, 1))
    forth, back = measure(one, two, names).means(), measure(two, one, names).means()
    assert forth == pytest.approx(back)


@given(st.lists(texts.map(lambda text: text + "一二三四 words here"), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_identical_texts_have_full_marks(rows):
    for name in METRIC_SETS:
        for score in measure(rows, rows, name).scores:
            if not score.name.startswith("distinct"):
                assert score.value == pytest.approx(score.scale), score


@given(texts, texts)
def test_character_bleu_is_bounded_and_zero_without_a_shared_character(one, two):
    score = character_bleu(one, two)
    assert 0 <= score <= 1 + 1e-12
    assert (score == 0) == (not set(one) & set(two))


def test_order_of_rows_does_not_matter():
    one, two = ["你好世界", "abc def", "x"], ["你好中国", "abc", "y"]
    for name in METRIC_SETS:
        forth, back = measure(one, two, name).means(), measure(one[::-1], two[::-1], name).means()
        assert forth == pytest.approx(back)


def test_the_same_seed_gives_the_same_intervals():
    one, two = ["你好世界", "abc def", "xy"], ["你好中国", "abc", "yx"]
    assert measure(one, two, "standard").scores == measure(one, two, "standard").scores
    other = measure(one, two, "standard", seed=1)
    assert other.means() == measure(one, two, "standard").means()


def test_an_interval_does_not_depend_on_the_other_metrics():
    one, two = ["你好世界", "abc def", "xy"], ["你好中国", "abc", "yx"]
    assert measure(one, two, "chrf")["chrf"] == measure(one, two, "standard")["chrf"]


def test_rows_name_every_metric():
    measured = measure(["你好"], ["你好吗"], "standard")
    (row,) = measured.rows()
    assert list(row) == [score.name for score in measured.scores] == list(measured.means())
    assert len(set(row)) == len(row)
    with pytest.raises(KeyError):
        measured["nothing"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Ｈｅｌｌｏ，　World！", "hello world"),
        ("圆周率是3.14。", "圆周率是3.14"),
        ("1 + 1 = 2", "1 + 1 = 2"),
        ("“引号”…", "引号"),
        ("a.b", "a b"),
        ("2026-11-23", "2026-11-23"),
        ("...", ""),
    ],
)
def test_normalise(text, normal):
    assert normalise(text) == normal


@given(st.text(max_size=40))
def test_normalise_is_idempotent_enough(text):
    assert content_units(normalise(text)) == content_units(text)


def test_units_and_words():
    assert content_units("使用LoRA微调 3.14！") == ("使", "用", "lora", "微", "调", "3.14")
    assert content_words("你好，世界! Hello") == ("你好", "世界", "hello")


def test_language_of_a_corpus():
    assert mostly_chinese(("你好", "hello"))
    assert not mostly_chinese(("你好", "a", "b"))
    assert not mostly_chinese(("", " "))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean compat"):
        measure(["a"], ["a"], "compact")
    with pytest.raises(UsageError, match="score 'bleuu'.*Did you mean bleu"):
        measure(["a"], ["a"], ("bleuu",))


def test_rows_must_fit():
    with pytest.raises(UsageError, match="2 predictions cannot be compared with 1"):
        measure(["a", "b"], ["a"])
    with pytest.raises(UsageError, match="nothing to measure"):
        measure([], [])


def test_every_entry_of_the_table_can_be_loaded():
    for name in METRICS:
        assert callable(METRICS[name])
    for names in METRIC_SETS.values():
        assert all(name in METRICS for name in names)


@pytest.mark.parametrize(("package", "metric"), [("jieba", "compat-rouge"), ("sacrebleu", "chrf")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(package, metric, monkeypatch):
    from danlu.evaluate.metrics import words

    words.segmenter.cache_clear()
    words.cut.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.metrics", None)
    with pytest.raises(MissingDependency, match=r"pip install \"danlu\[metrics\]\""):
        measure(["你好"], ["你好"], metric)


def test_nothing_heavy_is_imported_before_it_is_needed():
    script = (
        "import sys, danlu.evaluate.metrics, danlu.evaluate.compare, danlu.evaluate.predictions\n"
        "print([name for name in ('jieba', 'sacrebleu', 'torch', 'nltk', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
