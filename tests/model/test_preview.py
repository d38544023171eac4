"""`danlu data preview` with a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
from tuning import write_rows

from danlu.cli.preview import preview
from danlu.core import console
from danlu.core.errors import UsageError

pytestmark = pytest.mark.model


def test_rows_are_shown_with_their_place(
    tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "_width", 300)
    rows = write_rows(tmp_path / "[red]rows[bold].jsonl", 3)
    preview(str(rows), model=str(tiny_models["qwen3"]), rows=2)
    shown = capsys.readouterr().out
    assert "[red]rows[bold].jsonl:2: " in shown
    assert "⟦It is 0." in shown
    assert "⟦It is 7." in shown
    with pytest.raises(UsageError, match="there are 3 rows, the first to show is row 5"):
        preview(str(rows), model=str(tiny_models["qwen3"]), start=5)
