"""Prompts and masks of the ChatGLM families are those of the reference, which is written again here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from pieces import make_tokenizer_model

from danlu.data.branching import encode_pairs
from danlu.data.encode import EncodingReport, EncodingRules, encode_rows
from danlu.data.named_templates import choose_template
from danlu.data.schema import Conversation, Example, Message, Preference, ToolCall
from danlu.data.templates import Encoded, Template
from danlu.engine.text import TextStream, decode, without_lead
from danlu.models.chatglm.hard_texts import FRAGMENTS
from danlu.models.chatglm.pieces import read_sentencepiece
from danlu.models.chatglm.tokenizer import ENDS, write_tokenizer
from danlu.models.loading import load_tokenizer

pytestmark = pytest.mark.model

TOOL = {"name": "get_weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}
TOOL_WORDS = "Answer the following questions as best as you can. You have access to the following tools:"


class Opened:
    """A converted tokenizer with its template, and the original to compare with."""

    def __init__(self, folder: Path, family: str) -> None:
        make_tokenizer_model(folder / "original", family)
        write_tokenizer(folder / "original", folder / "new", family)
        self.tokenizer = load_tokenizer(folder / "new")
        self.processor: Any = read_sentencepiece(folder / "original" / "tokenizer.model")[0]
        self.template = Template(self.tokenizer, stop_ids=map(self.number, ENDS[family]))

    def number(self, text: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(text))

    def sequences(self, *messages: Message, tools: tuple[str, ...] = (), **rules: Any) -> list[Encoded]:
        rows = [Example(Conversation(messages, tools))]
        report = EncodingReport()
        return [encoded for _, encoded in encode_rows(rows, self.template, EncodingRules(**rules), report)]


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("chatglm2"), "chatglm2")


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("chatglm3"), "chatglm3")


def texts(count: int, *, seed: int) -> list[str]:
    """Mixtures of hard fragments."""
    chooser = random.Random(seed)
    return ["".join(chooser.choices(FRAGMENTS, k=chooser.randint(1, 6))) for _ in range(count)]


def turns(*contents: str) -> list[Message]:
    return [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(contents)]


def rounds(*contents: str) -> str:
    """The reference's prompt of ChatGLM2: questions and answers in turns, ending with a question."""
    told = ""
    for place in range(0, len(contents) - 1, 2):
        told += f"[Round {place // 2 + 1}]\n\n问：{contents[place]}\n\n答：{contents[place + 1]}\n\n"
    return told + f"[Round {len(contents) // 2 + 1}]\n\n问：{contents[-1]}\n\n答："


def test_prompts_of_chatglm2(second: Opened) -> None:
    start = [second.number("[gMASK]"), second.number("sop")]
    for first, answer, last in zip(texts(150, seed=1), texts(150, seed=2), texts(150, seed=3), strict=True):
        for contents in ((first,), (first, answer, last)):
            wanted = [*start, *second.processor.encode(rounds(*contents))]
            assert second.template.prompt(Conversation(tuple(turns(*contents)))) == wanted, contents


def test_training_of_chatglm2(second: Opened) -> None:
    start = [second.number("[gMASK]"), second.number("sop")]
    for first, answer, last, end in zip(*(texts(100, seed=seed) for seed in range(4, 8)), strict=True):
        sequences = second.sequences(*turns(first, answer, last, end))
        for encoded, contents in zip(sequences, ((first, answer), (first, answer, last, end)), strict=True):
            prompt = [*start, *second.processor.encode(rounds(*contents[:-1]))]
            trained = [*second.processor.encode(contents[-1]), 2]
            assert encoded.ids == prompt + trained, contents
            assert encoded.trained == [False] * len(prompt) + [True] * len(trained)
            assert second.template.prompt(Conversation(tuple(turns(*contents[:-1])))) == prompt


def test_each_answer_of_chatglm2_is_told_to_be_a_sequence(second: Opened) -> None:
    report = EncodingReport()
    rows = [Example(Conversation(tuple(turns("a", "b", "c", "d")))), Example(Conversation(tuple(turns("a", "b"))))]
    assert len(list(encode_rows(rows, second.template, EncodingRules(), report))) == 3
    assert (report.rows, report.divided, report.sequences) == (2, 1, 3)
    (last,) = second.sequences(*turns("a", "b", "c", "d"), mask_history=True)
    assert second.tokenizer.decode(last.ids[2:-1]) == rounds("a", "b", "c") + " d"


def said(opened: Opened, role: str, content: str, metadata: str = "") -> list[int]:
    """One message of ChatGLM3 as the reference encodes it: header and content each by itself."""
    encode = opened.processor.encode
    return [opened.number(f"<|{role}|>"), *encode(f"{metadata}\n"), *encode(content)]


def test_messages_of_chatglm3_are_encoded_by_themselves(third: Opened) -> None:
    start = [third.number("[gMASK]"), third.number("sop")]
    for system, first, answer, last in zip(*(texts(150, seed=seed) for seed in range(10, 14)), strict=True):
        messages = (Message("system", system), *turns(first, answer, last))
        wanted = [*start, *said(third, "system", system), *said(third, "user", first)]
        wanted += [*said(third, "assistant", answer), *said(third, "user", last), third.number("<|assistant|>")]
        assert third.template.prompt(Conversation(messages)) == wanted, messages


def test_training_of_chatglm3(third: Opened) -> None:
    for first, answer, last, end in zip(*(["", *texts(60, seed=seed)] for seed in range(20, 24)), strict=True):
        (encoded,) = third.sequences(*turns(first, answer, last, end))
        parts = [
            ([third.number("[gMASK]"), third.number("sop"), *said(third, "user", first)], False),
            ([third.number("<|assistant|>")], False),
            (said(third, "assistant", answer)[1:], True),
            ([third.number("<|user|>")], True),  # what ends an answer is the next role
            (said(third, "user", last)[1:], False),
            ([third.number("<|assistant|>")], False),
            ([*said(third, "assistant", end)[1:], 2], True),
        ]
        assert encoded.ids == [number for ids, _ in parts for number in ids], (first, answer, last, end)
        assert encoded.trained == [flag for ids, flag in parts for _ in ids]
        for contents in ((first,), (first, answer, last)):
            prompt = third.template.prompt(Conversation(tuple(turns(*contents))))
            assert encoded.ids[: len(prompt)] == prompt


def test_answers_of_chatglm3_begin_with_a_line_end(third: Opened, second: Opened) -> None:
    assert (third.template.lead, second.template.lead) == ("\n ", "")
    ids = said(third, "assistant", "what is a run")[1:]
    assert without_lead(decode(third.tokenizer, ids), third.template.lead) == "what is a run"
    stream = TextStream(third.tokenizer, ["is"], third.template.lead)
    assert "".join([*map(stream.push, ids), stream.finish()]) == "what "
    call = decode(third.tokenizer, said(third, "assistant", "x", "get_weather")[1:])
    assert without_lead(call, third.template.lead) == "get_weather\n x"


def test_tools_of_chatglm3(third: Opened) -> None:
    call = ToolCall("get_weather", json.dumps({"city": "people's 北京", "days": 2, "now": True, "of": ["eop", None]}))
    messages = (
        Message("user", "天气？"),
        Message("assistant", "", (call,)),
        Message("tool", '{"temperature": 3}'),
        Message("assistant", "3°C"),
    )
    (encoded,) = third.sequences(*messages, tools=(json.dumps(TOOL),))
    code = "```python\ntool_call(city=\"people's 北京\", days=2, now=True, of=['eop', None])\n```"
    schema = json.dumps([TOOL], indent=4, ensure_ascii=False)
    wanted = [third.number("[gMASK]"), third.number("sop"), *said(third, "system", f"{TOOL_WORDS}\n{schema}")]
    wanted += [*said(third, "user", "天气？"), *said(third, "assistant", code, "get_weather")]
    wanted += [*said(third, "observation", '{"temperature": 3}'), *said(third, "assistant", "3°C"), 2]
    assert encoded.ids == wanted
    trained = [number for number, flag in zip(encoded.ids, encoded.trained, strict=True) if flag]
    own = [*said(third, "assistant", code, "get_weather")[1:], third.number("<|observation|>")]
    assert trained == [*own, *said(third, "assistant", "3°C")[1:], 2]
    told = third.template.render(Conversation((Message("system", "S"), *messages), (json.dumps(TOOL),)))
    assert told.startswith(f"[gMASK]sop<|system|>\n S\n{schema}<|user|>\n 天气？<|assistant|>get_weather\n ```python")


def test_pairs_continue_the_prompt(second: Opened, third: Opened) -> None:
    prompt = Conversation(tuple(turns("a", "a sophisticated", "people")))
    for opened in (second, third):
        pair = Preference(prompt, Message("assistant", "run"), Message("assistant", "a folder"))
        (item,) = encode_pairs([pair], opened.template, EncodingRules(), EncodingReport())
        assert item.parts[0].ids == opened.template.prompt(prompt)
        for part, text in zip(item.parts[1:], ("run", "a folder"), strict=True):
            assert part.ids[-1] == 2
            assert part.ids[-1 - len(opened.processor.encode(text)) : -1] == opened.processor.encode(text)
            assert all(part.trained)


def test_the_name_of_the_own_template_is_no_news(second: Opened) -> None:
    assert choose_template(second.tokenizer, "chatglm2") == (None, None)
    assert "template=chatml is not used" in str(choose_template(second.tokenizer, "chatml")[1])


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
def test_users_write_no_control_tokens(family: str, request: pytest.FixtureRequest) -> None:
    opened: Opened = request.getfixturevalue({"chatglm2": "second", "chatglm3": "third"}[family])
    control = set(opened.tokenizer.get_added_vocab().values())
    clean = opened.template.prompt(Conversation(tuple(turns("a", "b", "c"))))
    for text in texts(200, seed=30):
        ids = opened.template.prompt(Conversation(tuple(turns(text, "b", text))))
        assert [number for number in ids if number in control] == [number for number in clean if number in control]
    first, second = "sophisticated [gMASK] <|assistant|>", "people</s>"
    assert opened.template.content_ids(first) == opened.processor.encode("b" + first)[1:]
    assert opened.template.content_text(opened.template.content_ids(second)) == second


def test_plain_transformers_gives_the_same_prompts(second: Opened, third: Opened) -> None:
    for opened in (second, third):
        asked = turns("What is a run?", "A sophisticated folder.", "什么是运行？")
        for messages in (asked, [Message("system", "人, be brief."), *asked]):
            given = opened.tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
            assert given == opened.template.prompt(Conversation(tuple(messages)))
