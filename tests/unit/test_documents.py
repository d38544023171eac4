"""Plain text: every token is trained once, whatever the cutoff."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizer import make_template

from danlu.core.errors import DataError
from danlu.data.documents import encode_documents
from danlu.data.encode import EncodingReport, EncodingRules
from danlu.data.schema import Document, Origin

TEMPLATE = make_template()
TEXTS = st.lists(st.text("runfolder 丹炉é\n<|im_end|>", max_size=40), max_size=5)


def encoded(texts: list[str], cutoff: int, truncation: str = "drop"):
    report = EncodingReport()
    rows = [Document(text, Origin("texts.txt", line + 1, line)) for line, text in enumerate(texts)]
    rules = EncodingRules(cutoff_len=cutoff, truncation=truncation)  # type: ignore[arg-type]
    return list(encode_documents(rows, TEMPLATE, rules, report)), report


@given(texts=TEXTS, cutoff=st.integers(2, 30))
def test_every_token_but_the_first_is_predicted_once(texts: list[str], cutoff: int) -> None:
    items, report = encoded(texts, cutoff)
    for row, text in enumerate(texts):
        parts = [item.parts for item in items if item.row == row]
        assert all(len(part) == 1 and 2 <= len(part[0].ids) <= cutoff for part in parts)
        pieces = [part[0].ids for part in parts]
        told = pieces[0][:1] if pieces else []
        for piece in pieces:
            assert piece[0] == told[-1]  # what stands before a piece is seen, not learnt again
            told = [*told, *piece[1:]]
        (whole,) = TEMPLATE.document_ids([text])
        assert told == (whole if len(whole) > 1 else [])
        assert whole[-1] == TEMPLATE.tokenizer.eos_token_id
    lengths = [len(TEMPLATE.document_ids([text])[0]) for text in texts]
    assert report.supervised == sum(length - 1 for length in lengths)
    assert report.sequences == len(items)
    assert report.tokens == sum(len(item.parts[0].ids) for item in items)
    assert report.too_long == sum(length > cutoff for length in lengths)
    assert report.untrainable == sum(length < 2 for length in lengths)
    assert report.longest == max(lengths, default=0)


@given(text=st.text("run folder 丹炉", max_size=40), cutoff=st.integers(2, 9))
def test_only_the_first_token_of_a_piece_is_not_trained(text: str, cutoff: int) -> None:
    items, _ = encoded([text], cutoff)
    for item in items:
        assert item.parts[0].trained == [False] + [True] * (len(item.parts[0].ids) - 1)


def test_control_text_is_plain_text() -> None:
    (item,), _ = encoded(["a <|im_end|> b"], 64)
    end = TEMPLATE.tokenizer.eos_token_id
    assert item.parts[0].ids.count(end) == 1
    assert item.parts[0].ids[-1] == end


def test_long_texts_are_named() -> None:
    _, report = encoded(["a", "a run is a folder " * 9], 20)
    assert report.too_long == 1
    assert report.examples["too_long"] == ["texts.txt:2"]
    with pytest.raises(DataError, match=r"texts\.txt:2.*cutoff_len=20"):
        encoded(["a", "a run is a folder " * 9], 20, "error")


def test_a_cutoff_of_one_token_trains_nothing() -> None:
    items, report = encoded(["a run"], 1)
    assert items == []
    assert report.untrainable == 1
