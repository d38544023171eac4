"""Model cards of exports: metadata that hubs accept, and everything that is known of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from danlu.models.card import model_card, public_name
from danlu.models.card_facts import Facts, base_licence, card_metadata, read_facts

LINEAGE: dict[str, Any] = {
    "danlu": "0.1.0",
    "base": "smollm2-135m",
    "method": "lora",
    "adapters": [{"path": "/home/me/runs/mine", "sha256": "ab"}],
    "kept": None,
    "dtype": "bfloat16",
    "parameters": 134515008,
    "files": ["model.safetensors", "config.json"],
    "checks": {"merge_difference": 1e-6, "reload_difference": 0.0, "rounding": 0.01},
}


def a_run(folder: Path) -> Path:
    """The files of a finished run that a card reads."""
    manifest = {
        "created": "2026-11-24T18:13:55+00:00",
        "versions": {"torch": "2.13.0"},
        "stage": "sft",
        "method": "lora",
        "data": [
            {"name": "alpaca_gpt4_zh", "path": "x", "sha256": "0123456789abcdef", "rows": 48818},
            {"name": "/home/me/data/own.jsonl", "path": "/home/me/data/own.jsonl", "sha256": "ffff", "rows": 12},
        ],
        "eval_data": [{"name": "held.jsonl", "path": "held.jsonl", "rows": 40}],
    }
    score = {"name": "bleu-4", "value": 28.3927, "low": 23.03, "high": 34.01, "n": 40, "scale": 100.0}
    score |= {"protocol": "as nltk|tok:letters", "interval": "bootstrap", "data": "/home/me/data/held.jsonl"}
    for name, value in (
        ("manifest.json", manifest),
        ("all_results.json", {"train_loss": 1.23456, "eval_loss": 2.0, "train_runtime": 9.0}),
        ("eval_scores.json", [score]),
    ):
        (folder / name).write_text(json.dumps(value))
    return folder


def card(facts: Facts, form: str = "safetensors", **changes: Any) -> tuple[dict[str, Any], str]:
    text = model_card({**LINEAGE, **changes}, "mine", facts, form=form, has_template=True)
    assert text.startswith("---\n")
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_what_hubs_read(tmp_path: Path) -> None:
    head, _ = card(read_facts(a_run(tmp_path)))
    assert head == {
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": ["en", "zh"],
        "datasets": ["llamafactory/alpaca_gpt4_zh"],
        "tags": ["danlu", "lora", "sft"],
    }


def test_what_people_read(tmp_path: Path) -> None:
    _, body = card(read_facts(a_run(tmp_path), {"learning_rate": "0.0005"}))
    for line in (
        "smollm2-135m, tuned with the method lora on answers of conversations, as a model folder.",
        "| Adapters | mine (merged) |",
        "| alpaca_gpt4_zh | 48,818 | CC BY-NC 4.0 | `0123456789ab` |",
        "| own.jsonl | 12 | not known to danlu | `ffff` |",
        "Held out for evaluation: held.jsonl (40 rows).",
        "| learning_rate | 0.0005 |",
        "| training, mean of all steps | 1.2346 |",
        "| evaluation rows | 2.0000 |",
        "Trained with torch 2.13.0, on 2026-11-24.",
        "| bleu-4 | 28.39 | 23.03–34.01 | 40 | held.jsonl | as nltk, tok:letters; bootstrap |",
        "| read back against written | 0.0e+00 |",
        "danlu chat --model mine",
        "- Base model: Apache-2.0 (according to https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct).",
        "- alpaca_gpt4_zh: CC BY-NC 4.0.",
        "- own.jsonl: not known to danlu; look it up at its source.",
    ):
        assert line in body, line
    assert "/home/me" not in body


def test_what_is_not_known_is_not_told(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    head, body = card(read_facts(None), base=str(base), method=None, adapters=[], checks=LINEAGE["checks"])
    assert set(head) == {"library_name", "pipeline_tag", "tags"}
    assert "base, as it is, as a model folder." in body
    assert "its licence is not known to danlu; look it up where base was published" in body
    for section in ("## Data", "## Training", "## Scores", "Adapters"):
        assert section not in body


def test_a_gguf_file_and_a_classifier() -> None:
    head, body = card(Facts(), "gguf", files=["mine-q8_0.gguf", "Modelfile"], checks=LINEAGE["checks"])
    assert "gguf" in head["tags"]
    assert "library_name" not in head
    assert "ollama create mine-q8_0 -f Modelfile" in body
    assert "llama-cli -m mine-q8_0.gguf" in body
    head, body = card(Facts(), "classifier")
    assert head["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification" in body


def test_an_adapter_that_stays_beside_its_base() -> None:
    _, body = card(Facts(), kept="/home/me/runs/mine")
    assert "| Adapters | mine (beside the base) |" in body
    assert "danlu chat --model mine --adapter mine/adapter" in body
    assert "pipeline(" not in body


def test_adapters_that_were_merged_without_a_run() -> None:
    _, body = card(Facts(), method=None)
    assert "as it is" not in body
    assert "with adapters whose training is not recorded here" in body
    both = [{"path": "/home/me/runs/first"}, {"path": "/home/me/runs/mine"}]
    assert "first (merged), mine (beside the base)" in card(Facts(), adapters=both, kept="/home/me/runs/mine")[1]


def test_licences_of_bases(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: qwen\n---\n# Base\n")
    found = base_licence(str(tmp_path))
    assert found is not None
    assert found.name == "qwen"
    (tmp_path / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    assert card_metadata(tmp_path / "README.md") == {}
    (tmp_path / "README.md").write_text("# No metadata\n")
    assert base_licence(str(tmp_path)) is None
    assert base_licence("nobody/knows") is None


def test_a_licence_of_its_publishers_own() -> None:
    head, body = card(Facts(), base="zai-org/chatglm2-6b")
    assert (head["license"], head["license_name"]) == ("other", "ChatGLM")
    assert head["license_link"].startswith("https://huggingface.co/zai-org/chatglm2-6b")
    assert "commercial use asks for registration" in body
    assert card(Facts(), base="Qwen/Qwen3-0.6B")[0]["license"] == "apache-2.0"


def test_a_damaged_results_file_is_no_reason_to_fail(tmp_path: Path) -> None:
    (a_run(tmp_path) / "all_results.json").write_text("{cut")
    assert read_facts(tmp_path).losses == {}


def test_names_without_folders() -> None:
    assert public_name("/home/me/own.jsonl") == "own.jsonl"
    assert public_name("owner/name") == "owner/name"
