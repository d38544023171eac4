"""The real files that other tools ship as examples, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from danlu.data.check import check
from danlu.data.convert import convert
from danlu.data.loading import load_rows

SHARED = Path(os.environ.get("DANLU_SHARED") or Path(__file__).parents[3] / "shared") / "data"

pytestmark = pytest.mark.skipif(not (SHARED / "sft").is_dir(), reason=f"there is no {SHARED}/sft")

COUNTS = {
    "sft/alpaca_en_demo.json": (999, "Example"),
    "sft/alpaca_zh_demo.json": (1000, "Example"),
    "sft/identity.json": (91, "Example"),
    "sft/glaive_toolcall_zh_demo.json": (300, "Example"),
    "sft/pretrain_c4_demo.jsonl": (300, "Document"),
    "preference/dpo_zh_demo.json": (300, "Preference"),
    "preference/kto_en_demo.json": (300, "UnpairedPreference"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_row_is_read(name: str) -> None:
    count, kind = COUNTS[name]
    report = check(str(SHARED / name))
    assert report.bad == ()
    assert report.kinds == {kind: count}


@pytest.mark.parametrize("name", [name for name, (_, kind) in COUNTS.items() if kind != "Document"])
@pytest.mark.parametrize("to", ["sharegpt", "openai", "native"])
def test_conversion_loses_nothing(tmp_path: Path, name: str, to: str) -> None:
    report = convert(str(SHARED / name), tmp_path / "out.json", to)
    assert report.written == report.read == COUNTS[name][0]
    assert report.lost == {}
    assert load_rows(str(tmp_path / "out.json")).rows == load_rows(str(SHARED / name)).rows
