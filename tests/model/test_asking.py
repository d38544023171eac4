"""`engine=vllm`: a run's template, stop tokens and adapter reach vLLM (a stand-in for the package)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import danlu
from danlu.core.errors import ModelError
from danlu.models.runs import plain_model
from danlu.tune.config import TrainConfig
from danlu.verbs.asking import open_vllm

pytestmark = pytest.mark.model


class FakeLLM:
    made: list[Any]

    def __init__(self, **arguments: Any) -> None:
        FakeLLM.made.append(arguments)
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=512))

    def generate(self, prompts: Any, params: Any, **_: Any) -> list[Any]:
        answers = [
            SimpleNamespace(token_ids=prompt["prompt_token_ids"][-9:-5], finish_reason="length") for prompt in prompts
        ]
        return [SimpleNamespace(outputs=[answer]) for answer in answers]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeLLM.made = []
    package, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams = FakeLLM, SimpleNamespace  # type: ignore[attr-defined]
    request.LoRARequest = lambda *given: given  # type: ignore[attr-defined]
    for name, module in {"vllm": package, "vllm.lora": ModuleType("lora"), "vllm.lora.request": request}.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_predict_with_vllm(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "What is a run?", "input": "", "output": "A folder."}) + "\n")
    folder = str(tiny_models["llama"])
    file = danlu.predict(model=folder, dataset=str(rows), output_dir=str(tmp_path / "out"), engine="vllm")
    (row,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert row["predict"]
    assert row["prompt"].endswith("<|im_start|>assistant\n")
    assert FakeLLM.made == [{"model": folder, "dtype": "auto"}]


def test_only_lora_adapters(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    source = plain_model(str(tiny_models["llama"]), [str(adapter)])
    text: Any = SimpleNamespace(tokenizer=None, template=SimpleNamespace(stop_ids=frozenset()))
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "rank_pattern": {"q": 24}}))
    open_vllm(TrainConfig(), source, text)
    assert FakeLLM.made[0]["max_lora_rank"] == 24
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(ModelError, match="LoRA adapters only"):
        open_vllm(TrainConfig(), source, text)
