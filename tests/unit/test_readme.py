"""The README: both languages say the same, the tree is the repository's, the tour runs as printed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

READMES = ("README.md", "README.zh.md")
TOUR = {"README.md": "## Five-minute tour", "README.zh.md": "## 五分钟走一圈"}
BASH = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TREE = re.compile(r"^```text\n(\./.*?)^```$", re.MULTILINE | re.DOTALL)
ONE_SCREEN = 110


def read(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


def tour(root: Path, name: str) -> list[str]:
    """The commands of the tour, one an entry, in order."""
    section = read(root, name).partition(TOUR[name])[2].partition("\n## ")[0]
    text = "".join(BASH.findall(section)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def tree_paths(root: Path, name: str) -> list[str]:
    """The paths of the annotated tree; every line has a comment after two spaces."""
    found = TREE.search(read(root, name))
    assert found, f"{name} has no tree"
    paths: list[str] = []
    stack: list[str] = []
    for line in found[1].splitlines()[1:]:
        indent, entry, comment = re.fullmatch(r"([ │├└─]*)(\S+)\s{2,}(.+)", line).groups()
        assert comment
        depth = len(indent) // 4
        stack[depth - 1 :] = [entry.rstrip("/")]
        paths.append("/".join(stack))
    return paths


@pytest.mark.parametrize("name", READMES)
def test_it_fits_a_screen(root: Path, name: str) -> None:
    assert len(read(root, name).splitlines()) <= ONE_SCREEN
    assert "make demo" in read(root, name)
    assert "make test" in read(root, name)


def test_both_languages_show_the_same(root: Path) -> None:
    english, chinese = (read(root, name) for name in READMES)
    assert BASH.findall(english) == BASH.findall(chinese)
    assert tree_paths(root, "README.md") == tree_paths(root, "README.zh.md")
    assert english.count("\n## ") == chinese.count("\n## ")


def test_the_tree_is_the_repository(root: Path) -> None:
    paths = tree_paths(root, "README.md")
    assert [path for path in paths if not (root / path).exists()] == []


def test_every_room_is_in_the_tree(root: Path) -> None:
    paths = set(tree_paths(root, "README.md"))
    rooms = {
        path.relative_to(root).as_posix()
        for path in (root / "src/danlu").iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    assert rooms - paths == set()


def test_the_tour_goes_all_the_way_round(root: Path) -> None:
    verbs = " ".join(re.findall(r"danlu (\w+)", "\n".join(tour(root, "README.md"))))
    assert re.search(r"data.* train.* (eval|predict).* export.* chat", verbs)


@pytest.mark.smoke
@pytest.mark.timeout(900)
def test_the_tour_runs_as_printed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(root / "src")
    # the command of this very interpreter, wherever it is installed; test_packaging.py looks after the script
    launcher = f'danlu() {{ {shlex.quote(sys.executable)} -m danlu "$@"; }}; '
    for command in tour(root, "README.md"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", launcher + command],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{command} said nothing"
    run = tmp_path / "runs" / "tour"
    assert (run / "adapter_model.safetensors").exists()
    assert (run / "manifest.json").exists()
    assert list((tmp_path / "runs" / "tour-merged").glob("*.safetensors"))
