"""Templates: what is trained, what users cannot forge, and that prompts are what training saw."""

from __future__ import annotations

import json
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizer import (
    BARE,
    CHATML,
    GLM,
    PLAIN,
    SPECIAL,
    TOOLS,
    UNSTABLE,
    SlowTokenizer,
    SmallTokenizer,
    make_template,
    make_tokenizer,
    talk,
    trained_text,
)

from danlu.data.rendering import TemplateError, UnstableTemplateError
from danlu.data.schema import Conversation, Message, ToolCall
from danlu.data.templates import Template

FRAGMENTS = st.sampled_from(
    [*SPECIAL, *PLAIN, "<|im_", "end|>", "|", "<", ">", "\n", "\n\n", " ", "丹", "\u29fc", "\u29fd", "1"]
)
TEXTS = (
    st.lists(st.one_of(FRAGMENTS, st.text(max_size=8)), max_size=8)
    .map("".join)
    .filter(lambda text: "\r" not in text and "\u2581" not in text)
)
KINDS = ("bytes", "always", "first", "never")


def test_answers_and_their_end_are_trained() -> None:
    template = make_template()
    encoded = template.encode(talk("What?", "A run.", "And?", "A folder.", system="Be short."))
    assert trained_text(template, encoded) == ["A run.<|im_end|>", "A folder.<|im_end|>"]
    assert template.tokenizer.decode(encoded.ids, skip_special_tokens=False) == template.render(
        talk("What?", "A run.", "And?", "A folder.", system="Be short.")
    )


def test_the_next_role_ends_the_turn() -> None:
    template = make_template(GLM)
    encoded = template.encode(talk("What?", "A run.", "And?", "A folder."))
    assert trained_text(template, encoded) == ["A run.<|user|>", "A folder.<|end|>"]
    text = template.tokenizer.decode(encoded.ids, skip_special_tokens=False)
    assert text.count("<|user|>") == 2
    assert text.endswith("A folder.<|end|>")


def test_a_template_without_an_end_gets_one() -> None:
    template = make_template(BARE)
    encoded = template.encode(talk("What?", "A run.", "And?", "A folder."))
    assert trained_text(template, encoded) == ["A run.\n", "A folder.\n<|end|>"]


def test_what_is_cut_does_not_learn_to_stop() -> None:
    for source, ends in ((CHATML, "<|im_end|>"), (GLM, "<|user|>"), (BARE, "\n")):
        template = make_template(source)
        encoded = template.encode(talk("What?", "A run.", "And?", "A fol"), unfinished=frozenset({3}))
        first, last = trained_text(template, encoded)
        assert first == f"A run.{ends}"
        assert last.rstrip("\n") == "A fol"


def test_messages_say_whether_they_are_trained() -> None:
    template = make_template()
    messages = (Message("user", "1"), Message("assistant", "no", train=False), Message("user", "2"))
    encoded = template.encode(Conversation((*messages, Message("assistant", "yes", train=True))))
    assert trained_text(template, encoded) == ["yes<|im_end|>"]


@pytest.mark.parametrize("source", [CHATML, GLM, BARE, TOOLS])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(texts=st.lists(TEXTS, min_size=3, max_size=3))
def test_users_cannot_write_control_tokens(source: str, kind: str, texts: list[str]) -> None:
    template = make_template(source, kind=kind)
    system, first, second = texts
    control = template.tokenizer.control_ids  # type: ignore[attr-defined]
    clean = template.encode(talk("a", "b", "a", "b", system="a"))
    encoded = template.encode(talk(first, "b", second, "b", system=system or " "))
    assert [n for n in encoded.ids if n in control] == [n for n in clean.ids if n in control]
    conversation = talk(first, "b", second, system=system or " ")
    prompt = template.prompt(conversation)
    told = template.tokenizer.decode(prompt, skip_special_tokens=False)
    if kind == "bytes":
        assert told == template.render(conversation, generation_prompt=True)
    assert first.strip() in told or kind != "bytes"


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_content_by_itself(kind: str, text: str) -> None:
    template = make_template(kind=kind)
    ids = template.content_ids(text)
    assert not set(ids) & template.tokenizer.control_ids  # type: ignore[attr-defined]
    if kind == "bytes":
        assert template.content_text(ids) == text.strip("\ufffd")


def test_an_answer_may_think_but_not_end_itself() -> None:
    template = make_template()
    vocabulary = template.tokenizer.get_added_vocab()
    answer = "<think>hm</think>yes<|im_end|>no"
    ids = template.encode(talk("q", answer)).ids
    assert ids.count(vocabulary["<think>"]) == 1
    assert ids.count(vocabulary["<|im_end|>"]) == 2  # the question's and the answer's own
    assert template.encode(talk("<think>", "a")).ids.count(vocabulary["<think>"]) == 0


@pytest.mark.parametrize(("source", "kind"), list(product([CHATML, GLM, BARE, TOOLS], KINDS)))
@settings(max_examples=40)
@given(texts=st.lists(TEXTS, min_size=4, max_size=4))
def test_a_prompt_is_what_training_saw(source: str, kind: str, texts: list[str]) -> None:
    template = make_template(source, kind=kind)
    first, answer, second, last = texts
    whole = template.encode(talk(first, answer, second, last)).ids
    prompt = template.prompt(talk(first, answer, second))
    assert whole[: len(prompt)] == prompt


@pytest.mark.parametrize("kind", ["always", "first"])
def test_pieces_are_continuations(kind: str) -> None:
    template = make_template(CHATML, kind=kind)
    ids = template.encode(talk("What is a run?", "A run is a folder.")).ids
    words = [template.tokenizer.backend_tokenizer.id_to_token(number) for number in ids]  # type: ignore[attr-defined]
    at = words.index("<|im_start|>", 1)
    answer = words[at + 1 :]
    assert "".join(answer).replace("▁", " ").strip().startswith("assistant\nA run")


@pytest.mark.parametrize("kind", ["always", "first"])
@pytest.mark.parametrize("text", ["\n", "\n\n", "\n\nb", " b", "b", "▁b", "\t"])
def test_the_guard_takes_nothing_away(kind: str, text: str) -> None:
    template = make_template(kind=kind)
    decoded = template.tokenizer.decode(
        template.content_ids("a") + template.content_ids(text), skip_special_tokens=False
    )
    assert decoded.replace(" ", "") == ("a" + text).replace("▁", " ").replace(" ", "")


def test_slow_tokenizers_give_the_same() -> None:
    fast = make_tokenizer(kind="always")
    slow = Template(SlowTokenizer(fast))
    conversation = talk("What <|im_end|> is\n\na run?", "A folder.", system="hm")
    assert slow.encode(conversation) == Template(fast).encode(conversation)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["a <|im_end|> b", "<|im_end|>", "x<|im_start|><|im_end|>", "user\n<s>\n", "\u29fc1\u29fd"]
)
def test_control_text_is_read_in_one_run(kind: str, text: str) -> None:
    template = make_template(GLM, kind=kind)
    core = template.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    before = "b" if kind == "first" else ""  # there a text begins only once, and this one is in the middle
    core.encode_special_tokens = True
    try:
        whole, start = (core.encode(part, add_special_tokens=False).ids for part in (f"{before}\n{text}", before))
    finally:
        core.encode_special_tokens = False
    assert whole[: len(start)] == start
    vocabulary = template.tokenizer.get_added_vocab()
    wanted = [vocabulary["<s>"], vocabulary["<|user|>"], *whole[len(start) :], vocabulary["<|assistant|>"]]
    assert template.prompt(talk(text))[: len(wanted)] == wanted


def test_it_does_not_matter_how_the_tokenizer_was_called_last() -> None:
    template = make_template()
    wanted = template.prompt(talk("a <|im_end|>"))
    template.tokenizer.backend_tokenizer.encode_special_tokens = True  # type: ignore[attr-defined]
    assert make_template().prompt(talk("a <|im_end|>")) == template.prompt(talk("a <|im_end|>")) == wanted


def test_a_vocabulary_that_holds_control_tokens_makes_none_of_text() -> None:
    from tokenizers import AddedToken, Tokenizer, models

    core = Tokenizer(models.Unigram([("?", -9.0), *((letter, -5.0) for letter in "<|s>/ab"), ("</s>", 0.0)], unk_id=0))
    core.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    tokenizer = SmallTokenizer(core, "</s>", "{{ messages[0].content }}</s>")
    template = Template(tokenizer)
    end = tokenizer.eos_token_id
    core.encode_special_tokens = True
    assert end in core.encode("a</s>b").ids
    core.encode_special_tokens = False
    ids = template.prompt(talk("a</s>b"))
    assert ids.count(end) == 1
    assert ids[-1] == end
    assert end not in template.content_ids("a</s>b")


def test_tokens_that_take_spaces_away_keep_doing_so() -> None:
    tokenizer = make_tokenizer(GLM)
    core = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    from tokenizers import AddedToken

    core.add_special_tokens([AddedToken("<|user|>", special=True, normalized=False, rstrip=True)])
    template = Template(SmallTokenizer(core, "<|end|>", GLM))
    ids = template.prompt(talk("a<|im_end|>b"))
    assert ids[:2] == core.encode("<s><|user|>\n", add_special_tokens=False).ids
    assert not {core.token_to_id("<|im_end|>"), core.encode("\n").ids[0]} & set(ids[:-1])


def test_added_white_space_is_text() -> None:
    plain = Template(make_tokenizer(extra=("\n\n", "   ")))
    ids = plain.content_ids("a\n\nb   c")
    vocabulary = plain.tokenizer.get_added_vocab()
    assert vocabulary["\n\n"] in ids
    assert vocabulary["   "] in ids


def test_tools_are_written_out_where_the_template_knows_none() -> None:
    tool = '{"name": "find", "parameters": {"type": "object"}}'
    messages = (
        Message("user", "Find it"),
        Message("assistant", "", (ToolCall("find", '{"what": "it"}'),)),
        Message("tool", "there"),
        Message("assistant", "There."),
    )
    conversation = Conversation(messages, (tool,))
    inlined = make_template(CHATML)
    assert not inlined.knows_tools
    text = inlined.render(conversation)
    assert text.startswith("<|im_start|>system\nYou can call these functions")
    assert tool in text
    assert '<tool_call>\n{"name": "find", "arguments": {"what": "it"}}\n</tool_call>' in text
    assert "<|im_start|>user\n<tool_response>\nthere\n</tool_response>" in text
    own = make_template(TOOLS)
    assert own.knows_tools
    text = own.render(conversation)
    assert "You can call" not in text
    assert "<|im_start|>tool\nthere" in text
    assert '<tool_call>{"name": "find", "arguments": {"what": "it"}}</tool_call>' in text
    assert "find" in trained_text(own, own.encode(conversation))[0]


@pytest.mark.parametrize(
    "inside", ["\\u003c|im_end|\\u003e", "<\\/think>", "\\u29fc0\\u29fd", "\\u29fc99\\u29fd", "<|im_end|>"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_escapes_of_json_hide_no_control_tokens(kind: str, inside: str) -> None:
    template = make_template(TOOLS, kind=kind)
    control = template.tokenizer.control_ids  # type: ignore[attr-defined]

    def prompt(text: str) -> Conversation:
        call = ToolCall("find" + ("<|user|>" if text == inside else ""), f'{{"what": "{text}"}}')
        tool = f'{{"name": "find", "description": "{text}", "parameters": {{}}}}'
        messages = (Message("user", "Find it"), Message("assistant", "", (call,)), Message("tool", "there"))
        return Conversation(messages, (tool,))

    given = [number for number in template.prompt(prompt(inside)) if number in control]
    # an answer may write words such as </think> itself
    own = [template.tokenizer.get_added_vocab()["</think>"]] if "think" in inside else []
    clean = [number for number in template.prompt(prompt("plain")) if number in control]
    assert sorted(given) == sorted(clean + own)
    assert json.loads(f'"{inside}"') in template.render(prompt(inside))


def test_default_system_and_variables() -> None:
    template = make_template(default_system="Be kind.")
    assert template.render(talk("q", "a")).startswith("<|im_start|>system\nBe kind.")
    assert "Be kind" not in template.render(talk("q", "a", system="Be short."))
    thinking = [make_template("{{ enable_thinking }}" + CHATML, enable_thinking=on) for on in (True, False)]
    assert thinking[0].digest != thinking[1].digest
    assert thinking[0].render(talk("q", "a")).startswith("True")


def test_the_lead_of_an_answer() -> None:
    roles = "{% for m in messages %}<|{{ m.role }}|>\n {{ m.content }}{% endfor %}"
    assert make_template(roles + "{% if add_generation_prompt %}<|assistant|>{% endif %}").lead == "\n "
    assert make_template(CHATML).lead == make_template(BARE).lead == make_template(UNSTABLE).lead == ""
    assert make_template("{{ raise_exception('no') }}").lead == ""


def test_an_unstable_template_is_refused() -> None:
    template = make_template(UNSTABLE)
    assert trained_text(template, template.encode(talk("q", "<think>h</think>a"))) == ["<think>h</think>a<|im_end|>"]
    with pytest.raises(UnstableTemplateError, match=r"unstable_template=split.*mask_history"):
        template.encode(talk("q", "<think>h</think>a", "q", "b"))


def test_untrained_answers_may_be_rewritten() -> None:
    template = make_template(UNSTABLE)
    muted = Message("assistant", "<think>h</think>a", train=False)
    whole = Conversation((Message("user", "q"), muted, Message("user", "r"), Message("assistant", "b")))
    encoded = template.encode(whole)
    assert trained_text(template, encoded) == ["b<|im_end|>"]
    prompt = template.prompt(Conversation(whole.messages[:3]))
    assert encoded.ids[: len(prompt)] == prompt
    assert "think" not in template.tokenizer.decode(encoded.ids, skip_special_tokens=False)


def test_templates_that_cannot_be_used() -> None:
    with pytest.raises(TemplateError, match=r"brings no chat template.*template="):
        Template(make_tokenizer(None))
    with pytest.raises(TemplateError, match="not valid Jinja"):
        make_template("{% for %}")
    with pytest.raises(TemplateError, match="refuses this conversation: roles must alternate"):
        make_template("{{ raise_exception('roles must alternate') }}").encode(talk("q", "a"))


def test_the_digest_names_what_decides() -> None:
    digests = {
        make_template().digest,
        make_template(GLM).digest,
        make_template(default_system="x").digest,
        Template(make_tokenizer(), stop_ids=[3]).digest,
    }
    assert len(digests) == 4
    assert make_template().digest == make_template().digest
