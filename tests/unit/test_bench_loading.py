from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import DataError
from danlu.evaluate.benchmarks.catalog import benchmark_named, described
from danlu.evaluate.benchmarks.files import Folder, open_files, together
from danlu.evaluate.benchmarks.loading import Questions, load_questions

VAL = 'id,question,A,B,C,D,answer\n0,一加一等于____,1,2,3,4,B\n1,"两行\n的题",甲,乙,丙,丁,D\n'
DEV = 'id,question,A,B,C,D,answer,explanation\n0,示例,甲,乙,丙,丁,A,"1. 因为\n2. 所以"\n'


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def ceval(tmp_path: Path) -> Path:
    return write(tmp_path / "ceval", {"val/logic_val.csv": VAL, "dev/logic_dev.csv": DEV})


def read(data: Path, name: str = "ceval", **options: Any) -> Questions:
    benchmark = benchmark_named(name)
    return load_questions(benchmark, open_files(benchmark, data), **options)


def test_a_folder(ceval: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = read(ceval)
    first, second = questions.items["logic"]
    assert (first.question, first.choices, first.answers) == ("一加一等于____", ("1", "2", "3", "4"), ("B",))
    assert (second.question, second.origin.rpartition(":")[2]) == ("两行\n的题", "3")
    assert questions.demos["logic"][0].explanation == "1. 因为\n2. 所以"
    assert [record.name for record in questions.files] == ["dev/logic_dev.csv", "val/logic_val.csv"]
    assert len(questions.missing) == 51
    told = capsys.readouterr().err
    assert "51 subjects have no file" in told
    assert "logic has 2 questions in val, 22 were published" in told


def test_a_zip_gives_the_same_questions(ceval: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ceval-exam.zip", "w") as archive:
        for path in sorted(ceval.rglob("*.csv")):
            archive.write(path, f"exam/{path.relative_to(ceval)}")
    unpacked, folder = read(tmp_path / "ceval-exam.zip"), read(ceval)
    assert [(item.id, item.question) for item in unpacked.items["logic"]] == [
        (item.id, item.question) for item in folder.items["logic"]
    ]
    assert [record.sha256 for record in unpacked.files] == [record.sha256 for record in folder.files]
    with pytest.raises(DataError, match="no zip archive"):
        open_files(benchmark_named("ceval"), write(tmp_path, {"bad.zip": "text"}) / "bad.zip")


def test_the_usual_place(ceval: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_BENCHMARKS", str(ceval.parent))
    assert open_files(benchmark_named("ceval")).root == ceval
    with pytest.raises(DataError, match="questions of cmmlu are not there.*CC BY-NC-SA.*--data"):
        open_files(benchmark_named("cmmlu"))


def test_a_hub_dataset(ceval: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "danlu.evaluate.benchmarks.files.snapshot",
        lambda site, wanted: asked.append((site, wanted.repository)) or ceval,
    )
    assert open_files(benchmark_named("ceval"), "hub").root == ceval
    assert open_files(benchmark_named("ceval"), "someone/ceval").root == ceval
    assert asked == [("huggingface", "ceval/ceval-exam"), ("huggingface", "someone/ceval")]


def test_tables_without_names_of_columns(tmp_path: Path) -> None:
    rows = "What is 1+1?,1,2,3,4,B\nWhat is 2+2?,1,2,3,4,D\n"
    mmlu = write(tmp_path / "mmlu", {"data/test/anatomy_test.csv": rows, "data/dev/anatomy_dev.csv": rows})
    items = read(mmlu, "mmlu", subjects=["anatomy"]).items["anatomy"]
    assert [(item.id, item.question, item.answer) for item in items] == [
        ("0", "What is 1+1?", "B"),
        ("1", "What is 2+2?", "D"),
    ]
    named = "question,A,B,C,D,answer\n" + rows
    write(mmlu, {"data/test/anatomy_test.csv": named})
    assert len(read(mmlu, "mmlu", subjects=["anatomy"]).items["anatomy"]) == 2


def test_a_table_with_one_nameless_column(tmp_path: Path) -> None:
    rows = ",Question,A,B,C,D,Answer\n0,题,甲,乙,丙,丁,C\n"
    write(tmp_path, {"test/anatomy.csv": rows, "dev/anatomy.csv": rows})
    (item,) = read(tmp_path, "cmmlu", subjects=["anatomy"]).items["anatomy"]
    assert (item.id, item.question, item.answers) == ("0", "题", ("C",))


def test_a_list_of_choices_and_a_number_as_label(tmp_path: Path) -> None:
    row = json.dumps({"question": "q", "choices": ["w", "x", "y"], "answer": 2})
    benchmark = described(
        {
            "name": "own",
            "splits": {"test": ["{subject}.jsonl"]},
            "subjects": {"all": {}},
            "protocols": {"plain": {"question": "{question}"}},
        },
        where="own.yaml",
    )
    folder = open_files(benchmark, write(tmp_path, {"all.jsonl": row + "\n"}))
    (item,) = load_questions(benchmark, folder).items["all"]
    assert (item.choices, item.answers) == (("w", "x", "y"), ("C",))


def test_parquet_from_a_hub(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"question": "q", "subject": "anatomy", "choices": ["w", "x", "y", "z"], "answer": 3}]
    (tmp_path / "anatomy").mkdir()
    for split in ("test", "dev"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "anatomy" / f"{split}-00000-of-00001.parquet")
    (item,) = read(tmp_path, "mmlu", subjects=["anatomy"]).items["anatomy"]
    assert item.answers == ("D",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,question,A,B,C,answer\n0,q,1,2,3,A\n", r"logic_val\.csv:2:D: there is no such column; columns: id"),
        ("id,question,A,B,C,D\n0,q,1,2,3,4\n", r"logic_val\.csv:2:answer: there are no labels"),
        ("id,question,A,B,C,D,answer\n0,q,1,2,3,4,\n", r"logic_val\.csv:2:answer: there is no label"),
        ("id,question,A,B,C,D,answer\n0,q,1,2,3,4,E\n", r"logic_val\.csv:2:answer: 'E' is not one of A, B, C, D"),
        ("id,question,A,B,C,D,answer\n0,q,1,,3,4,A\n", r"logic_val\.csv:2:B: the option is empty"),
        ("id,question,A,B,C,D,answer\n0,,1,2,3,4,A\n", r"logic_val\.csv:2:question: the question is empty"),
        ("id,text,A,B,C,D,answer\n0,q,1,2,3,4,A\n", r"logic_val\.csv:2:question: there is no such column"),
        ("id,question,A,B,C,D,answer\n0,q,1,2,3,4\n", r"logic_val\.csv:2: it has 6 cells, the header has 7"),
        (
            "id,question,A,B,C,D,answer\n0,q,1,2,3,4,A\n0,q,1,2,3,4,A\n",
            r"logic_val\.csv:3:id: '0' is already the id of .*logic_val\.csv:2",
        ),
    ],
)
def test_defects_are_named_by_file_line_and_field(ceval: Path, text: str, message: str) -> None:
    write(ceval, {"val/logic_val.csv": text})
    with pytest.raises(DataError, match=message):
        read(ceval)


def test_many_defects_are_counted(ceval: Path) -> None:
    rows = "".join(f"{number},q,1,2,3,4,F\n" for number in range(9))
    write(ceval, {"val/logic_val.csv": "id,question,A,B,C,D,answer\n" + rows})
    with pytest.raises(DataError, match=r"Also: .*csv:3:answer.* and 4 more"):
        read(ceval)


def test_splits_and_subjects_that_are_not_there(ceval: Path) -> None:
    with pytest.raises(DataError, match="no split 'train'"):
        read(ceval, split="train")
    with pytest.raises(DataError, match=r"no file for law in the split val.*val/\{subject\}_val\.csv"):
        read(ceval, subjects=["law"])


def test_the_digest_of_several_files() -> None:
    folder = Folder(Path(), (), "")
    assert folder.find(("x",), "y") == []
    assert together([]) != together([_record("a")]) != together([_record("b")])
    assert together([_record("a"), _record("b")]) == together([_record("b"), _record("a")])


def _record(name: str) -> Any:
    from danlu.evaluate.benchmarks.files import FileRecord

    return FileRecord(name, "0" * 64)


def test_the_published_files(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shared / "data" / "benchmarks" / "ceval"
    questions = read(data)
    items = [item for found in questions.items.values() for item in found]
    assert len(items) == 1346
    assert Counter(item.answer for item in items) == {"A": 310, "B": 338, "C": 344, "D": 354}
    assert {len(found) for found in questions.demos.values()} == {5}
    unlabelled = read(data, split="test", demonstrations=False)
    assert sum(map(len, unlabelled.items.values())) == 12342
    assert not any(item.answers for found in unlabelled.items.values() for item in found)
    assert not capsys.readouterr().err
