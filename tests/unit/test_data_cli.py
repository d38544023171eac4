"""``danlu data`` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from danlu.cli.data import app
from danlu.core import console
from danlu.core.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (console.out, console.err):
        monkeypatch.setattr(stream, "_width", 160)


def run(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    if isinstance(result.exception, (DataError, UsageError)):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def put(folder: Path, rows: list[dict[str, Any]], name: str = "x.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def alpaca(text: str, answer: str = "a") -> dict[str, Any]:
    return {"instruction": text, "input": "", "output": answer}


def test_list_shows_yours_and_the_catalog(tmp_path: Path) -> None:
    entries = {"mine": {"file_name": "x.jsonl"}, "odd": {"script_url": "x.py"}}
    put(tmp_path, [entries], "dataset_info.json")
    text = run("list", "--dataset-dir", tmp_path).output
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "x.jsonl" in lines["mine"]
    assert "cannot be used" in lines["odd"]
    assert "CC BY-NC 4.0" in lines["alpaca_gpt4_zh"]
    value = json.loads(run("list", "--json", "--dataset-dir", tmp_path).output)
    assert {item["name"]: item["from"] for item in value}["mine"] == "yours"
    assert {item["name"]: item["rows"] for item in value}["belle_2m"] == 2_000_000


def test_check_of_a_sound_file(tmp_path: Path) -> None:
    text = run("check", put(tmp_path, [alpaca("1"), alpaca("2")])).output
    assert "2 good rows (2 Example), no bad rows" in text


def test_check_names_bad_rows_and_fails(tmp_path: Path) -> None:
    path = put(tmp_path, [alpaca("1"), alpaca("[b]2[/b]", "")])
    good = tmp_path / "good.jsonl"
    text = run("check", path, "--write-good", good, code=1).output
    assert f"{path}:2:output: the answer is empty" in text
    assert "1 good rows (1 Example), 1 bad" in text
    assert good.read_text(encoding="utf-8") == json.dumps(alpaca("1")) + "\n"


def test_check_shortens_a_long_list_unless_told(tmp_path: Path) -> None:
    path = put(tmp_path, [alpaca("1"), *[alpaca("2", "")] * 60])
    assert "and 10 more bad rows" in run("check", path, code=1).output
    assert run("check", path, "--show", "0", code=1).output.count("the answer is empty") == 60
    value = json.loads(run("check", path, "--json", code=1).output)
    assert len(value[0]["bad"]) == 60
    assert value[0]["bad"][0] == {
        "file": str(path),
        "line": 2,
        "row": 1,
        "field": "output",
        "message": "the answer is empty",
    }


def test_check_of_several_names(tmp_path: Path) -> None:
    first, second = put(tmp_path, [alpaca("1")], "a.jsonl"), put(tmp_path, [alpaca("1", "")], "b.jsonl")
    text = run("check", first, second, code=1).output
    assert "1 good rows" in text
    assert "0 good rows, 1 bad" in text
    with pytest.raises(UsageError, match="one dataset"):
        run("check", first, second, "--write-good", tmp_path / "g.jsonl")


def test_names_with_brackets_are_not_markup(tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "[red]", "value": "x"}]}
    text = run("check", put(tmp_path, [row]), code=1).output
    assert "x.jsonl:1:conversations[1].from: unknown role '[red]'" in text


def test_stats_of_preferences(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a" * n, "rejected": "bbb"} for n in (1, 5, 9)]
    text = run("stats", put(tmp_path, [*rows, {"prompt": "q", "chosen": "c", "rejected": "c"}])).output
    assert "better answer is longer" in text
    assert "50.0% of the pairs" in text
    assert "both answers the same" in text
    labelled = [{"prompt": "q", "completion": "a" * n, "label": n > 4} for n in (1, 5, 9)]
    text = run("stats", put(tmp_path, labelled)).output
    assert [line.split()[-3:-1] for line in text.splitlines() if "answer, mean" in line] == [
        ["mean", "7.0"],
        ["mean", "1.0"],
    ]
    value = json.loads(run("stats", put(tmp_path, labelled), "--json").output)
    assert (value["answers"]["wanted"], value["answers"]["unwanted"]) == (2, 1)


def test_check_for_a_stage(tmp_path: Path) -> None:
    pairs = put(tmp_path, [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    result = run("check", pairs, "--stage", "sft", code=1)
    assert "stage sft trains on conversations, this row is for pairs" in result.output
    assert "1 good rows" in run("check", pairs, "--stage", "dpo").output


def test_stats(tmp_path: Path) -> None:
    path = put(tmp_path, [alpaca("今天天气怎么样？", "很好" * 30), alpaca("q"), alpaca("q"), alpaca("q", "")])
    result = run("stats", path, "--cutoff", "10")
    text = " ".join(result.output.split())
    assert "rows 3 3 Example" in text
    assert "longer than 10 1 33.3% of the rows; 58 characters beyond it" in text
    assert "duplicates 1" in text
    assert "language zh 1" in text
    assert "1 bad rows are left out" in text
    value = json.loads(run("stats", path, "--json").output)
    assert (value["rows"], value["bad"], value["cutoff"]) == (3, 1, None)
    assert value["sources"][0]["rows"] == 3


def test_convert(tmp_path: Path) -> None:
    path, target = put(tmp_path, [{**alpaca("1"), "id": 7}]), tmp_path / "y.jsonl"
    text = run("convert", path, target, "--to", "openai").output
    assert f"1 of 1 rows from alpaca to openai: {target}" in text
    assert "nothing that danlu reads is lost" in text
    assert "column not carried over: id (1 rows)" in text
    assert list(json.loads(target.read_text())) == ["messages"]
    value = json.loads(run("convert", path, target, "--to", "sharegpt", "--json").output)
    assert (value["written"], value["format"]) == (1, "sharegpt")


def test_convert_with_bad_rows_writes_the_rest_and_fails(tmp_path: Path) -> None:
    path, target = put(tmp_path, [alpaca("1"), alpaca("2", "")]), tmp_path / "y.json"
    text = run("convert", path, target, "--to", "rounds", code=1).output
    assert ":2:output: the answer is empty" in text
    assert len(json.loads(target.read_text())) == 1


def test_losses_are_printed(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": False}]
    rows = [{"messages": messages}, {"messages": [messages[0], *messages]}]
    text = run("convert", put(tmp_path, rows), tmp_path / "y.json", "--to", "alpaca").output
    assert "left out: 1 rows" in text
    assert "lost: which turns are trained, in 1 rows" in text


def test_the_commands_import_nothing_heavy() -> None:
    heavy = "{'rich', 'yaml', 'numpy', 'danlu.data'}"
    script = f"import sys, danlu.cli.data; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_brackets_in_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Square brackets are rich's markup; a file's name may hold anything."""
    odd = put(tmp_path, [alpaca("1"), {"instruction": "2", "output": ""}], "[red]a[bold].jsonl")
    entries = {"[zh]mine": {"file_name": odd.name, "columns": {"prompt": "instruction", "response": "output"}}}
    put(tmp_path, [entries], "dataset_info.json")
    assert "[zh]mine" in run("list", "--dataset-dir", tmp_path).output
    text = run("check", odd, "--write-good", tmp_path / "[x]good.jsonl", code=1).output
    assert text.count("[red]a[bold].jsonl") == 2
    assert "[x]good.jsonl" in text


def test_names_are_never_broken_over_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what is copied into a command."""
    monkeypatch.setattr(console.out, "_width", 60)
    text = run("list", "--dataset-dir", tmp_path).output
    assert "alpaca_gpt4_zh " in text
