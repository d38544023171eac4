"""The wheel: everything danlu needs at run time is inside, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import danlu

pytest.importorskip("hatchling", reason="hatchling builds the wheel; `make install` brings it")

LEFT_OUT = {".pyc"}


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--no-index", "--wheel-dir", str(folder), str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("danlu-*.whl"))


def read(wheel: Path, ending: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(ending))
        return archive.read(name).decode()


def test_every_source_file_is_in_the_wheel(wheel: Path, root: Path) -> None:
    source = root / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "danlu").rglob("*")
        if path.is_file() and path.suffix not in LEFT_OUT
    }
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == expected
    assert "danlu/assets/demo/train.jsonl" in inside


def test_the_wheel_says_who_it_is(wheel: Path) -> None:
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert metadata["Name"] == "danlu"
    assert metadata["Version"] == danlu.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "danlu = danlu.cli.main:main" in read(wheel, "entry_points.txt")
    assert "Apache License" in read(wheel, "licenses/LICENSE")


def test_the_base_install_brings_no_tensors(wheel: Path) -> None:
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    base = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert base
    assert not [line for line in base if line.startswith(("torch", "transformers", "peft", "accelerate"))]


def test_the_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import danlu; from importlib.resources import files;"
        "assert danlu.__file__.startswith(sys.argv[1]), danlu.__file__;"
        "print(len(files('danlu').joinpath('assets/demo/heldout.jsonl').read_text('utf-8').splitlines()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 40


def test_every_pinned_version_satisfies_the_ranges(root: Path) -> None:
    packaging = pytest.importorskip("packaging.requirements")
    tomllib = pytest.importorskip("tomllib")
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *(line for extra in project["project"]["optional-dependencies"].values() for line in extra),
        *project["dependency-groups"]["dev"],
    ]
    for line in wanted:
        requirement = packaging.Requirement(line)
        if requirement.name == "danlu":
            continue
        version = pinned.get(requirement.name.lower().replace("_", "-"))
        assert version, f"{requirement.name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(version), f"{line} does not admit {version}"
