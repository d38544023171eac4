"""The compat metrics against the packages whose numbers they reproduce, and against literals."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.evaluate.metrics import measure
from danlu.evaluate.metrics.compat import rouge_row
from danlu.evaluate.metrics.ngrams import character_bleu
from danlu.evaluate.metrics.words import cut

pytestmark = pytest.mark.golden
pytest.importorskip("jieba")

SHARED = Path(os.environ.get("DANLU_SHARED", Path(__file__).parents[2].parent / "shared"))

# prediction, reference, then rouge-1, rouge-2, rouge-l and bleu-4,
# measured with jieba 0.42.1, rouge-chinese 1.0.3 and nltk 3.10.4
LITERALS = [
    ("好", "好", 100, 0, 100, 35.3553),
    ("你好", "你好", 100, 0, 100, 59.4604),
    ("你好世界", "你好世界", 100, 100, 100, 100),
    ("a.b", "a b", 80, None, None, 26.8642),
    ("这是一个测试。", "这是另一个测试。", 60, 50, 60, 61.2975),
    ("今天 天气 很好", "今天天气很好", 57.1429, 40, 57.1429, 19.1301),
    ("", "abc", 0, 0, 0, 0),
    ("abc", "", 0, 0, 0, 0),
    (" \n", "abc", 0, 0, 0, 0),
    ("yes", "no", 0, 0, 0, 0),
    ("今天天气很好", "今天天气真好", 66.6667, 0, 66.6667, 53.7285),
    ("我们都是中国人", "我们都是中国人", 100, 100, 100, 100),
    ("人工智能正在改变世界", "机器学习改变了世界", 44.4444, 0, 44.4444, 11.8684),
    (
        "均衡饮食，多吃水果和蔬菜，保证充足睡眠。",
        "保持均衡的饮食，多吃蔬菜水果，并保证充足的睡眠。",
        66.6667,
        32,
        66.6667,
        35.4868,
    ),
    ("好", "很好", 66.6667, 0, 66.6667, 13.0065),
    ("the cat sat on the mat", "the cat is on the mat", 80, 60, 83.3333, 78.3920),
    ("the the the the the the the", "the cat is on the mat", 33.3333, 0, 30.7692, 23.8595),
    ("使用 LoRA 微调 ChatGLM2-6B 模型", "用 LoRA 方法微调 ChatGLM2-6B", 71.4286, 50, 71.4286, 76.0857),
]

PIECES = [
    *'。？?！，.…”’“"、；\t\u3000',
    *("......", "……", "...........", "-......-", "\n", "\n\n", "\r\n", " ", "  ", "\u2028", "\x0b"),
    *("a", "b.", "3.14", "50%", "abc", "LoRA", "C++", "you", "the cat"),
    *(
        "好",
        "你好",
        "世界",
        "今天天气",
        "研究生命起源",
        "南京市长江大桥",
        "龘靐",
        "杭研大厦",
        "の",
        "한국어",
        "😀",
    ),
]


def peer_row(prediction: str, reference: str) -> tuple[float, float, float, float]:
    """ROUGE-1, 2, L and BLEU-4 by the packages, put together as the older tools do."""
    jieba = pytest.importorskip("jieba")
    rouge_chinese = pytest.importorskip("rouge_chinese")
    bleu_score = pytest.importorskip("nltk.translate.bleu_score")
    jieba.setLogLevel("CRITICAL")
    mine, gold = " ".join(jieba.cut(prediction)), " ".join(jieba.cut(reference))
    f_measures = [0.0, 0.0, 0.0]
    if mine.split() and gold.split():
        scores = rouge_chinese.Rouge().get_scores(mine, gold)[0]
        f_measures = [scores[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")]
    smoothing = bleu_score.SmoothingFunction().method3
    bleu = bleu_score.sentence_bleu([list(reference)], list(prediction), smoothing_function=smoothing)
    one, two, longest, four = (round(value * 100, 4) for value in (*f_measures, bleu))
    return one, two, longest, four


def our_row(prediction: str, reference: str) -> tuple[float, float, float, float]:
    return *rouge_row(prediction, reference), round(character_bleu(prediction, reference) * 100, 4)


def shared_texts() -> list[str]:
    folder = SHARED / "data" / "sft"
    if not folder.exists():
        pytest.skip(f"needs {folder}")
    texts = []
    for name in ("alpaca_zh_demo.json", "alpaca_en_demo.json"):
        texts += [row["output"] for row in json.loads((folder / name).read_text(encoding="utf-8"))]
    rows = json.loads((folder / "glaive_toolcall_zh_demo.json").read_text(encoding="utf-8"))
    return texts + [turn["value"] for row in rows for turn in row["conversations"]]


@pytest.mark.parametrize("literal", LITERALS)
def test_literals(literal):
    prediction, reference, *expected = literal
    for mine, wanted in zip(our_row(prediction, reference), expected, strict=True):
        assert wanted is None or mine == pytest.approx(wanted, abs=5.1e-5)


def test_a_mean_is_the_mean_of_the_rounded_rows_bit_for_bit():
    texts = [(prediction, reference) for prediction, reference, *_ in LITERALS]
    means = measure([one for one, _ in texts], [two for _, two in texts]).means()
    rows = [peer_row(*pair) for pair in texts]
    for place, name in enumerate(("rouge-1", "rouge-2", "rouge-l", "bleu-4")):
        assert means[name] == float(np.mean([row[place] for row in rows]))
    assert list(means) == ["accuracy", "bleu-4", "rouge-1", "rouge-2", "rouge-l"]


def test_accuracy_is_a_prefix_match_between_zero_and_one():
    score = measure(["A. 因为", "a", " A", "A", ""], ["A", "A", "A", "", ""])["accuracy"]
    assert score.value == 0.2
    assert score.scale == 1.0
    assert 0 < score.low < 0.2 < score.high < 1


def test_every_row_equals_the_packages_on_random_mixtures():
    generator = random.Random(20)
    for _ in range(3000):
        prediction, reference = ("".join(generator.choices(PIECES, k=generator.randint(0, 12))) for _ in range(2))
        assert our_row(prediction, reference) == peer_row(prediction, reference), (prediction, reference)


@given(st.lists(st.sampled_from(PIECES), max_size=14), st.lists(st.sampled_from(PIECES), max_size=14))
@settings(max_examples=300, deadline=None)
def test_every_row_equals_the_packages(prediction, reference):
    one, two = "".join(prediction), "".join(reference)
    assert our_row(one, two) == peer_row(one, two)


def real_pairs(count: int) -> list[tuple[str, str]]:
    """Answers of real data beside other answers, parts of their own, and themselves in another order."""
    texts = [text for text in shared_texts() if len(text) < 400]
    generator = random.Random(3)
    pairs = []
    for place in range(count):
        other, reference = generator.choice(texts), generator.choice(texts)
        clauses = reference.replace("。", "。\0").replace("，", "，\0").replace(". ", ". \0").split("\0")
        generator.shuffle(clauses)
        half = reference[: len(reference) // 2] + other[len(other) // 2 :]
        pairs.append(((other, half, "".join(clauses))[place % 3], reference))
    return pairs


def test_a_thousand_real_pairs_equal_the_packages_to_the_last_digit():
    pairs = real_pairs(1000)
    ours = measure([one for one, _ in pairs], [two for _, two in pairs], ("compat-rouge", "compat-bleu"))
    theirs = np.array([peer_row(*pair) for pair in pairs])
    for place, column in enumerate(ours.columns):
        assert column.rows.tolist() == theirs[:, place].tolist()
        assert column.value == float(np.mean(theirs[:, place].tolist()))
    assert len(set(theirs[:, 2])) > 500  # not a thousand zeros


def test_words_equal_jieba_on_real_texts():
    jieba = pytest.importorskip("jieba")
    for text in shared_texts():
        assert list(cut(text)) == list(jieba.cut(text))


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_words_equal_jieba_and_lose_nothing(text):
    jieba = pytest.importorskip("jieba")
    words = list(cut(text))
    assert words == list(jieba.cut(text))
    assert "".join(words) == text


def test_the_dictionary_is_cached_in_danlus_folder_and_loads_in_silence(tmp_path):
    script = "from danlu.evaluate.metrics.words import cut; assert cut('你好世界') == ('你好', '世界')"
    environment = {**os.environ, "DANLU_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "cache" / "jieba" / "jieba.cache").stat().st_size > 1_000_000
    assert not list((tmp_path / "tmp").iterdir())
