"""Files of predictions, whichever tool wrote them, measured from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import danlu
from danlu.cli.main import main
from danlu.cli.score import option_values, split_file
from danlu.core.errors import DataError, UsageError
from danlu.evaluate.metrics import measure
from danlu.evaluate.predictions import PredictionFile
from danlu.evaluate.tables import read_table
from danlu.verbs.score_file import score_file

ROWS = [("今天天气很好", "今天天气真好"), ("hello world", "hello"), ("3.14", "3.14")]


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return lines(tmp_path / "preds.jsonl", [{"prompt": "?", "predict": one, "label": two} for one, two in ROWS])


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(["score", *words])
    told = capsys.readouterr()
    return int(done.value.code or 0), told.out, told.err


@pytest.mark.parametrize("style", ["et", "lf", "danlu"])
def test_files_of_every_style_are_read(style: Any, tmp_path: Path) -> None:
    path = tmp_path / "generated_predictions.jsonl"
    open_file = PredictionFile(path, style, len(ROWS))
    for index in (2, 0, 1):
        open_file.add(index, "?", *ROWS[index])
    for finished in (False, True):
        if finished:
            open_file.finish()
        table = read_table(path)
        assert list(zip(table.predictions, table.references or (), strict=True)) == ROWS


def test_a_table_with_other_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "preds.csv"
    path.write_text('id,mine,truth,confidence\n1,"a, b",a,0.5\n2,c,c,1\n', encoding="utf-8")
    table = read_table(path, predict_column="mine", reference_column="truth")
    assert table.predictions == ("a, b", "c")
    assert table.references == ("a", "c")
    assert table.fields == {"id": ("1", "2"), "confidence": ("0.5", "1")}
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match="--predict-column: id, mine, truth, confidence"):
        read_table(path)
    with pytest.raises(DataError, match="Did you mean truth"):
        read_table(path, predict_column="mine", reference_column="thruth")


def test_usual_names_are_found_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_table(lines(tmp_path / "a.jsonl", [{"response": "x", "target": 1}]))
    assert (table.predictions, table.references) == (("x",), ("1",))
    assert "'response', references in 'target'" in capsys.readouterr().err
    assert read_table(lines(tmp_path / "b.jsonl", [{"output": "x"}])).references is None
    assert "nowhere" in capsys.readouterr().err


def test_a_torn_last_line_is_told_and_a_broken_one_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole + '{"predict": "to', encoding="utf-8")
    assert len(read_table(file).predictions) == 3
    assert "preds.jsonl:4" in capsys.readouterr().err
    file.write_text('{"predict": "to\n' + whole, encoding="utf-8")
    with pytest.raises(DataError, match=r"preds\.jsonl:1"):
        read_table(file)


@pytest.mark.parametrize("row", [{"predict": None, "label": ""}, {"predict": "", "label": ["a"]}, {"label": ""}])
def test_what_is_no_text_is_named_by_its_row(row: dict[str, Any], tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", [{"predict": "a", "label": "b"}, row])
    with pytest.raises(DataError, match=r"p\.jsonl:2"):
        read_table(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError):
        read_table(tmp_path / "p.jsonl")


def test_scores_are_those_of_measure(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("jieba")
    names = ("rouge-l", "f1", "exact-match")
    expected = measure([one for one, _ in ROWS], [two for _, two in ROWS], names, seed=7)
    measured = score_file(file, names, output=tmp_path / "s.json", rows=tmp_path / "r.jsonl", seed=7)
    assert measured.scores == expected.scores
    assert danlu.score_file is score_file
    written = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in written] == list(names)
    assert written[2]["stderr"] == pytest.approx(100 / 3)  # one of three: √(2/9 · 3/2) / √3
    assert all(row["n"] == 3 and row["low"] <= row["value"] <= row["high"] for row in written)
    each = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["exact-match"] for row in each] == [0, 0, 100]
    assert [row["prompt"] for row in each] == ["?"] * 3


def test_the_command_prints_scores_and_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = run(capsys, str(file), "--metrics", "exact-match,length", "unit=word")
    assert code == 0
    assert "33.33" in told
    assert "words|mean of rows" in told
    code, told, _ = run(capsys, str(file), "--metrics=pii-phone", "--kinds", "phone", "--json")
    assert json.loads(told)[0]["value"] == 0.0
    code, told, _ = run(capsys, str(file), "--json", "metrics=[f1, json]", "kind=any")
    assert [row["name"] for row in json.loads(told)] == ["f1", "json"]


def test_a_pattern_is_no_list_and_a_list_is_one(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["pattern=[a-z]", "must=[world, hello]"], ["--pattern", "[a-z]", "--must", "[world, hello]"]):
        _, told, _ = run(capsys, str(file), "--metrics", "regex,keywords", *words, "--json")
        regex, keywords = json.loads(told)
        assert regex["protocol"] == "has /[a-z]/"
        assert regex["value"] == keywords["value"] == pytest.approx(100 / 3)
    assert option_values(["pattern=a=b", "encoder=7", "kinds=[ip]", "min=2"]) == {
        "pattern": "a=b",
        "encoder": "7",
        "kinds": ["ip"],
        "min": 2,
    }


def test_the_default_are_the_numbers_to_publish(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("jieba", "sacrebleu"):
        pytest.importorskip(package)
    _, told, _ = run(capsys, str(file))
    assert "sacrebleu nrefs:1" in told


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("--metrics", "f1"), 2, "no file of predictions"),
        (("FILE", "--metrics", "ff1"), 2, "Did you mean f1"),
        (("FILE", "--metrics", "f1", "bins=3"), 2, "Their options: none"),
        (("FILE", "other.jsonl"), 2, "is a second"),
        (("FILE", "--metrics", "perplexity"), 2, "--run DIR, or --model NAME"),
        (("FILE", "--metrics", "f1", "--model", "x"), 2, "none of these metrics asks a model"),
        (("FILE", "--metrics", "f1", "output=x", "--output", "y"), 2, "given twice"),
        (("FILE", "--metrics", "length", "min=few"), 2, "min is a whole number, not 'few'"),
        (("FILE", "--metrics", "json", "fence=maybe"), 2, "fence is true or false"),
        (("none.jsonl", "--metrics", "f1"), 1, "no such file"),
    ],
)
def test_wrong_words_are_explained(
    words: tuple[str, ...], code: int, reason: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got, _, told = run(capsys, *(str(file) if word == "FILE" else word for word in words))
    assert (got, reason in told) == (code, True), told


def test_without_a_file_it_is_the_verb_of_reward_models(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, told = run(capsys, "dataset=answers.jsonl")
    assert code == 2
    assert "name either a run or a model" in told


def test_the_file_is_the_first_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_file(["p.jsonl", "a=1"]) == ("p.jsonl", ["a=1"])
    assert split_file(["dataset=p.jsonl"]) == (None, ["dataset=p.jsonl"])
    assert split_file(["--max_samples", "5"]) == (None, ["--max_samples", "5"])
    assert split_file([]) == (None, [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1.jsonl").write_text("{}", encoding="utf-8")
    assert split_file(["lr=1.jsonl"]) == ("lr=1.jsonl", [])
    with pytest.raises(UsageError):
        split_file(["a.jsonl", "b.jsonl"])
