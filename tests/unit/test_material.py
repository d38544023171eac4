"""What is said of rows before a training: nothing is lost silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_tokenizer import CHATML, UNSTABLE, make_template

from danlu.core import console
from danlu.core.errors import DataError
from danlu.data.encode import EncodingRules
from danlu.data.prepare import Prepared, Selection, prepare
from danlu.data.rendering import ONE_ANSWER
from danlu.verbs.material import tell

PAIR = {"prompt": "what?", "chosen": "a run", "rejected": "a folder"}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.err, "_width", 400)


def prepared(folder: Path, rows: list[dict[str, Any]], stage: str, *, source: str = CHATML, **rules: Any) -> Prepared:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return prepare(
        Selection((str(path),)),
        make_template(source),
        EncodingRules(**rules),
        tokenizer_digest="vocabulary",
        stage=stage,
        folder=folder / "cache",
    )


def told(found: Prepared, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The warnings."""
    tell(found, "training")
    return [line for line in capsys.readouterr().err.splitlines() if "sequences from" not in line]


def test_sound_pairs_are_no_news(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(prepared(tmp_path, [PAIR], "dpo"), capsys) == []


def test_pairs_that_teach_no_preference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [PAIR, {**PAIR, "rejected": "a run"}, {**PAIR, "rejected": ""}]
    same, bad = told(prepared(tmp_path, rows, "rm"), capsys)
    assert f"1 pairs whose two answers are the same: they teach no preference, for instance {tmp_path}" in same
    assert "rows.jsonl:2" in same
    assert "1 rows could not be read" in bad
    assert "rows.jsonl:3:rejected: the answer is empty" in bad


@pytest.mark.parametrize(("labels", "missing"), [((True, True), "unwanted"), ((False, False), "wanted")])
def test_labels_of_one_kind(
    labels: tuple[bool, ...], missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"what {n}?", "completion": "a run", "label": label} for n, label in enumerate(labels)]
    (line,) = told(prepared(tmp_path, rows, "kto"), capsys)
    assert f"there is no {missing} answer" in line
    rows[0]["label"] = not labels[0]
    assert told(prepared(tmp_path, rows, "kto"), capsys) == []


def test_one_prompt_is_too_few_for_kto(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1.*only one prompt"):
        prepared(tmp_path, [PAIR], "kto")


def test_a_sequence_for_each_answer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": role, "content": "<think>h</think>a"} for role in ("user", "assistant")]
    rows = [{"messages": turns * 2}, {"messages": turns}]
    found = prepared(tmp_path, rows, "sft", source=ONE_ANSWER + UNSTABLE)
    assert len(found.store) == 3
    (line,) = told(found, capsys)
    assert "1 conversations became a sequence for each answer" in line


def test_long_texts_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = told(prepared(tmp_path, [{"text": "a run is a folder " * 9}], "pt", cutoff_len=16), capsys)
    assert "1 rows longer than cutoff_len, shortened or split" in line
    assert "rows.jsonl:1" in line


@pytest.mark.parametrize("stage", ["dpo", "kto", "ppo"])
def test_nothing_fits(stage: str, tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": "what? " * 30}, {**PAIR, "prompt": "a run? " * 30}]
    with pytest.raises(DataError, match="all 2 rows are longer than cutoff_len=16"):
        prepared(tmp_path, rows, stage, cutoff_len=16)


def test_real_preferences_are_encoded_to_the_last(shared: Path, tmp_path: Path) -> None:
    counts = {}
    for name, stage in (("dpo_zh_demo", "dpo"), ("kto_en_demo", "kto"), ("dpo_zh_demo", "kto"), ("dpo_zh_demo", "ppo")):
        found = prepare(
            Selection((str(shared / "data" / "preference" / f"{name}.json"),)),
            make_template(),
            EncodingRules(cutoff_len=100_000),
            tokenizer_digest="vocabulary",
            stage=stage,
            folder=tmp_path / "cache",
        )
        report = found.store.report
        assert report["rows"] == 300
        assert [report[key] for key in ("left_out", "untrainable", "refused", "too_long", "same")] == [0] * 5
        counts[name, stage] = len(found.store)
    assert list(counts.values()) == [300, 300, 600, 300]
