"""Rows to sequences: which tokens are trained, what is cut, and that every loss is counted."""

from __future__ import annotations

import pytest
from small_tokenizer import UNSTABLE, make_template, talk, trained_text

from danlu.core.errors import DataError
from danlu.data.encode import EncodingReport, EncodingRules, encode_rows
from danlu.data.rendering import UnstableTemplateError
from danlu.data.schema import (
    Conversation,
    Document,
    Example,
    Message,
    Origin,
    Preference,
    Row,
    UnpairedPreference,
)
from danlu.data.templates import Encoded, Template

HERE = Origin("rows.jsonl", 3, 2)


def encode(template: Template, *rows: Row, **rules: object) -> tuple[list[tuple[int, Encoded]], EncodingReport]:
    report = EncodingReport()
    return list(encode_rows(rows, template, EncodingRules(**rules), report)), report  # type: ignore[arg-type]


def trained(*rows: Row, source: str | None = None, **rules: object) -> list[list[str]]:
    template = make_template(source) if source else make_template()
    return [trained_text(template, encoded) for _, encoded in encode(template, *rows, **rules)[0]]


TWO = Example(talk("one?", "first", "two?", "second"), HERE)


def test_every_answer_or_the_last_or_everything() -> None:
    assert trained(TWO) == [["first<|im_end|>", "second<|im_end|>"]]
    assert trained(TWO, mask_history=True) == [["second<|im_end|>"]]
    (whole,) = trained(TWO, train_on_prompt=True)
    assert len(whole) == 1
    assert whole[0].startswith("<|im_start|>user\none?")


def test_the_prefix_stands_before_the_first_question() -> None:
    template = make_template()
    ((_, encoded),), _ = encode(
        template, Example(talk("one?", "1", "two?", "2", system="s"), HERE), source_prefix="Q: "
    )
    text = template.tokenizer.decode(encoded.ids, skip_special_tokens=False)
    assert "<|im_start|>user\nQ: one?" in text
    assert "<|im_start|>user\ntwo?" in text
    assert "<|im_start|>system\ns<" in text


def test_preferences_give_their_better_answer() -> None:
    prompt = Conversation((Message("user", "q"),))
    rows = (
        Preference(prompt, Message("assistant", "good"), Message("assistant", "bad"), origin=HERE),
        UnpairedPreference(talk("q", "wanted"), True, HERE),
        UnpairedPreference(talk("q", "unwanted"), False, HERE),
        Document("text", HERE),
    )
    assert trained(*rows) == [["good<|im_end|>"], ["wanted<|im_end|>"]]
    _, report = encode(make_template(), *rows)
    assert (report.rows, report.sequences, report.untrainable) == (4, 2, 2)
    assert report.examples["untrainable"] == ["rows.jsonl:3", "rows.jsonl:3"]


def test_budgets_cut_each_text() -> None:
    row = Example(talk("what is a run and what is a folder", "a run is a folder that holds everything"), HERE)
    template = make_template()
    ((_, encoded),), report = encode(template, row, max_source_length=5, max_target_length=4)
    text = template.tokenizer.decode(encoded.ids, skip_special_tokens=False)
    question = text.split("user\n")[1].split("<|im_end|>")[0]
    assert "what is a run and what is a folder".startswith(question)
    assert len(template.content_ids(question)) <= 5
    (answer,) = trained_text(template, encoded)
    assert "a run is a folder that holds everything".startswith(answer)
    assert len(template.content_ids(answer)) <= 4
    assert report.shortened == 1


def test_a_cut_answer_stays_unfinished_when_earlier_turns_are_left_out() -> None:
    long_answer = "a run is a folder that holds everything a training wrote"
    row = Example(talk("what is a furnace? " * 6, "hot", "q", long_answer), HERE)
    template = make_template()
    rules = {"max_target_length": 5, "truncation": "keep_end", "cutoff_len": 40}
    ((_, encoded),), report = encode(template, row, **rules)
    (answer,) = trained_text(template, encoded)
    assert report.too_long == 1
    assert long_answer.startswith(answer)
    assert "<|im_end|>" not in answer


def test_long_rows() -> None:
    row = Example(talk("q " * 60, "a"), HERE)
    short = Example(talk("q", "a"), HERE)
    sequences, report = encode(make_template(), short, row, cutoff_len=30)
    assert [number for number, _ in sequences] == [0]
    assert (report.too_long, report.left_out, report.rows) == (1, 1, 2)
    assert report.longest > 60
    assert report.examples["too_long"] == ["rows.jsonl:3"]
    with pytest.raises(DataError, match=r"rows.jsonl:3: the row is longer than cutoff_len=30.*truncation=drop"):
        encode(make_template(), row, cutoff_len=30, truncation="error")
    sequences, report = encode(make_template(), row, cutoff_len=30, truncation="keep_start")
    assert len(sequences[0][1].ids) <= 30
    assert (report.too_long, report.left_out) == (1, 0)


def test_an_unstable_template_refuses_or_splits() -> None:
    row = Example(talk("1", "<think>x</think>one", "2", "<think>y</think>two"), HERE)
    with pytest.raises(UnstableTemplateError):
        encode(make_template(UNSTABLE), row)
    assert trained(row, source=UNSTABLE, unstable_template="split") == [
        ["<think>x</think>one<|im_end|>"],
        ["<think>y</think>two<|im_end|>"],
    ]
    assert trained(row, source=UNSTABLE, unstable_template="split", mask_history=True) == [
        ["<think>y</think>two<|im_end|>"]
    ]
    assert trained(row, source=UNSTABLE, mask_history=True) == [["<think>y</think>two<|im_end|>"]]


def test_rows_that_the_template_refuses_are_counted() -> None:
    source = "{%- if messages[0].role == 'system' -%}{{ raise_exception('no system') }}{%- endif -%}"
    template = make_template(source + "{{ messages[0].content }}{% for m in messages[1:] %}{{ m.content }}{% endfor %}")
    rows = (Example(talk("q", "a", system="s"), HERE), Example(talk("q", "a"), HERE))
    sequences, report = encode(template, *rows)
    assert [number for number, _ in sequences] == [1]
    assert report.refused == 1
    assert "no system" in report.examples["refused"][0]


def test_muted_answers_leave_nothing_to_train() -> None:
    row = Example(Conversation((Message("user", "q"), Message("assistant", "a", train=False))), HERE)
    sequences, report = encode(make_template(), row)
    assert sequences == []
    assert report.untrainable == 1


def test_many_rows_keep_their_numbers() -> None:
    rows = [Example(talk(f"q {n}", f"a {n}"), HERE) for n in range(1203)]
    template = make_template()
    sequences, report = encode(template, *rows)
    assert [number for number, _ in sequences] == list(range(1203))
    assert trained_text(template, sequences[-1][1]) == ["a 1202<|im_end|>"]
    assert report.tokens == sum(len(encoded.ids) for _, encoded in sequences)
    assert report.supervised == sum(sum(encoded.trained) for _, encoded in sequences)
