from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import ConfigError, DataError
from danlu.engine.mock import constant
from danlu.evaluate.benchmarks.own import own_benchmark
from danlu.verbs.bench import bench, prepare

TABLE = "question,A,B,C,answer\n一加一？,1,2,3,B\n二加一？,1,2,3,C\n"

SHORT = """
name: trees
language: en
licence: mine
splits:
  dev: trees_dev.jsonl
  test: trees.jsonl
demo_split: dev
columns: {choices: [options], answer: label}
subjects:
  trees: {en: trees, category: nature}
protocols:
  plain:
    shots: 1
    head: "Questions about {subject}.\\n\\n"
    question: "{question}\\n{options}\\nAnswer:"
    target: " {letter}"
  whole:
    mode: continuation
    question: "Question: {question}\\nAnswer:"
    target: " {text}"
"""


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ENTRY, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )


ENTRY = "import sys; from danlu.cli.main import main; main(sys.argv[1:])"


@pytest.fixture
def short(tmp_path: Path) -> Path:
    (tmp_path / "trees.yaml").write_text(SHORT, encoding="utf-8")
    row = {"question": "Which is a tree?", "options": ["oak", "a very tall lamp post"], "label": "A"}
    for name in ("trees.jsonl", "trees_dev.jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    return tmp_path / "trees.yaml"


def test_a_table_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "sums.csv"
    path.write_text(TABLE, encoding="utf-8")
    results = bench(str(path), engine=constant("B"), output=tmp_path / "out")
    assert results.headline is not None
    assert (results.headline.value, results.headline.n) == (0.5, 2)
    assert results.document["diagnostics"]["chance"] == pytest.approx(1 / 3)
    assert results.document["benchmark"]["name"] == "sums"
    seen: list[Any] = []
    chat = constant("B")
    chat.known = lambda key, prompt: seen.append(prompt) or "B"  # type: ignore[func-returns-value]
    bench(str(path), engine=chat, output=tmp_path / "chat", protocol="chat")
    assert seen[0].messages[-1].content == "一加一？\nA. 1\nB. 2\nC. 3\n请选出正确答案，只回答选项的字母。"


def test_english_tables_are_asked_in_english(tmp_path: Path) -> None:
    path = tmp_path / "sums.csv"
    path.write_text("question,A,B,answer\none and one?,1,2,B\n", encoding="utf-8")
    benchmark, _ = own_benchmark(path)
    assert "Answer:" in benchmark.protocols["letter"].question


def test_a_short_yaml(short: Path, tmp_path: Path) -> None:
    results = bench(str(short), engine=constant("A"), output=tmp_path / "out")
    assert results.headline is not None
    assert results.headline.value == 1
    assert results.rows[0]["shots"] == 1
    by_text = bench(str(short), engine=constant("a very tall lamp post"), output=tmp_path / "whole", protocol="whole")
    assert [(n.metric, n.value) for n in by_text.numbers if n.scope == "subject"] == [
        ("accuracy", 0.0),
        ("accuracy_norm", 0.0),
    ]


def test_what_is_wrong_with_a_file_is_named(short: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        prepare(str(tmp_path / "none.csv"))
    short.write_text(SHORT.replace("demo_split: dev", "demo_spit: dev"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"trees\.yaml.*demo_spit.*Did you mean demo_split"):
        prepare(str(short))


def test_the_command_line(tmp_path: Path) -> None:
    listed = json.loads(cli("bench", "list", "--json").stdout)
    assert {entry["name"] for entry in listed} >= {"ceval", "cmmlu", "mmlu"}
    shown = json.loads(cli("bench", "show", "ceval", "--json").stdout)
    assert shown["digests"].keys() == shown["protocols"].keys()
    path = tmp_path / "submission.json"
    path.write_text("{}", encoding="utf-8")
    refused = cli("bench", "validate-submission", str(path))
    assert refused.returncode == 1
    assert "computer_network: the subject is missing" in " ".join(refused.stderr.split())
    assert "47 more" in refused.stderr
    unknown = cli("bench", "cevall", "--model", "x")
    assert unknown.returncode == 2
    assert "Did you mean ceval?" in unknown.stderr
