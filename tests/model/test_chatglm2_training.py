"""A folder in the layout of ChatGLM2 as the base of trainings: named as it is, converted on the way, exported back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm2 import reference_logits, stored_weights, write_checkpoint
from pieces import make_tokenizer_model
from probes import logits_of, token_batch
from tiny import build_tokenizer
from tuning import losses, tune, write_rows

from danlu.models.abilities import examine
from danlu.models.chatglm.convert import RECORD
from danlu.models.loading import load_model, model_folder
from danlu.models.runs import open_run
from danlu.verbs.export import export

pytestmark = pytest.mark.model


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "chatglm2", shards=2)
    build_tokenizer().save_pretrained(folder)
    return folder


def test_lora_on_the_original_folder(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tune(original, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", num_train_epochs=3)
    assert losses(run)[-1] < losses(run)[0]
    saved = json.loads((run / "manifest.json").read_text())["base"]
    assert (saved["name"], saved["path"]) == (str(original), str(original)), "the cache may be emptied"
    shutil.rmtree(model_folder(original).parent)
    capsys.readouterr()
    model, _ = open_run(run).load(dtype="float32")
    assert "was trained on" not in capsys.readouterr().err
    expected = logits_of(model, token_batch())
    export(run=str(run), output_dir=str(tmp_path / "native"))
    export(run=str(run), output_dir=str(tmp_path / "back"), export_format="original")
    assert load_model(tmp_path / "native").config.model_type == "glm"
    assert stored_weights(tmp_path / "back").keys() == stored_weights(original).keys()
    for found in (
        logits_of(load_model(tmp_path / "native"), token_batch()),
        reference_logits(tmp_path / "back", token_batch()),
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # what was exported is a base again, and remembers where it came from
    export(model_name_or_path=str(tmp_path / "native"), output_dir=str(tmp_path / "again"), export_format="original")
    torch.testing.assert_close(reference_logits(tmp_path / "again", token_batch()), expected, atol=1e-4, rtol=1e-4)


def test_full_tuning_is_written_back(original: Path, tmp_path: Path) -> None:
    run = tune(original, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", finetuning_type="full")
    assert not (run / RECORD).exists()
    export(run=str(run), output_dir=str(tmp_path / "back"), export_format="original")
    before, after = stored_weights(original), stored_weights(tmp_path / "back")
    assert before.keys() == after.keys()
    frequencies = "transformer.rotary_pos_emb.inv_freq"
    assert [name for name in before if torch.equal(before[name], after[name])] == [frequencies]
    torch.testing.assert_close(
        reference_logits(tmp_path / "back", token_batch()),
        logits_of(load_model(run), token_batch()),
        atol=1e-4,
        rtol=1e-4,
    )


def test_batches_need_no_padding(original: Path) -> None:
    assert examine(load_model(original)).packed


def test_what_a_folder_is(original: Path, tmp_path: Path) -> None:
    from danlu.cli.models import show_model

    facts: dict[str, Any] = show_model(str(original))
    assert (facts["model_type"], facts["family"], facts["layers"], facts["context"]) == ("chatglm", "chatglm2", 2, 256)
    bare = write_checkpoint(tmp_path / "bare")
    assert show_model(str(bare))["chat_template"] is False
    make_tokenizer_model(bare)
    assert show_model(str(bare))["chat_template"] is True
