"""Named templates: what each makes of the same three conversations, with what is trained marked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from small_tokenizer import SmallTokenizer, make_tokenizer, talk, trained_text

from danlu.data.encode import last_answer_only
from danlu.data.named_templates import named_templates
from danlu.data.rendering import UnstableTemplateError
from danlu.data.schema import Conversation
from danlu.data.templates import Template

CONVERSATIONS = {
    "one question": talk("What is a run?", "A folder."),
    "with a system prompt": talk("What is a run?", "A folder.", system="Be short."),
    "two questions": talk("What is a run?", "A folder.", "丹炉？", "是。"),
}

ONE_ANSWER = {"chatglm1", "chatglm2"}
"""Templates that write an answer differently once another turn follows: a sequence holds one answer."""


@dataclass
class WithBegin(SmallTokenizer):
    """A tokenizer that has a token for the beginning of a text."""

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        return {"eos_token": self.eos_token, "bos_token": "<s>"}


def template(name: str) -> Template:
    core = make_tokenizer(None, eos="<|end|>")
    return Template(WithBegin(core.backend_tokenizer, core.eos_token), source=named_templates()[name].text)


def sequences(one: Template, conversation: Conversation) -> list[Conversation]:
    """What is trained of a conversation: the whole, or each answer in a sequence of its own."""
    if not one.one_answer:
        return [conversation]
    ends = [place + 1 for place, message in enumerate(conversation.messages) if message.role == "assistant"]
    return [last_answer_only(replace(conversation, messages=conversation.messages[:end])) for end in ends]


def marked(one: Template, conversation: Conversation) -> str:
    """The rendered text with ⟦ ⟧ around what is trained; ‖ between sequences."""
    rendered = [
        "".join(f"⟦{piece.text}⟧" if piece.trained else piece.text for piece in one.pieces(part))
        for part in sequences(one, conversation)
    ]
    return "‖".join(rendered).replace("⟧⟦", "")


def shown(one: Template, conversation: Any) -> str:
    """The marked text; of a conversation that is not one sequence the text alone."""
    try:
        return marked(one, conversation)
    except UnstableTemplateError:
        return one.render(conversation)


@pytest.mark.parametrize("name", sorted(named_templates()))
def test_rendered_conversations(name: str, snapshot: Any) -> None:
    one = template(name)
    assert {about: shown(one, conversation) for about, conversation in CONVERSATIONS.items()} == snapshot


@pytest.mark.parametrize("name", sorted(ONE_ANSWER))
def test_some_sequences_hold_one_answer(name: str) -> None:
    with pytest.raises(UnstableTemplateError):
        template(name).encode(CONVERSATIONS["two questions"])


@pytest.mark.parametrize("name", sorted({*named_templates()} - ONE_ANSWER))
def test_answers_are_trained_and_prompts_are_what_training_saw(name: str) -> None:
    one = template(name)
    parts = [one.encode(part) for part in sequences(one, CONVERSATIONS["two questions"])]
    whole = parts[-1]
    answers = [text for part in parts for text in trained_text(one, part)]
    assert len(answers) == 2
    assert "A folder." in answers[0]
    assert "是。" in answers[1]
    assert answers[1].rstrip().endswith(("<|end|>", "<|im_end|>"))
    prompt = one.prompt(talk("What is a run?", "A folder.", "丹炉？"))
    assert whole.ids[: len(prompt)] == prompt
    assert "Be short." in one.render(CONVERSATIONS["with a system prompt"])


@pytest.mark.parametrize("name", sorted(named_templates()))
def test_where_it_comes_from_is_said(name: str) -> None:
    found = named_templates()[name]
    assert found.name == name
    assert found.source
    assert found.licence
    assert len(found.about) < 100
