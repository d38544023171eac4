"""A small real tokenizer with control tokens, made with the tokenizers library alone, and chat templates for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from danlu.data.schema import Conversation, Message
from danlu.data.templates import Template

tokenizers = pytest.importorskip("tokenizers")

CORPUS = [
    "The furnace takes raw text and gives back a small model that answers.\n\nIt is hot.",
    "What is a run? A run is a folder.\n\n\nuser assistant system tool 0 1 2 3 4 5 6 7 8 9",
    "丹炉把原始文本炼成会回答的小模型。什么是运行？",
]
SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<s>")
PLAIN = ("<think>", "</think>", "<tool_call>", "</tool_call>")

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
GLM = (
    "<s>{%- for message in messages -%}{{ '<|' + message.role + '|>\\n' + message.content }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)
BARE = (
    "{%- for message in messages -%}{{ message.role + ': ' + message.content + '\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'assistant: ' }}{%- endif -%}"
)
TOOLS = (
    "{%- if tools -%}{{ '<|im_start|>system\\n' }}{%- for tool in tools -%}{{ tool | tojson }}{%- endfor -%}"
    "{{ '<|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{%- for call in message.tool_calls or [] -%}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}"
    "{%- endfor -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
UNSTABLE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' and not loop.last -%}{{ message.content.split('</think>')[-1] }}"
    "{%- else -%}{{ message.content }}{%- endif -%}{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


@dataclass
class SmallTokenizer:
    """What a template needs of a tokenizer."""

    backend_tokenizer: Any
    eos_token: str
    chat_template: str | None = None
    split_special_tokens: bool = False

    @property
    def eos_token_id(self) -> int:
        return int(self.backend_tokenizer.token_to_id(self.eos_token))

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        return {"eos_token": self.eos_token}

    @property
    def all_special_tokens(self) -> list[str]:
        return list(SPECIAL)

    def get_added_vocab(self) -> dict[str, int]:
        return {item.content: number for number, item in self.backend_tokenizer.get_added_tokens_decoder().items()}

    def encode(self, text: str, *, add_special_tokens: bool = False, split_special_tokens: bool = False) -> list[int]:
        self.backend_tokenizer.encode_special_tokens = split_special_tokens
        try:
            return list(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        finally:
            self.backend_tokenizer.encode_special_tokens = False

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return str(self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    @property
    def control_ids(self) -> set[int]:
        return set(self.get_added_vocab().values())


class SlowTokenizer(SmallTokenizer):
    """The same without batches: the path of tokenizers written in Python."""

    def __init__(self, fast: SmallTokenizer) -> None:
        super().__init__(None, fast.eos_token, fast.chat_template)
        self.fast = fast

    def __getattribute__(self, name: str) -> Any:
        own = ("fast", "backend_tokenizer", "__class__", "__dict__")
        return object.__getattribute__(self, name) if name in own else getattr(self.fast, name)


@cache
def _core(kind: str, extra: tuple[str, ...]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE(byte_fallback=kind != "bytes"))
    if kind == "bytes":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        fallback: list[str] = []
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
        core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=kind)])
        alphabet, fallback = list("abcdefghijklmnopqrstuvwxyz\n▁"), [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*SPECIAL, *fallback], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    if fallback:  # they are ordinary words of such vocabularies, not added ones
        core = _without_added(core, fallback)
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in (*PLAIN, *extra)])
    return core


def _without_added(core: Any, texts: list[str]) -> Any:
    import json

    from tokenizers import Tokenizer

    state = json.loads(core.to_str())
    state["added_tokens"] = [item for item in state["added_tokens"] if item["content"] not in texts]
    return Tokenizer.from_str(json.dumps(state))


def make_tokenizer(
    template: str | None = CHATML, *, kind: str = "bytes", eos: str = "<|im_end|>", extra: tuple[str, ...] = ()
) -> SmallTokenizer:
    """A tokenizer of the byte-level kind, or of the SentencePiece kind (``always``, ``first``, ``never``)."""
    return SmallTokenizer(_core(kind, extra), eos, template)


def make_template(source: str = CHATML, *, kind: str = "bytes", **options: Any) -> Template:
    """A template for it; the GLM-like one ends answers with the next role's marker."""
    eos = "<|end|>" if source in (GLM, BARE) else "<|im_end|>"
    tokenizer = make_tokenizer(source, kind=kind, eos=eos)
    stops = [tokenizer.get_added_vocab()["<|user|>"]] if source == GLM else []
    return Template(tokenizer, stop_ids=stops, **options)


def talk(*texts: str, system: str | None = None) -> Conversation:
    """User and assistant in turns."""
    messages = [Message("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(texts)]
    return Conversation((*([Message("system", system)] if system else []), *messages))


def trained_text(template: Template, encoded: Any) -> list[str]:
    """Runs of trained tokens as text."""
    runs: list[list[int]] = []
    before = False
    for number, flag in zip(encoded.ids, encoded.trained, strict=True):
        if flag and not before:
            runs.append([])
        if flag:
            runs[-1].append(number)
        before = flag
    return [str(template.tokenizer.decode(run, skip_special_tokens=False)) for run in runs]
