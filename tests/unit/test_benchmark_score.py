"""The scoring benchmark: C-Eval's own prompt, and a table that says what was measured."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import score

ROWS = [
    {"id": "0", "question": "第一题____", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "answer": "C"},
    {"id": "1", "question": "第二题", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "A"},
]


def test_the_prompt_is_that_of_the_release(tmp_path: Path) -> None:
    (tmp_path / "mapping.json").write_text(json.dumps({"law": {"name": "法学", "category": "Humanities"}}), "utf-8")
    for split in ("dev", "val"):
        (tmp_path / split).mkdir()
        with (tmp_path / split / f"law_{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    first, second = score.prompts(tmp_path, "law", 1, None)
    assert first == (
        "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n"
        "第一题____\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：C\n\n"
        "第一题____\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案："
    )
    assert second.endswith("\n\n第二题\nA. 1\nB. 2\nC. 3\nD. 4\n答案：")
    assert score.prompts(tmp_path, "law", 1, 1) == [first]


def test_the_table_compares_medians_and_choices() -> None:
    told = score.compare([(-1.0, -2.0), (-3.0, -2.5)], [(-1.5, -2.0), (-2.0, -2.5)])
    assert told == {"equal_choices": 1, "of": 2, "largest_difference": 1.0}
    speeds = {"shared": (6, 4, 5), "full prompts": (2, 1, 3)}
    runs = [{"side": name, "questions_per_second": value} for name, found in speeds.items() for value in found]
    lines = score.table({"runs": runs, "equal": {"shared": told}}).splitlines()
    assert lines[2] == "| shared | 5.00 (4.00–6.00) | 1.00 × | 1 of 2 | 1.0e+00 |"
    assert lines[3] == "| full prompts | 2.00 (1.00–3.00) | 2.50 × | – | – |"


def test_a_python_without_the_peer_is_noticed() -> None:
    assert not score.can_import("/nowhere/python")
