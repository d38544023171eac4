"""Files that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.core.errors import RunError
from danlu.core.files import write_json


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(RunError, match="cannot write it"):
        write_json(tmp_path / "file" / "x.json", {})
    assert (tmp_path / "file").read_text() == "kept"
