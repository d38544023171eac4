from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.core.errors import DataError, RunError, UsageError
from danlu.evaluate.predictions import FILE_NAME, PredictionFile, read_predictions

MODEL = {"model": "a", "data": "b"}
STYLES = ["et", "lf", "danlu"]


def fill(file: PredictionFile, order: list[int]) -> None:
    for index in order:
        file.add(index, f"问{index}", f"答\n{index}", f"标{index}")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / FILE_NAME


def test_et_schema_to_the_byte(path):
    file = PredictionFile(path, "et", 2)
    fill(file, [1, 0])
    file.finish()
    expected = '{"label": "标0", "predict": "答\\n0"}\n{"label": "标1", "predict": "答\\n1"}'
    assert path.read_bytes().decode() == expected


def test_lf_schema_to_the_byte(path):
    file = PredictionFile(path, "lf", 1)
    fill(file, [0])
    file.finish([{"rouge-1": 1.0}])
    assert path.read_bytes().decode() == '{"prompt": "问0", "predict": "答\\n0", "label": "标0"}\n'


def test_danlu_schema_carries_scores_index_and_key(path):
    file = PredictionFile(path, "danlu", 2)
    file.add(1, "q1", "p1", "l1", key="ff")
    file.add(0, "q0", "p0", "l0", key="ee")
    file.finish([{"rouge-1": 10.0}, {"rouge-1": 20.0}])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows[1] == {
        "prompt": "q1",
        "predict": "p1",
        "label": "l1",
        "key": "ff",
        "rouge-1": 20.0,
        "index": 1,
    }
    assert read_predictions(path)[0].extra == {"key": "ee", "rouge-1": 10.0}


@pytest.mark.parametrize("style", STYLES)
def test_rows_are_on_disk_as_soon_as_they_are_added(path, style):
    file = PredictionFile(path, style, 3, fingerprint=MODEL)
    file.add(2, "q", "p", "l")
    assert json.loads(path.read_text(encoding="utf-8"))["predict"] == "p"
    assert read_predictions(path)[0].index == 2
    assert not file.finished


@pytest.mark.parametrize("style", STYLES)
@given(order=st.permutations(range(6)), stop=st.integers(0, 6), torn=st.integers(0, 40))
@settings(deadline=None, max_examples=25)
def test_resume_after_any_stop_equals_a_run_without_one(tmp_path_factory, style, order, stop, torn):
    folder = tmp_path_factory.mktemp("resume")
    whole = PredictionFile(folder / "whole.jsonl", style, 6, fingerprint=MODEL)
    fill(whole, list(range(6)))
    whole.finish()
    path = folder / "stopped.jsonl"
    first = PredictionFile(path, style, 6, fingerprint=MODEL)
    fill(first, order[:stop])
    if stop < 6 and torn:
        line = '{"prompt": "问", "predict": "答答答答答答", "label": "x", "index": 5}'.encode()
        with path.open("ab") as stream:
            stream.write(line[: min(torn, len(line) - 1)])
    second = PredictionFile(path, style, 6, fingerprint=MODEL)
    assert second.done() == set(order[:stop])
    fill(second, [index for index in range(6) if index not in second.done()])
    second.finish()
    assert path.read_bytes() == (folder / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("style", STYLES)
def test_kill_nine_loses_nothing_that_was_added(path, style):
    script = (
        "import sys, time; from pathlib import Path; from danlu.evaluate.predictions import PredictionFile\n"
        f"file = PredictionFile(Path(sys.argv[1]), {style!r}, 100, fingerprint={{'model': 'a'}})\n"
        "for index in (7, 3, 5):\n"
        "    file.add(index, 'q', 'p', 'l'); print(index, flush=True)\n"
        "time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = [int(child.stdout.readline()) for _ in range(3)]
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert PredictionFile(path, style, 100, fingerprint={"model": "a"}).done() == set(told) == {3, 5, 7}


@pytest.mark.parametrize("style", STYLES)
def test_a_finished_file_is_known_again(path, style):
    file = PredictionFile(path, style, 3, fingerprint=MODEL)
    fill(file, [2, 0, 1])
    file.finish()
    before = path.read_bytes()
    again = PredictionFile(path, style, 3, fingerprint=MODEL)
    assert again.finished
    assert again.done() == {0, 1, 2}
    assert [row.predict for row in again.predictions()] == ["答\n0", "答\n1", "答\n2"]
    assert path.read_bytes() == before
    again.finish()
    assert path.read_bytes() == before


@pytest.mark.parametrize("style", ["et", "lf"])
def test_a_kill_between_ordering_and_the_state_does_no_harm(path, style):
    file = PredictionFile(path, style, 2, fingerprint=MODEL)
    fill(file, [1, 0])
    state = file.state_path.read_bytes()
    file.finish()
    file.state_path.write_bytes(state)
    assert PredictionFile(path, style, 2, fingerprint=MODEL).finished


def test_answers_of_another_model_are_set_aside_and_named(path, capsys):
    file = PredictionFile(path, "lf", 2, fingerprint=MODEL)
    fill(file, [0])
    other = PredictionFile(path, "lf", 2, fingerprint={**MODEL, "model": "c"})
    assert other.done() == set()
    message = " ".join(capsys.readouterr().err.split())
    assert "another model; starting over" in message
    aside = path.with_name("generated_predictions.previous.jsonl")
    assert read_predictions(aside)[0].predict == "答\n0"


def test_a_file_from_elsewhere_is_never_mixed_in(path, capsys):
    path.parent.mkdir()
    path.write_text('{"label": "l", "predict": "p"}', encoding="utf-8")
    assert PredictionFile(path, "et", 1).done() == set()
    assert "not recorded" in " ".join(capsys.readouterr().err.split())


def test_a_torn_line_is_reported(path, capsys):
    file = PredictionFile(path, "lf", 3)
    fill(file, [1])
    with path.open("ab") as stream:
        stream.write(b'{"prompt": "\xe9')
    assert PredictionFile(path, "lf", 3).done() == {1}
    assert "cut off" in capsys.readouterr().err
    assert path.read_bytes().endswith(b"}\n")


def test_a_line_without_its_break_is_kept(path):
    file = PredictionFile(path, "lf", 2)
    fill(file, [0])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    again = PredictionFile(path, "lf", 2)
    assert again.done() == {0}
    fill(again, [1])
    again.finish()
    assert len(read_predictions(path)) == 2


def test_half_a_surrogate_pair_survives(path):
    file = PredictionFile(path, "lf", 1)
    file.add(0, "q", "bad \ud800 half", "l")
    file.finish()
    assert read_predictions(path)[0].predict == "bad \ud800 half"


def test_line_separators_inside_answers_stay_inside(path):
    file = PredictionFile(path, "et", 1)
    file.add(0, "q", "a\u2028b\x85c\x0bd", "l")
    file.finish()
    assert read_predictions(path)[0].predict == "a\u2028b\x85c\x0bd"


def test_misuse_is_refused(path):
    file = PredictionFile(path, "lf", 2)
    fill(file, [0])
    with pytest.raises(UsageError, match="already has an answer"):
        fill(file, [0])
    with pytest.raises(UsageError, match="outside the 2 rows"):
        fill(file, [2])
    with pytest.raises(RunError, match="1 of 2 rows have no answer yet, the first is row 1"):
        file.finish()
    fill(file, [1])
    with pytest.raises(UsageError, match="1 rows of scores"):
        file.finish([{}])
    with pytest.raises(UsageError, match="unknown style"):
        PredictionFile(path, "xml", 2)  # type: ignore[arg-type]


def test_an_empty_dataset_makes_an_empty_file(path):
    PredictionFile(path, "lf", 0).finish()
    assert path.read_bytes() == b""
    assert PredictionFile(path, "lf", 0).finished


def test_reading_names_the_bad_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"label": "l", "predict": "p"}\n{"label": "l"}\n{"label', encoding="utf-8")
    with pytest.raises(DataError, match=r"p\.jsonl:2"):
        read_predictions(path)
    with pytest.raises(DataError, match="no predictions"):
        read_predictions(tmp_path / "none.jsonl")


def test_a_full_disk_is_explained(path):
    file = PredictionFile(path, "lf", 2)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")
    with pytest.raises(RunError, match="finished answers are kept"):
        fill(file, [0])
    assert file.done() == set()
