"""Prompts of the benchmark protocols, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.data.schema import Conversation
from danlu.evaluate.benchmarks.catalog import benchmark_named, benchmarks
from danlu.evaluate.benchmarks.files import open_files
from danlu.evaluate.benchmarks.loading import load_questions
from danlu.evaluate.benchmarks.protocols import Asked, ask, ask_again, ask_within
from danlu.evaluate.benchmarks.schema import Item

pytestmark = pytest.mark.golden

ITEM = Item("9", "logic", " 下列{哪}个____？", ("甲", "乙", "丙", "丁"))
DEMOS = [
    Item("0", "logic", "一加一？", ("1", "2", "3", "4"), ("B",), explanation="1. 数一数。\n2. 得二。"),
    Item("1", "logic", "二加二？", ("1", "2", "3", "4"), ("D",), explanation="1. 得四。"),
]
OPTIONS = "A. 甲\nB. 乙\nC. 丙\nD. 丁"
NUMBERS = "A. 1\nB. 2\nC. 3\nD. 4"
HEAD = "以下是中国关于逻辑学考试的单项选择题，请选出其中的正确答案。"


def asked(name: str, protocol: str, shots: int = 2, item: Item = ITEM, demos: list[Item] = DEMOS) -> Asked:
    benchmark = benchmark_named(name)
    return ask(benchmark, benchmark.protocols[protocol], item, demos[:shots])


def turns(question: Asked) -> list[tuple[str, str]]:
    assert isinstance(question.prompt, Conversation)
    return [(message.role, message.content) for message in question.prompt.messages]


def test_ceval_official() -> None:
    zero = f"{HEAD}\n\n 下列{{哪}}个____？\n{OPTIONS}\n答案："
    assert asked("ceval", "official", 0).prompt == zero
    two = asked("ceval", "official")
    assert two.prompt == (
        f"{HEAD}\n\n一加一？\n{NUMBERS}\n答案：B\n\n二加二？\n{NUMBERS}\n答案：D\n\n"
        f" 下列{{哪}}个____？\n{OPTIONS}\n答案："
    )
    assert (two.targets, two.shots) == (("A", "B", "C", "D"), 2)


def test_ceval_official_cot() -> None:
    assert asked("ceval", "official-cot", 1).prompt == (
        f"{HEAD}\n\n一加一？\n{NUMBERS}\n答案：让我们一步一步思考，\n1. 数一数。\n2. 得二。\n所以答案是B。\n\n"
        f" 下列{{哪}}个____？\n{OPTIONS}\n答案：让我们一步一步思考，\n1."
    )


def test_ceval_official_chat() -> None:
    system = f"你是一个中文人工智能助手，{HEAD}"
    question = f" 下列{{哪}}个____？\n{OPTIONS}\n答案："
    assert turns(asked("ceval", "official-chat", 1)) == [
        ("system", system),
        ("user", f"{HEAD}\n\n一加一？\n{NUMBERS}\n答案："),
        ("assistant", "B"),
        ("user", question),
    ]
    assert turns(asked("ceval", "official-chat-zero-shot", 0)) == [
        ("system", system),
        ("user", f"{HEAD}\n\n{question}"),
    ]
    assert turns(asked("ceval", "official-chat-cot", 1))[2] == (
        "assistant",
        "让我们一步一步思考，\n1. 数一数。\n2. 得二。\n所以答案是B。",
    )
    assert turns(asked("ceval", "tutorial-chat", 1))[:2] == [("system", HEAD), ("user", f"一加一？\n{NUMBERS}\n答案：")]


def test_ceval_as_other_tools_ask() -> None:
    one = asked("ceval", "lm-eval", 1)
    assert one.prompt == (
        "以下是中国关于逻辑学的单项选择题，请选出其中的正确答案。\n\n"
        f"一加一？\n{NUMBERS}\n答案： B\n\n下列{{哪}}个____？\n{OPTIONS}\n答案："
    )
    assert one.targets == (" A", " B", " C", " D")
    one = asked("ceval", "opencompass", 1)
    assert one.prompt == f"{HEAD}\n一加一？\n{NUMBERS}\n答案: \nB\n{HEAD}\n 下列{{哪}}个____？\n{OPTIONS}\n答案: "
    assert one.targets[1] == "\nB"
    assert turns(asked("ceval", "opencompass-chat", 1)) == [
        ("user", f"{HEAD}\n一加一？\n{NUMBERS}\n答案: "),
        ("assistant", "B"),
        ("user", f"{HEAD}\n 下列{{哪}}个____？\n{OPTIONS}\n答案: "),
    ]
    assert turns(asked("ceval", "llamafactory", 1)) == [
        ("user", f"{HEAD}\n\n一加一？\n{NUMBERS}\n答案："),
        ("assistant", "B"),
        ("user", f" 下列{{哪}}个____？\n{OPTIONS}\n答案："),
    ]


def test_chatglm2_asks_twice() -> None:
    first = asked("ceval", "chatglm2", 0)
    question = f" 下列{{哪}}个____？\n{OPTIONS}"
    assert first.prompt == f"[Round 1]\n\n问：{question}\n\n答："
    benchmark = benchmark_named("ceval")
    second = ask_again(benchmark, benchmark.protocols["chatglm2"], ITEM, first, "我想{是}乙。")
    assert second == f"[Round 1]\n\n问：{question}我想{{是}}乙。\n综上所述，ABCD中正确的选项是：\n\n答："


def test_cmmlu() -> None:
    item = Item("0", "agronomy", "题？", ("甲", "乙", "丙", "丁"))
    demo = Item("0", "agronomy", "例？", ("1", "2", "3", "4"), ("C",))
    head = "以下是关于农学的单项选择题，请直接给出正确答案的选项。"
    one = asked("cmmlu", "official", 1, item, [demo])
    assert one.prompt == f"{head}\n\n题目：例？\n{NUMBERS}\n答案是：C\n\n题目：题？\n{OPTIONS}\n答案是："
    one = asked("cmmlu", "lm-eval", 1, item, [demo])
    assert one.prompt == f"{head}\n\n例？\n{NUMBERS}\n答案： C\n\n题？\n{OPTIONS}\n答案："
    chat = turns(asked("cmmlu", "opencompass-chat", 1, item, [demo]))
    assert chat[:2] == [("user", f"{head}\n题目：例？\n{NUMBERS}\n答案是: "), ("assistant", "C")]


def test_mmlu() -> None:
    item = Item("0", "abstract_algebra", "Find it.", ("1", "2", "3", "4"))
    demo = Item("0", "abstract_algebra", "Find.", ("1", "2", "3", "4"), ("B",))
    one = asked("mmlu", "official", 1, item, [demo])
    assert one.prompt == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        f"Find.\n{NUMBERS}\nAnswer: B\n\nFind it.\n{NUMBERS}\nAnswer:"
    )
    assert one.targets == (" A", " B", " C", " D")


@pytest.mark.parametrize("name", sorted(benchmarks()))
def test_what_is_scored_is_what_demonstrations_show(name: str) -> None:
    benchmark = benchmark_named(name)
    subject = next(iter(benchmark.subjects))
    demo = Item("0", subject, "例？", ("甲", "乙", "丙", "丁"), ("C",), explanation="因为。")
    item = Item("1", subject, "题？", ("甲", "乙", "丙", "丁"))
    for protocol in benchmark.protocols.values():
        plain = protocol.of(benchmark.subjects[subject].kind)
        if plain.mode not in ("letter", "continuation"):
            continue
        zero, one = (ask(benchmark, plain, question, shown) for question, shown in ((demo, []), (item, [demo])))
        if isinstance(one.prompt, str):
            assert isinstance(zero.prompt, str)
            assert one.prompt.startswith(zero.prompt + zero.targets[2])
        else:
            assert ("assistant", zero.targets[2]) in turns(one)


def test_demonstrations_are_dropped_from_the_end() -> None:
    benchmark = benchmark_named("ceval")
    protocol = benchmark.protocols["official"]
    one = ask(benchmark, protocol, ITEM, DEMOS[:1])
    fitted = ask_within(benchmark, protocol, ITEM, DEMOS, length=len, room=len(one.prompt))  # type: ignore[arg-type]
    assert (fitted.prompt, fitted.shots, fitted.dropped) == (one.prompt, 1, 1)
    alone = ask_within(benchmark, protocol, ITEM, DEMOS, length=len, room=3)  # type: ignore[arg-type]
    assert (alone.prompt, alone.shots, alone.dropped) == (ask(benchmark, protocol, ITEM, []).prompt, 0, 2)


def test_the_published_questions(shared: Path) -> None:
    benchmark = benchmark_named("ceval")
    folder = open_files(benchmark, shared / "data" / "benchmarks" / "ceval")
    questions = load_questions(benchmark, folder, subjects=("computer_network",))
    item, demos = questions.items["computer_network"][1], questions.demos["computer_network"]
    prompt = ask(benchmark, benchmark.protocols["official"], item, demos).prompt
    assert isinstance(prompt, str)
    assert prompt.startswith(
        "以下是中国关于计算机网络考试的单项选择题，请选出其中的正确答案。\n\n"
        "下列设备属于资源子网的是____。\nA. 计算机软件\nB. 网桥\nC. 交换机\nD. 路由器\n答案：A\n\n"
        "滑动窗口的作用是____。\n"
    )
    assert prompt.endswith(
        "\n\n在802.3标准中，发送帧之前需要____\nA. 等待冲突\nB. 等待令牌\nC. 监听介质\nD. 接受一个帧\n答案："
    )
    assert prompt.count("答案：") == 6
