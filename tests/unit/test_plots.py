"""The loss curves: size, smoothing, titles in any script."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.tune.plots import legible, plot_curves, smooth

LOG = [{"step": 10 * index, "loss": 2 / index, "epoch": 0.1} for index in range(1, 30)]


@pytest.fixture(autouse=True)
def _need_matplotlib():
    pytest.importorskip("matplotlib")


def size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_a_figure_is_saved(tmp_path):
    told = []
    log = [*LOG, {"step": 300, "eval_loss": 1.0}, {"step": 300, "train_runtime": 3.0}]
    written = plot_curves(tmp_path, log, ["loss", "eval_loss"], tell=told.append)
    assert [path.name for path in written] == ["training_loss.png", "training_eval_loss.png"]
    assert [size(path) for path in written] == [(640, 480), (640, 480)]
    assert told == [f"Figure saved: {path}" for path in written]


@pytest.mark.parametrize(
    "log", [[], [{"step": 1, "eval_loss": 2.0}], [{"step": 1, "loss": float("nan")}], [{"loss": 1}]]
)
def test_nothing_to_plot_leaves_no_file(tmp_path, log):
    told = []
    assert plot_curves(tmp_path, log, tell=told.append) == []
    assert told == ["No metric loss to plot."]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["中文运行", "a_$x$_b", "🙂 \u0378", "x" * 150, "tab\tin name"])
def test_titles_raise_no_warning(tmp_path, name, caplog):
    folder = tmp_path / name
    folder.mkdir()
    assert plot_curves(folder, LOG, tell=lambda line: None) != []
    assert not caplog.records


def test_characters_without_a_font_are_replaced():
    families, text = legible("loss \U0010fffd")
    assert text == "loss ·"
    assert families[0] == "DejaVu Sans"


def test_names_with_a_slash_make_one_file(tmp_path):
    plot_curves(tmp_path, [{"step": 1, "eval/a": 1.0}], ["eval/a"], tell=lambda line: None)
    assert (tmp_path / "training_eval_a.png").exists()


def test_smoothing_of_three_values():
    weight = 1.8 * (1 / (1 + 2.718281828459045 ** (-0.15)) - 0.5)
    second = weight * 3 + (1 - weight) * 1
    assert smooth([3, 1, 2]) == pytest.approx([3, second, weight * second + (1 - weight) * 2])


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), max_size=300))
def test_smoothing_stays_within_the_values(values):
    smoothed = smooth(values)
    assert len(smoothed) == len(values)
    if values:
        assert smoothed[0] == values[0]
        assert min(values) - 1e-9 <= min(smoothed)
        assert max(smoothed) <= max(values) + 1e-9
