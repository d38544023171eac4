from __future__ import annotations

import pytest

from danlu.core.errors import UsageError
from danlu.evaluate.benchmarks.catalog import benchmarks
from danlu.evaluate.benchmarks.extracting import (
    MATCHES,
    Step,
    extract,
    extractor_named,
    extractors,
    same_choices,
    same_text,
)  # fmt: skip
from danlu.evaluate.benchmarks.schema import Item

ITEM = Item("0", "s", "?", ("流量控制", "拥塞控制", "路由", "差错"), ("B",))

REPLIES = [
    ("choice", "B", "B"),
    ("choice", "Ｂ。", "B"),
    ("choice", "（C）", "C"),
    ("choice", "答案是B。", "B"),
    ("choice", "A和C都不对，因此正确答案应为：D", "D"),
    ("choice", "The correct answer is (C).", "C"),
    ("choice", "Answer: Let's see", None),
    ("choice", "A lot of people would say so", None),
    ("choice", "I think A is right", "A"),
    ("choice", "我先想答案是A。不对，答案是 C", "C"),
    ("choice", "<think>答案是A</think>\n\n答案：**D**", "D"),
    ("choice", "答案是A</think>B", "B"),
    ("choice", r"所以 $\boxed{C}$", "C"),
    ("choice", "故选D", "D"),
    ("choice", "选项B正确", "B"),
    ("choice", "这里说的是拥塞控制。", "B"),
    ("choice", "流量控制或拥塞控制", None),
    ("choice", "", None),
    ("letter-only", "b.", "B"),
    ("letter-only", "B. 拥塞控制", None),
    ("first-capital", "我选 C，不选 A", "C"),
    ("first-capital", "E", None),
    ("ceval-chat", "D. 差错", "D"),
    ("ceval-chat", "选C", "C"),
    ("ceval-chat", "答案是A？不，答案是选项B", "B"),
    ("ceval-chat", "答案：C", "C"),
    ("ceval-chat", "不知道", None),
    ("ceval-cot", "让我们思考。答案是A。再想，答案是 C 。", "C"),
    ("ceval-cot", "答案是A。所以答案是流量控制。", None),
    ("ceval-cot", "选项B是正确的。", "B"),
    ("ceval-chatglm", "所以答案是流量控制。选项C正确", "C"),
    ("ceval-chatglm", "大概是 D 吧", "D"),
    ("answer-line", "想一想\n答案: (c)", "C"),
]


@pytest.mark.parametrize(("name", "reply", "answer"), REPLIES)
def test_replies(name: str, reply: str, answer: str | None) -> None:
    assert extract(name, reply, ITEM) == answer


def test_every_extractor_is_tried_and_says_where_it_is_from() -> None:
    assert {name for name, _, _ in REPLIES} | {"text"} <= set(extractors())
    for extractor in extractors().values():
        assert extractor.about
        assert extractor.source


def test_protocols_name_what_exists() -> None:
    for benchmark in benchmarks().values():
        for protocol in benchmark.protocols.values():
            for kind in ("", *protocol.kinds):
                extractor_named(protocol.of(kind).extractor)
                assert protocol.of(kind).match in MATCHES


def test_letters_follow_the_choices() -> None:
    five = Item("0", "s", "?", tuple("vwxyz"), ("E",))
    assert extract("choice", "答案是E", five) == "E"
    assert extract("choice", "答案是E", ITEM) is None


def test_several_letters() -> None:
    step = Step(find=r"([<letters>])", take="all")
    assert step.take == "all"
    several = Item("0", "s", "?", tuple("wxyz"), ("A", "C"))
    assert same_choices("CA", several)
    assert not same_choices("A", several)


def test_texts() -> None:
    item = Item("0", "s", "?", (), ("Beijing", "北京"))
    assert same_text(" beijing.", item)
    assert same_text("北京。", item)
    assert not same_text("Nanjing", item)
    assert extract("text", " 北京 ", item) == "北京"


@pytest.mark.parametrize(
    "values", [{}, {"find": "(a)", "rule": "exact"}, {"find": "a"}, {"find": "(a"}, {"rule": "guess"}]
)
def test_wrong_steps(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="step|pattern|rule"):
        Step(**values)  # type: ignore[arg-type]


def test_unknown_extractor() -> None:
    with pytest.raises(UsageError, match="Did you mean ceval-cot"):
        extractor_named("ceval-cott")
