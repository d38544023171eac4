"""Rules on the form of answers: patterns, length, words, layout, language, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import RunError, UsageError
from danlu.evaluate.metrics import measure
from danlu.evaluate.metrics.form import COUNTERS, FEATURES, features_of, language_of
from danlu.evaluate.metrics.structured import NO_JSON, parsed


def rows(metric: str, texts: list[str], references: list[str] | None = None, **options: Any) -> list[float]:
    return measure(texts, references, metric, options=options).columns[0].rows.tolist()


def test_a_pattern_is_found_or_is_all() -> None:
    texts = ["答案是 A", "A", " A \n", "答案是B"]
    assert rows("regex", texts, pattern="[A-D]$") == [100, 100, 100, 100]
    assert rows("regex", texts, pattern="[A-D]", full=True) == [0, 100, 100, 0]
    assert rows("regex", ["我的电话是13800138000。"], pattern=r"\b1[3-9]\d{9}\b") == [0]
    assert rows("regex", ["我的电话是13800138000。"], pattern=r"(?<!\d)1[3-9]\d{9}(?!\d)") == [100]
    with pytest.raises(UsageError, match="not a regular expression"):
        rows("regex", texts, pattern="(")


@pytest.mark.parametrize(
    ("unit", "text", "count"),
    [
        ("character", "你 好\n", 2),
        ("word", "使用LoRA微调 3.14！", 6),
        ("sentence", "你好！再见。“走吧。”他说。", 4),
        ("sentence", "It is 3.14 m long. Really?", 2),
        ("sentence", "", 0),
        ("line", "a\n\n b \n", 2),
        ("paragraph", "a\nb\n \nc\n\n\n", 2),
    ],
)
def test_units_of_length(unit: str, text: str, count: int) -> None:
    assert COUNTERS[unit](text) == count


def test_length_within_bounds_and_its_mean() -> None:
    measured = measure(["你好", "你好吗", "你"], None, "length", options={"min": 2, "max": 2})
    assert measured["length-ok"].value == pytest.approx(100 / 3)
    assert measured["length"].value == 2.0
    assert measured["length"].scale == 0
    with pytest.raises(UsageError, match="unknown unit"):
        rows("length", ["a"], unit="token")
    with pytest.raises(UsageError, match="no answer has 3 to 2"):
        rows("length", ["a"], min=3, max=2)


def test_words_that_must_and_must_not_be_there() -> None:
    texts = ["红色和绿色", "the CAT sat", "concatenate", "ＣＡＴ，红"]
    assert rows("keywords", texts, must=["cat"]) == [0, 100, 0, 100]
    assert rows("keywords", texts, must="红", forbid=["绿"]) == [0, 0, 0, 100]
    assert rows("keywords", ["the red cat", "cat red"], must=["red cat"]) == [100, 0]
    assert rows("keywords", ["在 2026 年", "在2026年"], must=["2026年"]) == [100, 100]
    for wrong in ({}, {"must": [""]}, {"forbid": "。"}):
        with pytest.raises(UsageError):
            rows("keywords", texts, **wrong)


LAYOUTS = {
    "title": "# 标题\n正文",
    "heading": "正文\n## 小标题",
    "bullets": "有：\n- a\n- b",
    "numbered": "1. 甲\n   细节\n2. 乙",
    "table": "| a | b |\n|---|:-:|\n| 1 | 2 |",
    "code": "```python\nprint(1)\n```",
    "bold": "这是**重点**。",
}


def test_every_feature_of_a_layout() -> None:
    assert LAYOUTS.keys() == FEATURES.keys()
    for name, text in LAYOUTS.items():
        assert features_of(text) == {name} | ({"heading"} if name == "title" else set())
    plain = "2 * 3 * 4，- 一条，1. 只有一条\n| 不是表格 |\n#标签"
    assert features_of(plain) == set()
    assert features_of("```\n# no\n- a\n- b\n```") == {"code"}


def test_layout() -> None:
    texts = [*LAYOUTS.values(), "纯文本"]
    assert sum(rows("layout", texts, lacks=list(FEATURES))) == 100
    assert rows("layout", ["- a\n- b\n\n**c**", "- a\n- b"], has="bullets", lacks="bold") == [0, 100]
    for wrong in ({}, {"has": "colour"}):
        with pytest.raises(UsageError, match="feature"):
            rows("layout", texts, **wrong)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("今天天气很好", "zh"),
        ("使用 PyTorch 训练", "zh"),
        ("It is fine", "en"),
        ("In Chinese it is 好", "en"),
        ("3.14", None),
        ("Привет мир", "other"),
        ("", None),
    ],
)
def test_language_of_a_text(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_language_expected_or_that_of_the_reference() -> None:
    texts, references = ["你好", "hello", "42", "hello"], ["世界", "世界", "世界", "42"]
    assert rows("language", texts, references) == [100, 0, 100, 100]
    assert rows("language", texts, None, expected="en") == [0, 100, 100, 100]
    with pytest.raises(UsageError, match="no references"):
        rows("language", texts)


@pytest.mark.parametrize(
    ("text", "kind", "right"),
    [
        ('{"a": 1}', "object", True),
        ('```json\n{"a": 1}\n```', "object", True),
        ("[1]", "object", False),
        ("[1]", "array", True),
        ("1", "any", True),
        ("null", "any", True),
        ('好的：{"a": 1}', "any", False),
        ("{'a': 1}", "any", False),
        ("NaN", "any", False),
        ('{"a": 1, "a": 2}', "any", False),
        ("", "any", False),
        ("[" * 100_000, "any", False),
    ],
)
def test_json(text: str, kind: str, right: bool) -> None:
    assert rows("json", [text], kind=kind) == [100 * right]


def test_json_without_a_fence_and_of_unknown_kind() -> None:
    assert rows("json", ["```json\n1\n```", "1"], fence=False) == [0, 100]
    assert parsed("null") is None
    assert parsed("nul") is NO_JSON
    with pytest.raises(UsageError, match="unknown kind"):
        rows("json", ["1"], kind="number")


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
TEXTS = ['{"name": "丹", "age": 3}', '{"name": ""}', '{"age": 3}', '{"name": "a", "b": 1}', "名字是丹", '{"name": "a"}']


def test_json_schema(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(SCHEMA), encoding="utf-8")
    assert rows("json-schema", TEXTS, schema=str(file)) == [100, 0, 0, 0, 0, 100]
    assert rows("json-schema", TEXTS, schema=SCHEMA) == [100, 0, 0, 0, 0, 100]
    (column,) = measure(TEXTS, None, "json-schema", options={"schema": SCHEMA}).columns
    assert "Draft202012" in column.protocol
    draft = {"$schema": "http://json-schema.org/draft-07/schema#", **SCHEMA}
    assert "Draft7" in measure(TEXTS, None, "json-schema", options={"schema": draft}).columns[0].protocol


def test_what_is_no_schema_is_told(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    with pytest.raises(UsageError, match="no valid JSON schema"):
        rows("json-schema", TEXTS, schema={"type": "objekt"})
    with pytest.raises(RunError, match="no such file"):
        rows("json-schema", TEXTS, schema=str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match="cannot be applied"):
        rows("json-schema", TEXTS, schema={"$ref": "https://example.com/other.json"})
