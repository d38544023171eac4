"""The names ``last`` and ``best``: links where there are links, small files elsewhere, never anybody else's things."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from danlu.core.checkpoints import checkpoints, follow, give_name, newest
from danlu.core.run import clear, resolve_run


@pytest.fixture(params=["links", "files"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with three checkpoints, on a system with and without links."""
    for step in (2, 10, 9):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "run" / f"checkpoint-{step}" / "manifest.json").write_text("{}")
    if request.param == "files":

        def refuse(*_: object, **__: object) -> None:
            raise OSError(1, "a required privilege is not held by the client")

        monkeypatch.setattr(Path, "symlink_to", refuse)
    return tmp_path / "run"


def test_checkpoints_are_in_the_order_of_their_steps(run: Path) -> None:
    for other in ("checkpoint-x", "checkpoint-"):
        (run / other).mkdir()
    (run / "checkpoint-99").write_text("a file")
    os.utime(run / "checkpoint-2")  # touched last
    assert [path.name for path in checkpoints(run)] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    assert newest(run) == run / "checkpoint-10"
    assert newest(run / "checkpoint-2") is None


def test_a_name_is_given_renewed_and_taken_away(run: Path) -> None:
    assert give_name(run, "last", run / "checkpoint-2")
    assert follow(run / "last") == run / "checkpoint-2"
    assert give_name(run, "last", run / "checkpoint-9")
    assert follow(run / "last") == run / "checkpoint-9"
    assert resolve_run(run / "last").path == run / "checkpoint-9"
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-10", "checkpoint-2", "checkpoint-9", "last"]
    assert give_name(run, "last", None)
    assert not (run / "last").is_symlink()
    assert not (run / "last").exists()
    assert give_name(run, "last", None)


def test_a_moved_run_keeps_its_names(run: Path) -> None:
    give_name(run, "best", run / "checkpoint-9")
    moved = run.rename(run.parent / "moved")
    assert follow(moved / "best") == moved / "checkpoint-9"


def test_what_is_not_ours_is_left_alone(run: Path) -> None:
    (run / "best").mkdir()
    (run / "best" / "mine").write_text("x")
    (run / "last").write_text("the last word")
    for name in ("best", "last"):
        assert not give_name(run, name, run / "checkpoint-9")
        assert not give_name(run, name, None)
        assert follow(run / name) == run / name
    clear(run)
    assert (run / "best" / "mine").read_text() == "x"
    assert (run / "last").read_text() == "the last word"


def test_a_link_to_elsewhere_is_not_followed_by_name(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    os.symlink(tmp_path / "other", run / "last")  # noqa: PTH211 - the fixture takes Path's own away
    assert not give_name(run, "last", run / "checkpoint-9")
    assert follow(run / "last") == run / "last"


def test_starting_again_removes_them(run: Path) -> None:
    give_name(run, "best", run / "checkpoint-9")
    give_name(run, "last", run / "checkpoint-10")
    clear(run)
    assert list(run.iterdir()) == []


def test_a_name_whose_checkpoint_is_gone_is_told_as_missing(run: Path) -> None:
    from danlu.core.errors import RunError

    give_name(run, "last", run / "checkpoint-10")
    (run / "checkpoint-10" / "manifest.json").unlink()
    (run / "checkpoint-10").rmdir()
    with pytest.raises(RunError, match="last checkpoint, checkpoint-10, is gone.*There are checkpoint-2, checkpoint-9"):
        resolve_run(run / "last")
