"""Modelfiles: the Go template says what the chat template says, on conversations of several turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from go_text import go_render
from tiny import CHAT_TEMPLATE, build_tokenizer

from danlu.core.config import build
from danlu.data.named_templates import named_templates
from danlu.data.schema import Conversation, Message
from danlu.data.templates import Template
from danlu.models.export_config import ExportConfig
from danlu.models.go_template import NotExpressible, go_template, surroundings
from danlu.models.modelfile import Serving, modelfile

pytestmark = pytest.mark.model

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = none %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ message['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe {{ helpful }}.<|im_end|>\\n' }}{% endif %}"
    + CHAT_TEMPLATE
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
THINKING = CHAT_TEMPLATE.replace(
    "assistant\\n' }}{%- endif",
    "assistant\\n' }}{%- if enable_thinking is defined and not enable_thinking -%}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif",
)
NUMBERED = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[Round {{ loop.index // 2 + 1 }}] "
    "{{ message['content'] }}\\n{% else %}{{ message['content'] }}\\n{% endif %}{% endfor %}"
)
SOURCES = {
    "chatml": CHAT_TEMPLATE,
    "llama2": LLAMA2,
    "default system": DEFAULT_SYSTEM,
    "no system": NO_SYSTEM,
    "thinking": THINKING,
    **{name: item.text for name, item in named_templates().items() if name not in ("chatml", "chatglm1", "chatglm2")},
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def talk(turns: int, system: str | None = None) -> Conversation:
    texts = ["丹炉是什么?", "A furnace: it makes small models.", "Why {{ braces }}?", "So that\nit breaks.", "Ok"][
        :turns
    ]
    messages = [Message("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]
    return Conversation((Message("system", system), *messages) if system else tuple(messages))


def as_ollama(conversation: Conversation) -> tuple[str, list[dict[str, str]]]:
    messages = [{"Role": item.role, "Content": item.content} for item in conversation.messages]
    return conversation.system or "", messages


@pytest.mark.parametrize("name", SOURCES)
def test_the_go_template_says_what_the_chat_template_says(tokenizer: Any, name: str) -> None:
    variables = {"enable_thinking": False} if name == "thinking" else {}
    template = Template(tokenizer, source=SOURCES[name], **variables)
    found = surroundings(template)
    source = go_template(found)
    for turns in (1, 3, 5):
        for system in (None, "Be brief.") if found.system else (None,):
            conversation = talk(turns, system)
            expected = template.render(conversation, generation_prompt=True)
            assert go_render(source, *as_ollama(conversation)) == expected
    assert (found.system is None) == (name == "no system")


def test_an_answer_that_stands_last_is_continued(tokenizer: Any) -> None:
    template = Template(tokenizer)
    conversation = talk(4)
    text = go_render(go_template(surroundings(template)), *as_ollama(conversation))
    assert text == template.render(conversation).removesuffix("<|im_end|>\n")


def test_numbered_rounds_are_said(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for source in (NUMBERED, named_templates()["chatglm2"].text):
        template = Template(tokenizer, source=source)
        with pytest.raises(NotExpressible, match="does not write the same text around every turn"):
            surroundings(template)
        text = modelfile("a.gguf", template, Serving(), writes_bos=False)
        assert 'TEMPLATE "' not in text
        assert "# No TEMPLATE: the chat template does not write the same text" in text
        assert "the Modelfile has no TEMPLATE" in capsys.readouterr().err


def test_bos_is_written_once(tokenizer: Any) -> None:
    template = Template(tokenizer, source=LLAMA2)
    assert 'TEMPLATE """{{ if .System }}<|endoftext|>[INST]' in modelfile(
        "a.gguf", template, Serving(), writes_bos=False
    )
    text = modelfile("a.gguf", template, Serving(), writes_bos=True)
    assert 'TEMPLATE """{{ if .System }}[INST] <<SYS>>' in text
    assert " <|im_end|><|endoftext|>[INST] {{ end }}" in text


def test_a_whole_modelfile(tokenizer: Any) -> None:
    serving = Serving(system='Say "丹".', parameters={"temperature": 0.0, "num_predict": 64})
    text = modelfile("mine-q8_0.gguf", Template(tokenizer, stop_ids=[0]), serving, writes_bos=False)
    assert text == (
        "# ollama create mine-q8_0 -f Modelfile\n"
        "FROM ./mine-q8_0.gguf\n\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n'
        "{{ else }}<|im_start|>user\n{{ end }}"
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "user" }}{{ .Content }}<|im_end|>\n<|im_start|>assistant\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ if not $last }}<|im_end|>\n<|im_start|>user\n{{ end }}'
        '{{ end }}{{ end }}"""\n\n'
        'SYSTEM """Say "丹"."""\n\n'
        'PARAMETER stop "<|endoftext|>"\n'
        'PARAMETER stop "<|im_end|>"\n'
        "PARAMETER temperature 0\n"
        "PARAMETER num_predict 64\n"
    )


def test_it_stands_beside_the_file(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    from danlu.verbs.export import export

    config = build(
        ExportConfig,
        {
            "model_name_or_path": str(tiny_models["llama"]),
            "output_dir": str(tmp_path / "out"),
            "export_format": "gguf",
        },
        where="test",
    )
    export(config)
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert "FROM ./out-q8_0.gguf" in text
    assert 'PARAMETER stop "<|im_end|>"' in text
