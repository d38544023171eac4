"""ChatGLM-6B in training: every method, and objectives of every kind; it learns, and is the same when opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods_tried import METHODS, Watch
from pieces import make_tokenizer_model
from probes import logits_of
from test_chatglm1_model import SEQUENCES, SOP
from test_matrix import (
    Cell,
    assert_learnt,
    assert_only_its_own_weights_moved,
    assert_the_head_says_the_same,
    options_of,
)
from test_matrix import rows as stage_rows  # noqa: F401  (a fixture)
from test_resume import killed_at
from tiny import build_chatglm1
from tuning import assert_same_run, losses, tune

from danlu.core.errors import ConfigError, DataError, ModelError
from danlu.data.encode import EncodingReport
from danlu.data.templates import Encoded
from danlu.data.tokens import Item, TokenStore, write_store
from danlu.models.adapters import merge
from danlu.models.export import export
from danlu.models.loading import load_model
from danlu.models.runs import open_run, plain_model
from danlu.tune import methods
from danlu.tune.contexts import check_contexts
from danlu.tune.methods.old_names import known_names

pytestmark = pytest.mark.model

STAGES = {
    "full": "dpo",
    "lora": "ppo",
    "p_tuning_v2": "rm",
    "houlsby": "grpo",
    "freeze": "rm",
    "rslora": "dpo",
    "prompt_tuning": "kto",
    "ia3": "ipo",
    "oft": "orpo",
    "ln_tuning": "simpo",
}
"""Objectives that are tried besides sft, each with one method."""

CELLS = [Cell(variant, "sft", "chatglm1") for variant in METHODS if variant not in ("rslora", "orthogonal", "olora")]
CELLS += [Cell(variant, stage, "chatglm1") for variant, stage in STAGES.items()]
OWN = {"pissa": {"lora_target": "query_key_value, dense_4h_to_h"}}
"""Options that differ for this model, by variant."""


SLOW = ("p_tuning_v2", "projection", "prefix_tuning", "prompt_tuning", "p_tuning-mlp", "vera", "pfeiffer")
"""They get more steps: residuals weigh √56, and what these change inside a layer little beside them."""


def changed(cell: Cell, rows: dict[str, Path]) -> dict[str, Any]:
    steps = {"num_train_epochs": 16} if cell.variant in SLOW else {}
    return {**options_of(cell, rows), **steps, **OWN.get(cell.variant, {})}


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(
    cell: Cell,
    chatglm1: Path,
    stage_rows: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    watch: Watch,
) -> None:
    run = tune(chatglm1, stage_rows[cell.stage], tmp_path / "run", **changed(cell, stage_rows))
    assert watch.learner.abilities.packed
    assert_learnt(cell, losses(run))
    assert_only_its_own_weights_moved(cell, watch)
    ids = torch.tensor(SEQUENCES[:1])
    in_memory = logits_of(watch.model(), ids)
    opened, _ = open_run(run).load()
    torch.testing.assert_close(logits_of(opened, ids), in_memory, rtol=1e-4, atol=1e-4)
    assert_the_head_says_the_same(run, watch.learner, opened, ids)
    if methods.family(cell.method).kind == "peft":
        merged = merge(load_model(chatglm1, dtype="float32"), [run])
        torch.testing.assert_close(logits_of(merged, ids), in_memory, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["full", "projection"])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    variant: str,
    chatglm1: Path,
    stage_rows: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {**options_of(Cell(variant, "sft", "chatglm1"), stage_rows), "save_strategy": "steps", "save_steps": 2}
    whole = tune(chatglm1, stage_rows["sft"], tmp_path / "whole", **options)
    with killed_at(monkeypatch, 3):
        tune(chatglm1, stage_rows["sft"], tmp_path / "again", **options)
    assert_same_run(whole, tune(chatglm1, stage_rows["sft"], tmp_path / "again", **options))


def test_modules_are_found_under_both_names(chatglm1: Path) -> None:
    present = {name.rsplit(".", 1)[-1] for name, _ in load_model(chatglm1).named_modules()}
    assert known_names("query_key_value", present) == ("query_key_value",)
    assert known_names("k_proj", present) == ("query_key_value",)
    assert known_names("down_proj", present) == ("dense_4h_to_h",)
    assert known_names("self_attn", present) == ("attention",)
    assert known_names("gate_proj", present) == ("gate_proj",)


def test_what_it_does_not_have_is_refused(
    chatglm1: Path,
    stage_rows: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="'gate_proj'"):
        tune(chatglm1, stage_rows["sft"], tmp_path / "run", lora_target="gate_proj")
    with pytest.raises(ModelError, match="cannot be computed with flash_attention_2"):
        load_model(chatglm1, attention="flash_attention_2")


def test_modules_outside_the_layers(
    chatglm1: Path,
    stage_rows: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    watch: Watch,
) -> None:
    options = {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_trainable_modules": "self_attn"}
    tune(chatglm1, stage_rows["sft"], tmp_path / "run", **options, freeze_extra_modules="norm, embed_tokens")
    moved = {name.removeprefix("model.") for name in watch.moved()}
    assert {"transformer.final_layernorm.weight", "transformer.word_embeddings.weight"} <= moved
    assert {name for name in moved if ".layers." in name} == {
        f"transformer.layers.2.attention.{layer}.{part}"
        for layer in ("query_key_value", "dense")
        for part in ("weight", "bias")
    }


def test_nothing_that_is_seen_is_learnt(
    chatglm1: Path,
    stage_rows: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(DataError, match="tokens of the context are to be learnt"):
        tune(chatglm1, stage_rows["sft"], tmp_path / "run", train_on_prompt=True)
    run = tune(chatglm1, stage_rows["pt"], tmp_path / "pt", stage="pt", num_train_epochs=8)
    assert "8 of 8 rows have no token 5" in capsys.readouterr().err
    found = losses(run)
    assert found[-1] < found[0]


def kept(folder: Path, *items: list[tuple[list[int], list[bool]]]) -> TokenStore:
    made = [Item(number, tuple(Encoded(ids, trained) for ids, trained in item)) for number, item in enumerate(items)]
    return write_store(folder, made, range(len(made)), EncodingReport())


def test_where_contexts_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = [([8, SOP, 9, 8, SOP, 9], [False, False, True, False, False, True])]
    shared = [([8, SOP], [False, False]), ([9], [True]), ([7], [True])]
    check_contexts(kept(tmp_path / "shared", shared), [0], SOP)
    assert not capsys.readouterr().err
    check_contexts(kept(tmp_path / "twice", twice, [([8, 9], [False, True])]), [0, 1], SOP)
    told = capsys.readouterr().err
    assert "1 of 2 rows hold several tokens 5" in told
    assert "1 of 2 rows have no token 5" in told
    late = [([8], [False]), ([SOP, 9], [True, True]), ([SOP, 7], [True, True])]
    itself = [([8, SOP, 9], [False, True, True])]
    for number, wrong in enumerate((late, itself)):
        with pytest.raises(DataError, match="row 0"):
            check_contexts(kept(tmp_path / str(number), wrong), [0], SOP)


def test_from_an_original_folder_to_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a tokenizer of the released kind: several rounds are trained, exported, and opened from what was written."""
    ids = {"bos_token_id": 504, "eos_token_id": 505, "mask_token_id": 500, "gmask_token_id": 501, "pad_token_id": 3}
    made, base = build_chatglm1(tmp_path / "made", vocab_size=528, **ids), tmp_path / "chatglm-6b"
    base.mkdir()
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        (made / file).rename(base / file)
    make_tokenizer_model(base, "chatglm1")
    rows = [
        {
            "instruction": f"what is {n}",
            "input": "",
            "output": f"it is {n}",
            "history": [["a run", "a folder"]] * (n % 2),
        }
        for n in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = tune(base, tmp_path / "rows.jsonl", tmp_path / "run", num_train_epochs=8)
    told = capsys.readouterr().err
    assert "4 conversations became a sequence for each answer" in told
    assert "<sop>" not in told
    assert losses(run)[-1] < 0.8 * losses(run)[0]
    report = export(open_run(run), tmp_path / "out", original=True)
    assert {"ice_text.model", "tokenizer_config.json", "config.json", "model.safetensors"} <= set(report.files)
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()
    (here, tokenizer), (there, again) = open_run(run).load(), plain_model(str(tmp_path / "out")).load()
    question = torch.tensor([tokenizer("what is 3")["input_ids"]])
    assert question[0, -2:].tolist() == [501, 504]
    assert again("what is 3")["input_ids"] == question[0].tolist()
    torch.testing.assert_close(logits_of(there, question), logits_of(here, question), rtol=1e-3, atol=1e-3)
