"""Values measured with jieba 0.42.1, rouge-chinese 1.0.3, nltk 3.10.4 and sacrebleu 2.6.0, one row for each pair."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from danlu.evaluate.metrics import measure
from danlu.evaluate.statistics import mcnemar_test, standard_error, wilson_interval

pytestmark = pytest.mark.golden
pytest.importorskip("jieba")
sacrebleu = pytest.importorskip("sacrebleu")

# prediction, reference; ROUGE-1/2/L of jieba's words and of characters; BLEU-4 of the old tools;
# sentence BLEU of sacrebleu with zh, char and 13a; chrF
FIXTURES: dict[str, tuple[Any, ...]] = {
    "zh1": (
        *("今天天气很好", "今天天气真好"),
        *((66.6667, 0, 66.6667), (80, 60, 83.3333), 53.7285, (53.7285, 53.7285, 0), 37.7778),
    ),
    "zh2": (
        *("我们都是中国人", "我们都是中国人"),
        *((100, 100, 100), (100, 100, 100), 100, (100, 100, 100), 100),
    ),
    "zh3": (
        *("人工智能正在改变世界", "机器学习改变了世界"),
        *((44.4444, 0, 44.4444), (42.1053, 23.5294, 42.1053), 11.8684, (11.8684, 11.8684, 0), 11.3115),
    ),
    "zh4": (
        *("均衡饮食，多吃水果和蔬菜，保证充足睡眠。", "保持均衡的饮食，多吃蔬菜水果，并保证充足的睡眠。"),
        *((66.6667, 32, 66.6667), (90, 57.1429, 77.2727), 35.4868, (35.4868, 35.4868, 0), 30.7192),
    ),
    "zh5": (
        *(
            "原子由位于原子核中的质子与核外电子组成。",
            "原子是物质的基本单位，它由三种基本粒子组成：质子、中子和电子。",
        ),
        *((40, 0, 26.6667), (56.4103, 21.2766, 35.2941), 7.5994, (7.5994, 7.5994, 0), 11.7215),
    ),
    "zh6": (
        *("好", "很好"),
        *((66.6667, 0, 66.6667), (66.6667, 0, 66.6667), 13.0065, (36.7879, 36.7879, 0), 55.5556),
    ),
    "en1": (
        *("the cat sat on the mat", "the cat is on the mat"),
        *((80, 60, 83.3333), (94.7368, 75, 90.9091), 78.3920, (37.9918, 70.8588, 37.9918), 64.5779),
    ),
    "en2": (
        *("the the the the the the the", "the cat is on the mat"),
        *((33.3333, 0, 30.7692), (46.1538, 26.6667, 43.2432), 23.8595, (7.8098, 12.2171, 7.8098), 14.2324),
    ),
    "en3": (
        "It is a guide to action which ensures that the military always obeys the commands of the party",
        "It is a guide to action that ensures that the military will forever heed Party commands",
        *((70.9677, 50, 64.7059), (90.4762, 70.8661, 72.4832), 67.4803, (41.1804, 64.7813, 41.1804), 63.0506),
    ),
    "mix": (
        *("使用 LoRA 微调 ChatGLM2-6B 模型", "用 LoRA 方法微调 ChatGLM2-6B"),
        *((71.4286, 50, 71.4286), (87.1795, 82.0513, 87.8049), 76.0857, (45.1801, 76.1827, 26.2691), 72.2491),
    ),
    "empty": ("", "参考答案", (0, 0, 0), (0, 0, 0), 0, (0, 0, 0), 0),
}
RGB = (
    "三原色是红色、绿色和蓝色,分别对应波长范围为约620-750纳米的红光、约495-570纳米的绿光和约450-495纳米的蓝光。",
    "三原色通常指的是红色、绿色和蓝色(RGB)。它们是通过加色混合原理创建色彩的三种基础颜色。",
)


def row(metric: str, mine: str, gold: str, **options: Any) -> list[float]:
    return [float(column.rows[0]) for column in measure([mine], [gold], metric, options=options).columns]


@pytest.mark.parametrize("name", list(FIXTURES))
def test_every_measured_value(name: str) -> None:
    mine, gold, words, characters, bleu, tokenized, chrf = FIXTURES[name]
    near = {"abs": 5.1e-5}
    assert row("compat-rouge", mine, gold) == pytest.approx(words, **near)
    assert row("compat-rouge", mine, gold, units="character") == pytest.approx(characters, **near)
    assert row("compat-bleu", mine, gold) == pytest.approx([bleu], **near)
    for tokenizer, expected in zip(("zh", "char", "13a"), tokenized, strict=True):
        assert row("bleu", mine, gold, tokenize=tokenizer) == pytest.approx([expected], **near)
    assert row("chrf", mine, gold) == pytest.approx([chrf], **near)


def test_a_long_pair_by_the_old_tools() -> None:
    assert row("compat-rouge", *RGB) == pytest.approx([36, 17.2414, 29.0323], abs=5.1e-5)
    assert row("compat-bleu", *RGB) == pytest.approx([14.7409], abs=5.1e-5)


def corpus(prefix: str, metric: str, **options: Any) -> Any:
    chosen = [fixture for name, fixture in FIXTURES.items() if name.startswith(prefix)]
    return measure([one[0] for one in chosen], [one[1] for one in chosen], metric, options=options).scores[0]


def test_corpus_scores_are_no_means_of_rows() -> None:
    english, chinese = corpus("en", "bleu"), corpus("zh", "bleu")
    assert english.value == pytest.approx(32.8273, abs=5e-5)
    assert chinese.value == pytest.approx(28.40, abs=5e-3)
    assert chinese.protocol == "sacrebleu nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:" + sacrebleu.__version__
    assert corpus("zh", "compat-bleu").value == pytest.approx(36.9483, abs=5.1e-5)


@pytest.mark.parametrize("count", range(1, 5))
def test_identical_short_answers_by_the_old_tools(count: int) -> None:
    text = "丹炉炼成"[:count]
    expected = (35.3553, 59.4604, 84.0896, 100)[count - 1]
    assert row("compat-bleu", text, text) == pytest.approx([expected], abs=5e-5)
    assert row("bleu", text, text) == pytest.approx([100])


def test_shares_and_their_errors() -> None:
    half = np.repeat([0.0, 1.0], 673)
    assert standard_error(half) == pytest.approx(0.0136335, abs=5e-8)
    assert standard_error(np.repeat([0.0, 1.0], 10)) == pytest.approx(0.114708, abs=5e-7)
    wilson = wilson_interval(673, 1346)
    assert (wilson.low, wilson.high) == pytest.approx((0.473327, 0.526673), abs=5e-7)
    assert mcnemar_test(10, 3) == pytest.approx(0.0922852, abs=5e-8)


@pytest.mark.parametrize("seed", range(8))
def test_self_bleu_is_sacrebleus_with_all_others_as_references(seed: int) -> None:
    generator = random.Random(seed)
    words = ["the", "cat", "sat", "on", "mat", "."] if seed % 2 else [*"今天天气很好红绿", "，", "abc "]
    glue = " " if seed % 2 else ""
    texts = [glue.join(generator.choices(words, k=generator.randint(0, 9))) for _ in range(12)]
    tool = sacrebleu.metrics.BLEU(tokenize="13a" if seed % 2 else "zh", effective_order=True)
    expected = [tool.sentence_score(text, texts[:place] + texts[place + 1 :]).score for place, text in enumerate(texts)]
    assert measure(texts, None, "self-bleu").columns[0].rows.tolist() == pytest.approx(expected, abs=1e-9)
