"""Rows that are too long: whatever is cut, headers and marks stay whole and no half answer learns to stop."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizer import BARE, CHATML, GLM, make_template, talk

from danlu.core.errors import DataError
from danlu.data.fitting import Fitted, fit, within_budgets
from danlu.data.schema import NOWHERE, Conversation

WORDS = st.lists(
    st.sampled_from(["run", "folder", "丹炉", "<|im_end|>", "<|user|>", "\n", "é", "what is"]), max_size=25
)
TALKS = st.lists(WORDS.map(" ".join), min_size=2, max_size=6).map(lambda texts: texts[: len(texts) // 2 * 2])
SOURCES = {"chatml": CHATML, "glm": GLM, "bare": BARE}
POLICIES = ("keep_start", "keep_end", "split")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=40)
@given(texts=TALKS, cutoff=st.integers(8, 80), system=st.sampled_from([None, "be short"]))
def test_what_fits(name: str, policy: str, texts: list[str], cutoff: int, system: str | None) -> None:
    template = make_template(SOURCES[name])
    control = template.tokenizer.control_ids  # type: ignore[attr-defined]
    conversation = talk(*texts, system=system)
    for item in fit(Fitted(conversation), template, cutoff, policy, NOWHERE):  # type: ignore[arg-type]
        encoded = template.encode(item.conversation, unfinished=item.unfinished)
        assert len(encoded.ids) <= cutoff
        # As many control tokens as the template writes for so many turns: none was cut, none was let in.
        bare = Conversation(tuple(type(m)(m.role, "x") for m in item.conversation.messages))
        expected = [n for n in template.encode(bare, unfinished=item.unfinished).ids if n in control]
        assert [number for number in encoded.ids if number in control] == expected
        assert item.conversation.system == system or len(system or "") > len(item.conversation.system or "")
        for index, message in enumerate(item.conversation.messages):
            if index not in item.unfinished:
                assert message.content in {system, *texts}
        answers = [index for index, m in enumerate(item.conversation.messages) if m.role == "assistant"]
        ends = sum(flag and number in control for number, flag in zip(encoded.ids, encoded.trained, strict=True))
        if name == "chatml":
            assert ends == len([index for index in answers if index not in item.unfinished])


def test_start_end_and_parts() -> None:
    template = make_template()
    conversation = talk("one?", "first", "two?", "second", "three?", "third", system="s")
    cutoff = len(template.encode(talk("three?", "second", system="s")).ids) + 2

    def answers(policy: str) -> list[list[str]]:
        fitted = fit(Fitted(conversation), template, cutoff, policy, NOWHERE)  # type: ignore[arg-type]
        return [[m.content for m in item.conversation.messages if m.role != "user"] for item in fitted]

    assert answers("keep_start") == [["s", "first"]]
    assert answers("keep_end") == [["s", "third"]]
    assert answers("split") == [["s", "first"], ["s", "second"], ["s", "third"]]
    assert answers("drop") == []
    with pytest.raises(DataError, match="cutoff_len"):
        answers("error")


def test_which_side_of_a_text_is_kept() -> None:
    template = make_template()
    words = " ".join(f"word{n}" for n in range(40))
    for policy, side in (("keep_start", str.startswith), ("keep_end", str.endswith)):
        (item,) = fit(Fitted(talk(words, "answer")), template, 60, policy, NOWHERE)  # type: ignore[arg-type]
        question, answer = (message.content for message in item.conversation.messages)
        assert side(words, question)
        assert answer == "answer"
        assert item.unfinished == {0}


def test_a_cutoff_below_the_frame_leaves_the_row_out() -> None:
    template = make_template()
    assert fit(Fitted(talk("question " * 9, "answer " * 9)), template, 4, "keep_start", NOWHERE) == []


@settings(max_examples=40)
@given(texts=TALKS, source=st.integers(1, 12), target=st.integers(1, 12))
def test_budgets(texts: list[str], source: int, target: int) -> None:
    template = make_template()
    item = within_budgets(talk(*texts), template, source, target)
    for index, (message, text) in enumerate(zip(item.conversation.messages, texts, strict=True)):
        budget = target if message.role == "assistant" else source
        assert text.startswith(message.content)
        assert len(template.content_ids(message.content)) <= budget + 1  # a cut may regroup the last letters
        assert (message.content == text) or index in item.unfinished
    assert within_budgets(talk(*texts), template, None, None) == Fitted(talk(*texts))
