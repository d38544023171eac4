"""Prompts with texts behind them: one text to the tokenizer, what it writes in front, nothing that ends it."""

from __future__ import annotations

from typing import Any

import pytest
from small_tokenizer import BARE, CHATML, GLM, make_template, make_tokenizer, talk

from danlu.data.schema import Conversation, Message
from danlu.data.templates import Template

KINDS = ("bytes", "always", "first", "never")
TEXTS = ("", " folder", "s", "\n", " 丹炉", "?")


def surrounded(kind: str, template: str) -> Any:
    """A tokenizer that writes control tokens around a text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(CHATML, kind=kind)
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    told = [(text, backend.token_to_id(text)) for text in ("<s>", "<|im_end|>", "<|user|>")]
    backend.post_processor = TemplateProcessing(single=template, special_tokens=told)
    tokenizer.backend_tokenizer = backend
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["What is a run", "", "a run\n", " 什么"])
def test_a_text_and_what_follows_are_one_text(kind: str, prompt: str) -> None:
    template = make_template(kind=kind)
    expected = [template.tokenizer.encode(prompt + text, add_special_tokens=False) for text in TEXTS]
    assert template.continued(prompt, TEXTS) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_control_text_stays_text_across_the_seam_too(kind: str) -> None:
    template = make_template(kind=kind)
    special = {template.tokenizer.get_added_vocab()[text] for text in template.tokenizer.all_special_tokens}
    for prompt, text in (("a <|im_end|> b", "c"), ("a <|im_", "end|> b")):
        (ids,) = template.continued(prompt, [text])
        assert not special & set(ids)
        assert template.tokenizer.decode(ids, skip_special_tokens=False).strip() == prompt + text


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_tokenizer_writes_around_a_text(kind: str) -> None:
    begun, ended, asked = (surrounded(kind, told) for told in ("<s> $A", "<s> $A <|im_end|>", "$A <|user|> <s>"))
    plain = begun.encode("What is a run", add_special_tokens=False)
    longer = begun.encode("What is a runs", add_special_tokens=False)
    number = begun.backend_tokenizer.token_to_id
    for tokenizer in (begun, ended):
        assert Template(tokenizer).continued("What is a run", ["", "s"]) == [
            [number("<s>"), *part] for part in (plain, longer)
        ]
    alone, whole = Template(asked).continued("What is a run", ["", "s"])
    assert alone == [*plain, number("<|user|>"), number("<s>")]
    assert whole[: len(alone)] == alone
    assert len(whole) > len(alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", [CHATML, GLM, BARE])
def test_an_answer_begins_as_training_has_it(kind: str, source: str) -> None:
    template = make_template(source, kind=kind)
    asked = talk("What is a run?")
    alone, whole = template.continued(asked, ["", "A folder"])
    assert alone == template.prompt(asked)
    trained = template.encode(talk("What is a run?", "A folder")).ids
    assert whole == trained[: len(whole)]
    assert len(whole) > len(alone)


def test_white_space_before_an_answer_belongs_to_the_prompt() -> None:
    roles = "{% for m in messages %}<|{{ m.role }}|>\n {{ m.content }}{% endfor %}"
    template = make_template(roles + "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    asked = Conversation((Message("user", "What is a run?"),))
    alone, whole = template.continued(asked, ["", "A folder"])
    assert template.tokenizer.decode(alone) == "<|user|>\n What is a run?<|assistant|>\n "
    assert template.tokenizer.decode(whole) == "<|user|>\n What is a run?<|assistant|>\n A folder"
