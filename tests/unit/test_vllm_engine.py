"""The vLLM engine against a stand-in for the package: what it is given, and what is made of its answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from danlu.core.errors import MissingDependency, ModelError, UsageError
from danlu.data.schema import Conversation, Message
from danlu.engine.protocol import GenerationOptions, Request, ScoreRequest
from danlu.engine.vllm import VllmEngine

END = 1


class Letters:
    """A token for each letter; ``ab`` is one token."""

    stop_ids = frozenset({END})

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [0x3A9 if letter == "Ω" else ord(letter) for letter in "^" + text.replace("ab", "Ω")]}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))

    def prompt(self, conversation: Conversation) -> list[int]:
        return [ord(letter) for letter in conversation.messages[-1].content]


class FakeLLM:
    made: list[dict[str, Any]]
    asked: list[Any]

    def __init__(self, **arguments: Any) -> None:
        FakeLLM.made.append(arguments)
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=32))

    def generate(self, prompts: Any, params: Any, *, use_tqdm: bool, lora_request: Any) -> list[Any]:
        FakeLLM.asked.append((params, lora_request))
        outputs = []
        for prompt, _ in zip(prompts, params, strict=True):
            ids = prompt["prompt_token_ids"]
            places = [None, *({i: SimpleNamespace(logprob=-1.0, rank=2 if i == ord("x") else 1)} for i in ids[1:])]
            answer = SimpleNamespace(token_ids=[*reversed(ids), END], finish_reason="stop")
            outputs.append(SimpleNamespace(outputs=[answer], prompt_logprobs=places))
        return outputs


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeLLM.made, FakeLLM.asked = [], []
    package, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams = FakeLLM, SimpleNamespace  # type: ignore[attr-defined]
    request.LoRARequest = lambda *given: given  # type: ignore[attr-defined]
    for name, module in {"vllm": package, "vllm.lora": ModuleType("lora"), "vllm.lora.request": request}.items():
        monkeypatch.setitem(sys.modules, name, module)


def engine(**options: Any) -> VllmEngine:
    return VllmEngine("base", Letters(), Letters(), **options)


def test_answers_with_the_adapter_of_a_run() -> None:
    options = GenerationOptions(do_sample=True, temperature=0.5, stop=("b",), max_new_tokens=4)
    asked = Request("k", Conversation((Message("user", "abc"),)), options)
    (found,) = engine(adapters=["runs/x"], rank=32, dtype="bfloat16").generate([asked])
    assert found.text == "c"
    assert found.tokens == (*map(ord, "cba"), END)
    assert (found.prompt_tokens, found.finish_reason) == (3, "stop")
    assert FakeLLM.made == [{"model": "base", "dtype": "bfloat16", "enable_lora": True, "max_lora_rank": 32}]
    (params,), lora = FakeLLM.asked[0]
    assert lora == ("run", 1, "runs/x")
    assert (params.temperature, params.top_k, params.stop_token_ids, params.max_tokens) == (0.5, -1, [END], 4)
    assert params.seed > 0


def test_greedy_and_too_long() -> None:
    (found,) = engine().generate([Request("k", tuple(range(50, 100)), GenerationOptions(max_new_tokens=8))])
    assert (found.prompt_tokens, found.cut_tokens) == (24, 26)
    assert FakeLLM.asked[0][0][0].temperature == 0.0


def test_scores_begin_where_all_texts_part() -> None:
    (found,) = engine().score([ScoreRequest("k", "so a", ("b", "xc"), per_token=True)])
    assert found.tokens == (1, 3), "the token ab; a, x and c"
    assert found.log_probs == (-1.0, -3.0)
    assert found.greedy == (True, False)
    assert found.per_token == ((-1.0,), (-1.0,) * 3)
    assert found.prompt_tokens == 5


def test_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="one adapter at a time"):
        engine(adapters=["a", "b"])
    with pytest.raises(UsageError, match="no beams"):
        list(engine().generate([Request("k", "x", GenerationOptions(num_beams=2))]))
    with pytest.raises(UsageError, match="plain text only"):
        list(engine().score([ScoreRequest("k", (1,), ("x",))]))
    with pytest.raises(UsageError, match="context of 32"):
        list(engine().score([ScoreRequest("k", "x" * 40, ("x",))]))
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependency, match="pip install vllm"):
        engine()
