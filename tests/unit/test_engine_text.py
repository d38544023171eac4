"""Streaming text: whole characters, no stop text, the same as decoding everything at once."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from danlu.engine.text import TextStream, cut_at_stop, without_lead


class Bytes:
    """A tokenizer whose tokens are bytes, as those of byte-level BPE can be; 256 is a control token."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(number for number in ids if number < 256).decode("utf-8", errors="replace")


def stream(text: str, stop: Sequence[str] = ()) -> list[str]:
    told = TextStream(Bytes(), stop)
    pieces = [told.push(number) for number in text.encode()]
    return [*pieces, told.finish()]


@given(st.text())
def test_the_pieces_are_the_text(text: str) -> None:
    pieces = stream(text)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces if "\ufffd" not in text)


@given(st.text(alphabet="ab丹炉🔥\n"), st.lists(st.text(alphabet="ab丹炉🔥\n", min_size=1), max_size=3))
def test_stop_texts_end_the_text(text: str, stop: list[str]) -> None:
    assert "".join(stream(text, stop)) == cut_at_stop(text, stop)[0]


@given(st.text(alphabet="\n ab", max_size=6), st.sampled_from(["", "\n", "\n "]))
def test_the_lead_is_left_out(text: str, lead: str) -> None:
    told = TextStream(Bytes(), (), lead)
    pieces = [told.push(number) for number in text.encode()]
    assert "".join([*pieces, told.finish()]) == without_lead(text, lead)
    assert without_lead(lead + text, lead) == text


def test_chinese_comes_character_by_character() -> None:
    assert [piece for piece in stream("丹炉炼丹") if piece] == ["丹", "炉", "炼", "丹"]


def test_a_possible_stop_text_is_held_back() -> None:
    told = TextStream(Bytes(), ["END"])
    assert [told.push(number) for number in b"xENxE"] == ["x", "", "", "ENx", ""]
    assert not told.stopped
    assert told.finish() == "E"


def test_nothing_after_the_stop() -> None:
    told = TextStream(Bytes(), ["."])
    assert "".join(told.push(number) for number in b"one.two") == "one"
    assert told.stopped
    assert told.finish() == ""


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    told = TextStream(Bytes())
    assert [told.push(number) for number in "炉".encode()[:2]] == ["", ""]
    assert told.finish() == "\ufffd"


def test_control_tokens_are_silent() -> None:
    told = TextStream(Bytes())
    assert [told.push(number) for number in (104, 256, 105)] == ["h", "", "i"]
