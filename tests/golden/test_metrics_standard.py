"""The standard metrics against sacrebleu, and against literals measured elsewhere or counted by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from danlu.evaluate.metrics import measure
from danlu.evaluate.metrics.standard import corpus_bleu, corpus_chrf

pytestmark = pytest.mark.golden
pytest.importorskip("jieba")
sacrebleu = pytest.importorskip("sacrebleu")

CHINESE = [
    ("今天天气很好", "今天天气真好"),
    ("我们都是中国人", "我们都是中国人"),
    ("人工智能正在改变世界", "机器学习改变了世界"),
    ("均衡饮食，多吃水果和蔬菜，保证充足睡眠。", "保持均衡的饮食，多吃蔬菜水果，并保证充足的睡眠。"),
    (
        "原子由位于原子核中的质子与核外电子组成。",
        "原子是物质的基本单位，它由三种基本粒子组成：质子、中子和电子。",
    ),
    ("好", "很好"),
]
ENGLISH = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("the the the the the the the", "the cat is on the mat"),
]


def column(metrics, pairs):
    return measure([one for one, _ in pairs], [two for _, two in pairs], metrics)


def random_pairs(seed: int, count: int) -> list[tuple[str, str]]:
    generator = random.Random(seed)
    words = ["red", "green", "blue", "红", "绿色", "蓝", ",", "。", "7", "", " ", "a b"]
    make = lambda: " ".join(generator.choices(words, k=generator.randint(0, 9)))  # noqa: E731
    return [(make(), make()) for _ in range(count)]


def test_chinese_corpus_bleu_literal():
    score = column("bleu", CHINESE)["bleu"]
    assert score.value == pytest.approx(28.40, abs=0.005)
    assert "tok:zh" in score.protocol
    assert "smooth:exp" in score.protocol
    rows = [row["bleu"] for row in column("bleu", CHINESE).rows()]
    assert rows == [53.7285, 100.0, 11.8684, 35.4868, 7.5994, 36.7879]


def test_english_is_cut_into_words_for_bleu():
    measured = column("bleu", ENGLISH)
    assert "tok:13a" in measured["bleu"].protocol
    assert [row["bleu"] for row in measured.rows()] == [37.9918, 7.8098]


def test_chrf_literals():
    assert [row["chrf"] for row in column("chrf", CHINESE).rows()] == [
        37.7778,
        100.0,
        11.3115,
        30.7192,
        11.7215,
        55.5556,
    ]
    assert [row["chrf"] for row in column("chrf", ENGLISH).rows()] == [64.5779, 14.2324]


@pytest.mark.parametrize("seed", range(12))
def test_summed_counts_give_what_sacrebleu_gives(seed):
    pairs = random_pairs(seed, 1 + seed % 5)
    bleu, chrf = column(("bleu", "chrf"), pairs).columns
    n = len(pairs)
    assert float(corpus_bleu(bleu.statistics.sum(axis=0), n)) == pytest.approx(bleu.fixed, abs=1e-9)
    assert float(corpus_chrf(chrf.statistics.sum(axis=0), n)) == pytest.approx(chrf.fixed, abs=1e-9)


def test_bleu_of_every_resample_is_what_sacrebleu_gives_for_those_rows():
    (bleu,) = column("bleu", CHINESE).columns
    draw = [0, 0, 3, 4, 5, 4]
    tool = sacrebleu.metrics.BLEU(tokenize="zh")
    expected = tool.corpus_score([CHINESE[row][0] for row in draw], [[CHINESE[row][1] for row in draw]])
    assert float(corpus_bleu(bleu.statistics[draw].sum(axis=0), 6)) == pytest.approx(expected.score)


def test_shapes_of_the_aggregates():
    counts = np.zeros((3, 2, 10))
    counts[0] = [4, 3, 2, 1, 4, 3, 2, 1, 4, 4]
    assert corpus_bleu(counts, 2).tolist() == [[100, 100], [0, 0], [0, 0]]
    assert corpus_chrf(np.zeros((5, 18)), 1).tolist() == [0.0] * 5


def test_rouge_by_hand():
    measured = column(("rouge-word", "rouge-char"), [("今天天气很好", "今天天气真好"), ("the cat sat", "The cat!")])
    first, second = measured.rows()
    # characters: 5 of 6 shared, 3 of 5 bigrams
    assert (first["rouge-1-char"], first["rouge-2-char"], first["rouge-l-char"]) == (83.3333, 60.0, 83.3333)
    # words: 今天天气|很|好 and 今天天气|真|好
    assert (first["rouge-1-word"], first["rouge-2-word"]) == (66.6667, 0.0)
    # the cat sat | the cat: case and punctuation do not count; P 2/3, R 1; bigrams P 1/2, R 1
    assert (second["rouge-1-word"], second["rouge-2-word"], second["rouge-l-word"]) == (80.0, 66.6667, 80.0)


def test_english_is_not_scored_letter_by_letter():
    pair = [("tea", "eat")]
    assert column("rouge-char", pair)["rouge-1-char"].value == 0.0
    assert column("compat-bleu", pair)["bleu-4"].value > 20


def test_f1_and_match_literals():
    measured = column(
        ("f1", "exact-match", "accuracy"),
        [
            ("今天天气很好", "今天天气真好"),
            ("cat sat on mat", "cat is on mat"),
            ("Ａ．", "a"),
            ("Apple", "a"),
        ],
    )
    rows = measured.rows()
    assert [row["f1"] for row in rows] == [83.3333, 75.0, 100.0, 0.0]
    assert [row["exact-match"] for row in rows] == [0, 0, 100, 0]
    assert measured["accuracy"].value == 25.0
    assert measured["exact-match"].interval == "wilson"


def test_distinct_literals():
    texts = ["我喜欢苹果和香蕉", "我喜欢苹果和香蕉", "他在公园里跑步"]
    measured = measure(texts, texts, "distinct")
    assert measured["distinct-1"].value == pytest.approx(65.2174, abs=5e-5)
    assert measured["distinct-2"].value == pytest.approx(65.0)
    # leaving a twin out: 15 of 15; leaving the third out: 8 of 16
    assert measured.columns[0].statistics[:, 0].tolist() == [100.0, 100.0, 50.0]
    assert measured["distinct-1"].interval == "jackknife"
    assert measured["distinct-1"].low >= 0
    assert measured["distinct-1"].high == 100.0
