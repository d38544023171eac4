"""The training benchmark's arithmetic: medians, ratios, speeds, logs, rows. Nothing is measured here."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from speed import measure, report, rows, sides

C = measure.Counted


def run(contender: str, what: str = "lora", **values: float) -> dict[str, Any]:
    return {"what": what, "contender": contender, "repeat": 1, "values": values}


def test_ratio_is_of_medians_not_of_means() -> None:
    assert report.ratio([1, 10, 100], [5, 2, 1000]) == 2
    assert report.ratio([3, 5], [2]) == 2
    assert math.isnan(report.ratio([], [1]))
    assert math.isnan(report.ratio([1], [0]))


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=7), st.floats(0.1, 50))
def test_a_side_that_is_k_times_faster_has_ratio_k(values: list[float], factor: float) -> None:
    assert report.ratio([factor * value for value in values], values) == pytest.approx(factor)


def test_cells_show_the_median_and_the_spread() -> None:
    speeds, sizes = report.MEASURES["speed"], report.MEASURES["peak"]
    assert report.cell([310.4, 290, 305], speeds) == "305 (290–310)"
    assert report.cell([2.5 * 2**30], sizes) == "2.50"
    assert report.cell([], speeds) == "–"
    assert report.ratio_cell(2.456) == "2.46×"
    assert report.ratio_cell(math.nan) == "–"


def test_table_has_a_line_a_measure_and_says_which_way_is_better() -> None:
    runs = [
        run(sides.DANLU, speed=700.0, peak=3 * 2**30),
        run(sides.PEER, speed=200.0, peak=2 * 2**30),
        run(sides.PEER_BEST, speed=350.0, peak=4 * 2**30),
        run(sides.DANLU, "tokenising", rows_speed=10.0),
    ]
    lines = report.table(runs).splitlines()
    assert len(lines) == 5
    assert lines[2] == "| lora | tokens/s | more | 700 | 200 | 350 | 3.50× | 2.00× |"
    assert lines[3] == "| lora | peak memory, GiB | less | 3.00 | 2.00 | 4.00 | 1.50× | 0.75× |"
    assert lines[4] == "| tokenising | rows/s | more | 10 | – | – | – | – |"


def test_speed_leaves_the_first_step_out() -> None:
    times, counts = [100.0, 102.0, 106.0], [C(9999, 9999), C(40, 20), C(80, 40)]
    assert measure.speed(times, counts, 1, 3) == (20.0, 10.0)
    assert measure.speed(times, counts, 2, 3) == (20.0, 10.0)
    with pytest.raises(ValueError, match="cannot be timed"):
        measure.speed(times, counts, 0, 3)
    with pytest.raises(ValueError, match="cannot be timed"):
        measure.speed(times, counts, 3, 3)
    with pytest.raises(ValueError, match="2 counts"):
        measure.speed(times, counts[:2], 1, 3)


def test_steps_are_counted_in_training_order() -> None:
    lengths = [C(1, 0), C(10, 1), C(100, 2), C(1000, 3)]
    assert measure.step_counts(lengths, [3, 0, 2, 1], 2) == [C(1001, 3), C(110, 3)]


def write_lines(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return path


def test_danlu_log(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "events.jsonl",
        {"time": 10.0, "kind": "train_begin", "step": 0, "steps": 2},
        {"time": 12.0, "kind": "log", "step": 1, "loss": 2.5},
        {"time": 13.5, "kind": "log", "step": 2, "loss": 2.25},
        {"time": 13.6, "kind": "log", "step": 2, "train_runtime": 3.5},
        {"time": 13.7, "kind": "train_end", "step": 2},
    )
    assert measure.read_danlu_log(path) == measure.StepLog(10.0, (12.0, 13.5), (2.5, 2.25))


def test_danlu_log_that_is_missing_or_not_whole(tmp_path: Path) -> None:
    with pytest.raises(measure.RunFailed, match="was not written"):
        measure.read_danlu_log(tmp_path / "events.jsonl")
    begun = write_lines(tmp_path / "begun.jsonl", {"time": 1.0, "kind": "train_begin"})
    with pytest.raises(measure.RunFailed, match="no finished optimizer step"):
        measure.read_danlu_log(begun)
    begin = {"time": 1.0, "kind": "train_begin"}
    holes = write_lines(tmp_path / "holes.jsonl", begin, {"time": 2.0, "kind": "log", "step": 10, "loss": 1.0})
    with pytest.raises(measure.RunFailed, match="every optimizer step"):
        measure.read_danlu_log(holes)


def test_peer_log(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "steps.jsonl",
        {"kind": "begin", "time": 5.0},
        {"kind": "step", "time": 9.0, "step": 1, "tokens": 30, "supervised": 20, "places": 48},
        {"kind": "loss", "time": 9.0, "step": 1, "loss": 2.5},
        {"kind": "step", "time": 12.0, "step": 2, "tokens": 40, "supervised": 25, "places": 64},
    )
    log, counts, places = measure.read_peer_log(path)
    assert (log.began, log.times, log.losses[0]) == (5.0, (9.0, 12.0), 2.5)
    assert math.isnan(log.losses[1])
    assert counts == [C(30, 20), C(40, 25)]
    assert places == 112


def test_status_sizes_are_in_bytes() -> None:
    text = "Name:\tpython\nVmPeak:\t  99 kB\nVmHWM:\t   300 kB\nVmRSS:\t   200 kB\nThreads:\t2\n"
    assert measure.parse_status(text) == {"VmHWM": 300 * 1024, "VmRSS": 200 * 1024}
    assert measure.status(2**22 + 1) == {}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc on this system")
def test_memory_of_a_child_and_its_children_is_seen(tmp_path: Path) -> None:
    code = "import time; block = bytearray(b'x') * 80_000_000; time.sleep(0.6)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    for program in (code, parent):
        child = measure.run_child([sys.executable, "-c", program], os.environ, tmp_path / "log.txt")
        assert 80_000_000 < child.peak < 400_000_000


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no smaps_rollup on this system")
def test_pages_that_processes_share_are_counted_once(tmp_path: Path) -> None:
    code = (
        "import os, time; block = bytearray(b'x') * 80_000_000\n"
        "for _ in range(3):\n    if os.fork() == 0: time.sleep(1); os._exit(0)\n"
        "for _ in range(3): os.wait()"
    )
    child = measure.run_child([sys.executable, "-c", code], os.environ, tmp_path / "log.txt")
    assert 80_000_000 < child.peak < 160_000_000


def test_a_failed_child_shows_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(measure.RunFailed, match="the kiln is cold"):
        measure.run_child([sys.executable, "-c", "exit('the kiln is cold')"], os.environ, tmp_path / "log.txt")


def test_made_rows_are_repeatable_and_different() -> None:
    made = rows.made_rows(60)
    assert made == rows.made_rows(60)
    assert len({row["instruction"] for row in made}) == 60
    assert min(len(row["output"]) for row in made) * 4 < max(len(row["output"]) for row in made)


def test_chosen_rows_fit_and_fill_whole_steps() -> None:
    made = rows.made_rows(10)
    lengths = [100, 505, 90, 504, 80, 70, 60, 50, 40, 30]
    chosen = rows.choose(made, lengths, cutoff=512, count=7, sequences=3)
    assert chosen == [made[place] for place in (0, 2, 3, 4, 5, 6)]
    with pytest.raises(ValueError, match="one optimizer step needs 4"):
        rows.choose(made, [1000] * 10, cutoff=512, count=8, sequences=4)


def test_repeated_rows_are_all_different() -> None:
    many = rows.repeated(rows.made_rows(3), 10)
    assert len(many) == len({row["instruction"] for row in many}) == 10
    assert many[4]["output"] == many[1]["output"]


def test_written_rows_come_back(tmp_path: Path) -> None:
    written = [*rows.made_rows(2), {"instruction": "問", "output": "答", "system": "Be brief."}]
    path = rows.write_rows(tmp_path / "some" / "train.jsonl", written)
    info = json.loads((path.parent / "dataset_info.json").read_text(encoding="utf-8"))
    assert info["train"]["columns"]["system"] == "system"
    assert rows.read_rows(path) == (written, 0)


def test_rows_of_several_turns_are_counted_out(tmp_path: Path) -> None:
    turns = [{"from": who, "value": f"{who} {n}"} for n in range(2) for who in ("human", "gpt")]
    path = write_lines(tmp_path / "chat.jsonl", {"conversations": turns}, {"conversations": turns[:2]})
    assert rows.read_rows(path) == ([{"instruction": "human 0", "output": "gpt 0"}], 1)


def checked(tokens: list[int], pieces: list[str], trained: list[bool]) -> dict[str, Any]:
    supervised = [size // 2 for size in tokens]
    order = list(range(len(tokens)))
    return {"order": order, "tokens": tokens, "supervised": supervised, "pieces": pieces, "trained": trained}


def test_equal_tokens_are_said_to_be_equal() -> None:
    side = checked([4, 6], ["a", "b"], [False, True])
    assert report.token_remarks(side, side, "chatml")[1:] == [
        "every row has equally many tokens on both sides",
        "first row: the same tokens on both sides, the same of them trained",
    ]


def test_different_tokens_are_named() -> None:
    ours = checked([4, 6], ["by", "Face", "<end>", "\n"], [False, False, True, False])
    peers = checked([5, 7], ["by", "Face", ".", "<end>", "\n"], [False, False, False, True, True])
    told = report.token_remarks(ours, peers, "smollm2")
    assert told[0].startswith("tokens of an epoch: danlu 10 (5 supervised), LLaMA-Factory 12 (5 supervised)")
    assert told[1] == "a row of the peer against danlu's: +1 tokens (+0 supervised)"
    assert told[2] == "first row, after 'byFace': danlu [], the peer ['.']"
    assert told[3] == "first row, token 3 '\\n': trained by the peer alone"
    assert "WARNING" in report.token_remarks(ours, checked([4], ["by"], [True]), "smollm2")[1]


def test_both_sides_get_every_core_and_no_stray_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    bench = sides.Bench(tmp_path, tmp_path / "python", cores=6)
    for peer in (False, True):
        environment = bench.environment(peer=peer, cache=tmp_path / "cache")
        assert environment["OMP_NUM_THREADS"] == "6"
        assert "MALLOC_ARENA_MAX" not in environment
    assert "PYTHONPATH" not in bench.environment(peer=True, cache=tmp_path)


def test_both_sides_get_the_same_options(tmp_path: Path) -> None:
    bench = sides.Bench(tmp_path, tmp_path / "python", cores=2, model="/m")
    ours, theirs = bench.danlu_options(tmp_path / "a.jsonl"), bench.peer_options(tmp_path / "a.jsonl")
    assert {key: theirs[key] for key in bench.options()} == {key: ours[key] for key in bench.options()}
    assert bench.sequences == 8
    assert sides.words({"bf16": True, "lora_rank": 8}) == ["bf16=true", "lora_rank=8"]


def test_only_the_best_settings_of_the_peer_differ() -> None:
    danlu, peer, best = sides.contenders(2)
    assert not any((danlu.training, peer.training, danlu.environment, peer.environment))
    assert best.training["disable_gradient_checkpointing"] is True
    assert set(best.environment) == set(sides.MALLOC)
