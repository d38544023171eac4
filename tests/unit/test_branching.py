"""Prompts with answers: what is shared, what is trained, what is cut, and what the counts say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_tokenizer import BARE, CHATML, GLM, UNSTABLE, make_template, talk, trained_text

from danlu.core.errors import DataError
from danlu.data.branching import encode_labelled, encode_pairs, encode_prompts, split_at_answers
from danlu.data.encode import BATCH, EncodingReport, EncodingRules
from danlu.data.schema import Conversation, Example, Message, Origin, Preference, Row, UnpairedPreference
from danlu.data.templates import Encoded, Template
from danlu.data.tokens import Item

WORDS = st.lists(st.sampled_from(["run", "folder", "丹炉", "<|im_end|>", "<|user|>", "\n", "é", "what"]), max_size=12)
TEXTS = WORDS.map(" ".join)
ANSWERS = TEXTS.filter(str.strip)
PROMPTS = st.lists(ANSWERS, min_size=1, max_size=5).map(lambda texts: texts[: (len(texts) - 1) // 2 * 2 + 1])
SOURCES = {"chatml": CHATML, "glm": GLM, "bare": BARE}
TEMPLATES = {name: make_template(source) for name, source in SOURCES.items()}
ENDS = {"chatml": "<|im_end|>", "glm": "<|end|>", "bare": "\n<|end|>"}
POLICIES = ("drop", "keep_start", "keep_end", "split")


def pair(prompt: Sequence[str], chosen: str, rejected: str, line: int = 1, **more: Any) -> Preference:
    origin = Origin("pairs.jsonl", line, line - 1)
    return Preference(
        talk(*prompt), Message("assistant", chosen), Message("assistant", rejected), origin=origin, **more
    )


def labelled(prompt: str, answer: str, wanted: bool = True, line: int = 1) -> UnpairedPreference:
    return UnpairedPreference(talk(prompt, answer), wanted, Origin("kto.jsonl", line, line - 1))


def encoded(
    encoder: Callable[..., Any], rows: Sequence[Row], template: Template | None = None, **rules: Any
) -> tuple[list[Item], EncodingReport]:
    report = EncodingReport()
    return list(encoder(rows, template or TEMPLATES["chatml"], EncodingRules(**rules), report)), report


def up_to_last_trained(whole: Encoded) -> Encoded:
    end = max(place for place, flag in enumerate(whole.trained) if flag) + 1
    return Encoded(whole.ids[:end], whole.trained[:end])


def only_last(prompt: Conversation, answer: Message) -> Conversation:
    muted = [Message(m.role, m.content, train=False if m.role == "assistant" else None) for m in prompt.messages]
    return Conversation((*muted, answer))


def joined(prompt: Encoded, answer: Encoded) -> Encoded:
    return Encoded(prompt.ids + answer.ids, prompt.trained + answer.trained)


def answer_text(template: Template, answer: Encoded) -> str:
    return "".join(trained_text(template, answer))


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=30)
@given(prompt=PROMPTS, chosen=ANSWERS, rejected=ANSWERS, margin=st.none() | st.floats(-2, 2, width=32))
def test_a_pair_is_two_whole_conversations(
    name: str, prompt: list[str], chosen: str, rejected: str, margin: float | None
) -> None:
    template = TEMPLATES[name]
    row = pair(prompt, chosen, rejected, margin=margin)
    (item,), report = encoded(encode_pairs, [row], template)
    shared, *answers = item.parts
    for answer, message in zip(answers, (row.chosen, row.rejected), strict=True):
        whole = up_to_last_trained(template.encode(only_last(row.prompt, message)))
        assert joined(shared, answer) == whole
        assert answer.ids[-1] in template.stop_ids
        assert answer.trained[-1]
    assert not any(shared.trained)
    assert template.prompt(row.prompt)[: len(shared.ids)] == shared.ids
    assert item.value == margin or (margin is None and math.isnan(item.value))
    assert (report.rows, report.sequences) == (1, 1)
    assert report.supervised == sum(sum(answer.trained) for answer in answers)
    assert report.tokens == sum(len(part.ids) for part in item.parts)
    assert report.longest == max(len(joined(shared, answer).ids) for answer in answers) + _tail(template, row)


def _tail(template: Template, row: Preference) -> int:
    """Tokens that the template writes after the end of an answer."""
    whole = template.encode(only_last(row.prompt, row.chosen))
    return len(whole.ids) - len(up_to_last_trained(whole).ids)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=30)
@given(prompt=PROMPTS, chosen=ANSWERS, rejected=ANSWERS, cutoff=st.integers(6, 60))
def test_a_pair_that_is_too_long(
    name: str, policy: str, prompt: list[str], chosen: str, rejected: str, cutoff: int
) -> None:
    template = TEMPLATES[name]
    control = template.tokenizer.control_ids  # type: ignore[attr-defined]
    items, report = encoded(
        encode_pairs, [pair(prompt, chosen, rejected)], template, cutoff_len=cutoff, truncation=policy
    )
    assert report.sequences + report.left_out + report.untrainable + report.refused == report.rows == 1
    assert len(items) == report.sequences
    assert report.untrainable == 0
    if report.longest > cutoff:
        assert report.too_long == 1
        assert policy != "drop" or not items
    for item in items:
        shared, *answers = item.parts
        assert not any(shared.trained)
        for answer, text in zip(answers, (chosen, rejected), strict=True):
            assert len(shared.ids) + len(answer.ids) <= cutoff
            told = answer_text(template, answer)
            whole = answer.ids[-1] in template.stop_ids
            end = ENDS[name] if whole else ""
            assert text.startswith(told.removesuffix(end))
            assert (told == text + end) == whole  # what was cut does not learn to stop there
        if name == "chatml":  # every turn is opened and closed
            turns = [number for number in shared.ids if number in control]
            start, end = (template.tokenizer.get_added_vocab()[text] for text in ("<|im_start|>", "<|im_end|>"))
            assert turns == [start, end] * (len(turns) // 2) + [start]


def test_the_prompt_ends_where_answers_differ_before_they_are_trained() -> None:
    first = Encoded([1, 2, 3, 7, 8], [False, False, False, True, True])
    second = Encoded([1, 2, 4, 7, 8, 9], [False, False, False, True, True, False])
    assert split_at_answers(first, second) == (
        Encoded([1, 2], [False, False]),
        Encoded([3, 7, 8], [False, True, True]),
        Encoded([4, 7, 8], [False, True, True]),
    )


@pytest.mark.parametrize("policy", ["keep_start", "keep_end", "split"])
def test_the_answers_of_a_long_conversation_are_kept(policy: str) -> None:
    """They are what the pair is about: earlier turns go first, whatever end of a text is kept."""
    template = TEMPLATES["chatml"]
    row = pair(["one?", "first " * 8, "two?", "second " * 8, "three?"], "good", "bad")
    cutoff = len(template.encode(only_last(talk("three?"), Message("assistant", "good"))).ids) + 4
    (item,), report = encoded(encode_pairs, [row], template, cutoff_len=cutoff, truncation=policy)
    assert [answer_text(template, part) for part in item.parts[1:]] == ["good<|im_end|>", "bad<|im_end|>"]
    assert "three?" in template.tokenizer.decode(item.parts[0].ids)
    assert report.untrainable == 0


def test_both_answers_keep_one_prompt_when_they_leave_it_different_room() -> None:
    template = TEMPLATES["chatml"]
    prompt = "what is a run " * 12
    for chosen, rejected in (("run " * 30, "folder"), ("folder", "run " * 30), ("run " * 30, "folder " * 25)):
        (item,), report = encoded(
            encode_pairs, [pair([prompt], chosen, rejected)], template, cutoff_len=60, truncation="keep_start"
        )
        assert report.too_long == 1
        text = template.tokenizer.decode(item.parts[0].ids)
        assert text.startswith("what is a run") or "what is a run" in text


def test_too_long_is_an_error_where_that_is_asked() -> None:
    with pytest.raises(DataError, match=r"pairs\.jsonl:1.*cutoff_len=10"):
        encoded(encode_pairs, [pair(["what " * 20], "a", "b")], cutoff_len=10, truncation="error")


def test_a_template_that_rewrites_earlier_turns() -> None:
    """Only the last answer is trained, so what a template does to earlier ones is the prompt's business."""
    template = make_template(UNSTABLE)
    row = pair(["q", "<think>x</think>a", "again"], "<think>y</think>b", "c")
    (item,), report = encoded(encode_pairs, [row], template)
    prompt = template.tokenizer.decode(item.parts[0].ids, skip_special_tokens=False)
    assert "<think>" not in prompt
    assert answer_text(template, item.parts[1]) == "<think>y</think>b<|im_end|>"
    assert report.refused == 0


def test_what_a_template_refuses_is_counted() -> None:
    source = "{%- if messages|length > 2 -%}{{ raise_exception('one turn only') }}{%- endif -%}" + CHATML
    rows = [pair(["a", "b", "c"], "d", "e", line=4), pair(["a"], "b", "c")]
    items, report = encoded(encode_pairs, rows, make_template(source))
    assert [item.row for item in items] == [1]
    assert (report.rows, report.sequences, report.refused) == (2, 1, 1)
    assert "pairs.jsonl:4" in report.examples["refused"][0]
    assert "one turn only" in report.examples["refused"][0]


def test_a_pair_without_any_prompt_is_not_trained() -> None:
    """Nothing stands before the first token, so nothing could predict it."""
    empty = make_template("{%- for message in messages -%}{{ message.content }}{%- endfor -%}")
    items, report = encoded(encode_pairs, [pair([""], "b", "c"), pair(["a"], "b", "c")], empty)
    assert [item.row for item in items] == [1]
    assert report.untrainable == 1


def test_pairs_whose_answers_are_the_same_are_counted() -> None:
    rows = [pair(["a"], "same", "same", line=3), pair(["a"], "b", "c"), pair(["a"], "x " * 40, "x " * 39 + "y")]
    items, report = encoded(encode_pairs, rows, cutoff_len=30, truncation="keep_start")
    assert len(items) == 3
    assert report.same == 2  # the last one only after it was cut
    assert report.examples["same"] == ["pairs.jsonl:3", "pairs.jsonl:1"]


def test_budgets_cut_both_answers_and_leave_the_prompt_shared() -> None:
    template = TEMPLATES["chatml"]
    row = pair(["what is a run " * 5], "run " * 9, "folder")
    (item,), report = encoded(encode_pairs, [row], template, max_source_length=4, max_target_length=3)
    assert report.shortened == 1
    assert len(template.content_ids(answer_text(template, item.parts[1]))) <= 4
    assert item.parts[1].ids[-1] not in template.stop_ids
    assert answer_text(template, item.parts[2]).endswith("<|im_end|>")


@settings(max_examples=30)
@given(
    rows=st.lists(st.tuples(st.sampled_from("abcd"), ANSWERS, st.booleans()), min_size=2, max_size=9),
    name=st.sampled_from(sorted(SOURCES)),
)
def test_labelled_answers_and_answers_to_other_prompts(rows: list[tuple[str, str, bool]], name: str) -> None:
    assume(len({prompt for prompt, _, _ in rows}) > 1)
    template = TEMPLATES[name]
    given_rows = [labelled(*row, line=number + 1) for number, row in enumerate(rows)]
    items, report = encoded(encode_labelled, given_rows, template)
    assert [item.row for item in items] == list(range(len(rows)))
    assert [item.value for item in items] == [float(wanted) for _, _, wanted in rows]
    for item, (prompt, answer, _) in zip(items, rows, strict=True):
        shared, own, foreign = item.parts
        whole = up_to_last_trained(template.encode(talk(prompt, answer)))
        assert joined(shared, own) == whole
        others = [up_to_last_trained(template.encode(talk(prompt, text))) for ask, text, _ in rows if ask != prompt]
        assert joined(shared, foreign) in others
    assert report.supervised == sum(sum(item.parts[1].trained) for item in items)  # the foreign one teaches nothing
    wanted = sum(wanted for _, _, wanted in rows)
    assert (report.wanted, report.unwanted) == (wanted, len(rows) - wanted)


def test_a_pair_is_a_wanted_and_an_unwanted_answer() -> None:
    rows = [pair(["a"], "good", "bad"), pair(["b"], "fine", "poor")]
    items, report = encoded(encode_labelled, rows)
    texts = [[answer_text(TEMPLATES["chatml"], part).removesuffix("<|im_end|>") for part in i.parts[1:]] for i in items]
    assert texts == [["good", "fine"], ["bad", "fine"], ["fine", "good"], ["poor", "good"]]
    assert [item.value for item in items] == [1, 0, 1, 0]
    assert [item.row for item in items] == [0, 0, 1, 1]
    assert report.rows == 2


@pytest.mark.parametrize("count", [BATCH + 1, BATCH + 2])
def test_the_last_batch_of_rows_may_hold_one_prompt(count: int) -> None:
    """The answers to other prompts are then those of the batch before."""
    rows = [labelled(str(min(number, BATCH)), f"answer {number % 7}") for number in range(count)]
    items, _ = encoded(encode_labelled, rows)
    assert len(items) == count
    assert "answer" in answer_text(TEMPLATES["chatml"], items[-1].parts[2])


def test_one_prompt_alone_is_refused() -> None:
    with pytest.raises(DataError, match=r"kto\.jsonl:2.*only one prompt.*two different prompts"):
        encoded(encode_labelled, [labelled("a", "b", line=2), labelled("a", "c")])


@pytest.mark.parametrize("policy", ["drop", "keep_start", "error"])
def test_a_long_answer_to_another_prompt_costs_nothing(policy: str) -> None:
    """It is only there for the KL estimate: it is cut, and the row is not."""
    template = TEMPLATES["chatml"]
    whole = up_to_last_trained(template.encode(talk("what is a run", "a folder")))
    cutoff = len(template.encode(talk("what is a run", "a folder")).ids) + 5
    rows = [labelled("what is a run", "a folder"), labelled("b", "run " * 8, wanted=False)]
    short = len(template.encode(talk("b", "run " * 8)).ids)
    assert short > len(whole.ids)
    items, report = encoded(encode_labelled, rows[:1] + rows[1:], template, cutoff_len=max(cutoff, short))
    assert (len(items), report.too_long) == (2, 0)
    rows[1] = labelled("b", "run " * 60, wanted=False)
    if policy == "error":
        with pytest.raises(DataError, match="cutoff_len"):
            encoded(encode_labelled, rows, template, cutoff_len=cutoff, truncation=policy)
        return
    items, report = encoded(encode_labelled, rows, template, cutoff_len=cutoff, truncation=policy)
    assert joined(items[0].parts[0], items[0].parts[1]) == whole
    assert len(items[0].parts[0].ids) + len(items[0].parts[2].ids) == cutoff
    assert report.too_long == 1  # the row itself
    assert len(items) == (1 if policy == "drop" else 2)


@settings(max_examples=30)
@given(prompt=PROMPTS, cutoff=st.integers(4, 60), name=st.sampled_from(sorted(SOURCES)))
def test_prompts(prompt: list[str], cutoff: int, name: str) -> None:
    template = TEMPLATES[name]
    rows = [Example(talk(*prompt)), Example(talk(*prompt, "an answer")), pair(prompt, "a", "b")]
    items, report = encoded(encode_prompts, rows, template, cutoff_len=cutoff)
    ids = template.prompt(talk(*prompt))
    assert report.longest == len(ids)
    assert (report.rows, report.sequences, report.left_out) == (3, len(items), 3 - len(items))
    assert len(items) == (3 if len(ids) <= cutoff else 0)
    assert all(item.parts == (Encoded(ids, [False] * len(ids)),) for item in items)
    assert report.too_long == report.left_out
    assert (report.tokens, report.supervised) == (len(items) * len(ids), 0)


def test_a_prompt_that_is_cut_to_its_budget_is_counted() -> None:
    items, report = encoded(encode_prompts, [Example(talk("what is a run " * 9))], max_source_length=4)
    assert len(items) == 1
    assert report.shortened == 1


@pytest.mark.parametrize("encoder", [encode_pairs, encode_labelled])
def test_text_before_the_first_question(encoder: Callable[..., Any]) -> None:
    rows = [pair(["a"], "b", "c"), pair(["d"], "e", "f")]
    items, _ = encoded(encoder, rows, source_prefix="Briefly: ")
    assert "Briefly: a" in TEMPLATES["chatml"].tokenizer.decode(items[0].parts[0].ids)
