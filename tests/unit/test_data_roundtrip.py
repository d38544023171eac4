"""What a format can hold comes back from it letter for letter."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from danlu.data.convert import differences
from danlu.data.formats import FORMATS, read_row, usual_shape, write_row
from danlu.data.formats.detect import detect
from danlu.data.rows import CannotHold
from danlu.data.schema import (
    NOWHERE,
    Conversation,
    Document,
    Example,
    Message,
    Preference,
    Row,
    ToolCall,
    UnpairedPreference,
)

WORDS = st.text(min_size=1, max_size=20).filter(lambda text: not text.isspace())
NOTHING: st.SearchStrategy[bool | None] = st.none()
VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5)
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)


def dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


ARGUMENTS = OBJECTS.map(dumped) | OBJECTS.map(lambda value: json.dumps(value, separators=(",", ":"))) | st.just("")
CALLS = st.lists(st.builds(ToolCall, WORDS, ARGUMENTS), min_size=1, max_size=2).map(tuple)
TOOLS = st.lists(OBJECTS.map(dumped), max_size=2).map(tuple)
TRAIN = st.none() | st.booleans()
SYSTEM = st.lists(WORDS.map(lambda text: Message("system", text)), max_size=1)
MARGIN = st.none() | st.floats(-9, 9)


def said(role: str, train: st.SearchStrategy[bool | None] = NOTHING) -> st.SearchStrategy[Message]:
    return st.builds(Message, st.just(role), WORDS, st.just(()), train)


@st.composite
def plain_turns(draw: st.DrawFn) -> tuple[Message, ...]:
    """System prompt or none, then question and answer by turns, ending with a question."""
    messages = list(draw(SYSTEM))
    for _ in range(draw(st.integers(0, 2))):
        messages += [draw(said("user")), draw(said("assistant"))]
    return (*messages, draw(said("user")))


@st.composite
def any_turns(draw: st.DrawFn, train: bool) -> tuple[Message, ...]:
    """Any roles in any order with at least one user turn; calls stand alone."""
    flags = TRAIN if train else NOTHING
    call = st.builds(Message, st.just("assistant"), st.just(""), CALLS, flags)
    turn = said("user", flags) | said("assistant", flags) | said("tool", flags) | call
    messages = draw(SYSTEM) + draw(st.lists(turn, max_size=3))
    return (*messages, draw(said("user", flags)))


def rows_of(
    prompt: st.SearchStrategy[tuple[Message, ...]], answer: st.SearchStrategy[Message]
) -> st.SearchStrategy[Row]:
    whole = st.builds(lambda start, last, tools: Conversation((*start, last), tools), prompt, answer, TOOLS)
    return st.one_of(
        st.builds(Example, whole),
        st.builds(UnpairedPreference, whole, st.booleans()),
        st.builds(Preference, st.builds(Conversation, prompt, TOOLS), answer, answer, MARGIN),
    )


CALL = st.builds(Message, st.just("assistant"), st.just(""), CALLS)
CHATS = rows_of(any_turns(train=False), said("assistant") | CALL)
TRAINED = rows_of(any_turns(train=True), said("assistant", TRAIN))
PLAIN = rows_of(plain_turns(), said("assistant"))


def again(row: Row, name: str) -> object:
    return read_row(json.loads(json.dumps(write_row(row, name))), usual_shape(name), NOWHERE)


@settings(max_examples=80, deadline=None)
@given(PLAIN)
def test_questions_and_answers_fit_everywhere(row: Row) -> None:
    for name in ("alpaca", "pair", "sharegpt", "openai", "native"):
        if name == "pair" and isinstance(row, Preference):
            assume(row.margin is None)
        assert again(row, name) == row, name


@settings(max_examples=80, deadline=None)
@given(CHATS)
def test_tools_and_any_order_of_roles_fit_chats(row: Row) -> None:
    for name in ("sharegpt", "openai", "native"):
        assert again(row, name) == row, name


@settings(max_examples=80, deadline=None)
@given(TRAINED)
def test_which_turns_are_trained_fits_openai_and_native(row: Row) -> None:
    for name in ("openai", "native"):
        assert again(row, name) == row, name


@settings(max_examples=60, deadline=None)
@given(TRAINED)
def test_preferences_and_labels_fit_their_own_formats(row: Row) -> None:
    name = {Preference: "preference", UnpairedPreference: "kto", Example: "openai"}[type(row)]  # type: ignore[index]
    assert again(row, name) == row


@settings(max_examples=40, deadline=None)
@given(plain_turns(), said("assistant"))
def test_rounds_hold_examples(start: tuple[Message, ...], answer: Message) -> None:
    row = Example(Conversation((*start, answer)))
    assert again(row, "rounds") == row


@given(WORDS)
def test_text_holds_documents(text: str) -> None:
    assert again(Document(text), "text") == Document(text)


@settings(max_examples=80, deadline=None)
@given(PLAIN | CHATS)
def test_what_is_written_is_recognised_without_being_told(row: Row) -> None:
    for name in FORMATS.names():
        try:
            value = write_row(row, name)
        except CannotHold:
            continue
        told = read_row(value, usual_shape(name), NOWHERE)
        found = read_row(value, detect([value], where="x"), NOWHERE)
        assert found == told, name


@settings(max_examples=60, deadline=None)
@given(TRAINED | CHATS, st.sampled_from(FORMATS.names()))
def test_what_does_not_come_back_is_named(row: Row, name: str) -> None:
    try:
        back = again(row, name)
    except CannotHold:
        return
    lost = differences(row, back)  # type: ignore[arg-type]
    assert bool(lost) == (back != row)
    assert "something" not in lost


@pytest.mark.parametrize(
    "content",
    ["", "<think>a</think>", " <think>a\nb</think>\n\n"],
)
def test_a_thought_before_a_call_fits_sharegpt(content: str) -> None:
    call = Message("assistant", content, (ToolCall("f", '{"a":  1}'), ToolCall("g", "{}")))
    row = Example(Conversation((Message("user", "q"), call)))
    assert again(row, "sharegpt") == row


def test_other_text_beside_a_call_is_lost_in_sharegpt_and_said() -> None:
    call = Message("assistant", "let me see", (ToolCall("f", "{}"),))
    row = Example(Conversation((Message("user", "q"), call)))
    assert differences(row, again(row, "sharegpt")) == ["text beside a tool call"]  # type: ignore[arg-type]
    assert again(row, "openai") == row
