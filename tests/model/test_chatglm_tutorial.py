"""The four commands of the tutorial of 2023, word for word, on a folder in the layout of ChatGLM2-6B."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from pieces import make_tokenizer_model

from danlu.cli.main import main

pytestmark = pytest.mark.model

SHORT = "--max_source_length 32 --max_target_length 12 --dataset_dir data"
"""Not the tutorial's: the tiny model reads 128 tokens."""

START = (
    "train --stage sft --model_name_or_path chatglm2-6b --dataset alpaca_gpt4_zh_test --finetuning_type lora "
    f"--per_device_train_batch_size 4 --gradient_accumulation_steps 4 {SHORT}"
)
TRAINING = (
    "--lr_scheduler_type cosine --logging_steps 1 --save_steps 1000 --learning_rate 5e-5 --num_train_epochs 3.0 "
    "--plot_loss --fp16"
)
EXPORT = "export --model_name_or_path chatglm2-6b --finetuning_type lora --checkpoint_dir tuned --output_dir exported"

FUSED = "self_attention.query_key_value.weight"


def danlu(words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code in (0, None)


@pytest.fixture
def folder(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``chatglm2-6b`` and ``data``, as the tutorial begins."""
    shutil.copytree(
        shared / "data" / "chatglm" / "tiny_v2", tmp_path / "chatglm2-6b", ignore=lambda *_: ["golden.safetensors"]
    )
    make_tokenizer_model(tmp_path / "chatglm2-6b", "chatglm2")
    rows = [{"instruction": f"问题{number}？", "input": "", "output": f"回答{number}。"} for number in range(16)]
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (data / "dataset_info.json").write_text(json.dumps({"alpaca_gpt4_zh_test": {"file_name": "rows.json"}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_four_commands(folder: Path) -> None:
    asked = "--checkpoint_dir tuned --per_device_eval_batch_size 8 --predict_with_generate"
    danlu(f"{START} --do_train --output_dir tuned {TRAINING}")
    danlu(f"{START} --do_eval --output_dir evaluated {asked} --max_samples 5")
    danlu(f"{START} --do_predict --output_dir predicted {asked} --max_samples 6")
    danlu(EXPORT)

    tuned = {path.name for path in (folder / "tuned").iterdir()}
    assert tuned >= {
        "adapter_config.json",
        "finetuning_args.json",
        "trainer_log.jsonl",
        "train_results.json",
        "training_loss.png",
    }
    arguments = json.loads((folder / "tuned" / "finetuning_args.json").read_text())
    assert arguments["lora_target"] == ["query_key_value"]
    evaluated = json.loads((folder / "evaluated" / "eval_results.json").read_text())
    assert {"eval_bleu-4", "eval_rouge-1", "eval_rouge-2", "eval_rouge-l"} <= evaluated.keys()
    predicted = (folder / "predicted" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["label"] for line in predicted] == [f"回答{number}。" for number in range(6)]


def test_the_exported_folder_is_that_of_the_old_tool(folder: Path) -> None:
    danlu(f"{START} --do_train --output_dir tuned --num_train_epochs 1.0 --learning_rate 1e-2")
    danlu(EXPORT)

    names = {path.name for path in (folder / "exported").iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "pytorch_model.bin",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    before, after = (
        torch.load(folder / name / "pytorch_model.bin", weights_only=True) for name in ("chatglm2-6b", "exported")
    )
    assert after.keys() == before.keys()
    moved = {key for key in before if not torch.equal(after[key].half(), before[key].half())}
    assert moved == {key for key in before if key.endswith(FUSED)}
    config, original = (json.loads((folder / name / "config.json").read_text()) for name in ("exported", "chatglm2-6b"))
    assert config == {**original, "torch_dtype": "float16"}
