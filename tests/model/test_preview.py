"""`danlu data preview` with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tuning import write_rows

from danlu.cli.preview import preview
from danlu.core import console
from danlu.core.errors import DataError, UsageError

pytestmark = pytest.mark.model


def test_rows_are_shown_with_their_place(
    tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "_width", 300)
    rows = write_rows(tmp_path / "[red]rows[bold].jsonl", 3)
    preview(str(rows), model=str(tiny_models["qwen3"]), rows=2)
    shown = capsys.readouterr().out
    assert "[red]rows[bold].jsonl:2: " in shown
    assert "⟦It is 0." in shown
    assert "⟦It is 7." in shown
    with pytest.raises(UsageError, match="there are 3 rows, the first to show is row 5"):
        preview(str(rows), model=str(tiny_models["qwen3"]), start=5)


def shown(name: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], **options: Any) -> list[str]:
    preview(str(name), model=str(models["llama"]), **options)
    return capsys.readouterr().out.splitlines()


def test_pairs_labelled_answers_and_texts(
    tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of row is shown as the stage that it is made for sees it; another stage can be asked for."""
    monkeypatch.setattr(console.out, "_width", 300)
    rows = [
        {"prompt": "What?", "chosen": "This.", "rejected": "No.", "margin": 0.5},
        {"prompt": "Who?", "chosen": "You.", "rejected": "I."},
    ]
    pairs = put(tmp_path / "pairs.jsonl", rows)
    lines = shown(pairs, tiny_models, capsys)
    assert lines[0].startswith(f"{pairs}:1: ")
    assert lines[1:9] == [
        "prompt",
        "<|im_start|>user",
        "What?<|im_end|>",
        "<|im_start|>assistant",
        "",
        "chosen, better by 0.5",
        "⟦This.<|im_end|>⟧",
        "rejected",
    ]
    assert lines[9] == "⟦No.<|im_end|>⟧"
    assert "chosen" in lines
    lines = shown(pairs, tiny_models, capsys, rows=1, stage="kto", ids=True)
    assert [line for line in lines if line.endswith(" answer")] == ["wanted answer", "unwanted answer"]
    assert not any("…" in line for line in lines)
    lines = shown(pairs, tiny_models, capsys, rows=1, stage="ppo")
    assert not any("⟦" in line for line in lines)
    with pytest.raises(DataError, match="stage sft trains on conversations"):
        shown(pairs, tiny_models, capsys, stage="sft")
    with pytest.raises(UsageError, match="no stage 'kot'"):
        shown(pairs, tiny_models, capsys, stage="kot")
    labelled = put(tmp_path / "kto.jsonl", [{"prompt": "What?", "completion": "This.", "label": False}])
    lines = shown(labelled, tiny_models, capsys)
    assert lines[-2:] == ["unwanted answer", "⟦This.<|im_end|>⟧"]
    texts = put(tmp_path / "texts.jsonl", [{"text": "A run is a folder."}, {"text": "丹炉" * 9}])
    lines = shown(texts, tiny_models, capsys, cutoff=12)
    assert lines[1].startswith("A⟦")
    assert len([line for line in lines if line.startswith(f"{texts}:2: ")]) > 1


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_that_make_no_sequence_and_rows_that_cannot_be_used(
    tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "_width", 300)
    good = {"prompt": "What?", "chosen": "This.", "rejected": "No."}
    pairs = put(tmp_path / "pairs.jsonl", [good, {**good, "chosen": "This. " * 99}, {**good, "rejected": ""}])
    lines = shown(pairs, tiny_models, capsys, cutoff=40, truncation="drop")
    assert lines[-2:] == [
        f"1 rows make no sequence (too long: {pairs}:2)",
        f"1 rows cannot be used, for instance {pairs}:3:rejected: the answer is empty",
    ]


def test_the_length_of_a_pair_is_its_prompt_with_the_longer_answer(tiny_models: dict[str, Path]) -> None:
    from danlu.cli.data import token_counter
    from danlu.data.schema import Conversation, Document, Message, Preference, UnpairedPreference

    count, measure = token_counter(str(tiny_models["llama"]))
    prompt = Conversation((Message("user", "What?"),))
    short, long = Message("assistant", "No."), Message("assistant", "This. " * 9)
    for first, second in ((short, long), (long, short)):
        whole = UnpairedPreference(Conversation((*prompt.messages, long)), True)
        assert count(Preference(prompt, first, second)) == count(whole) > measure(long.content)
    assert count(Document("What?")) == measure("What?") + 1  # the end of the text
