"""What importing costs, measured by which packages get loaded and not by a clock."""

from __future__ import annotations

import subprocess
import sys

import pytest

TENSORS = ("torch", "transformers", "peft", "accelerate")
HEAVY = (*TENSORS, "numpy", "matplotlib", "pyarrow", "jieba", "sacrebleu", "gguf", "huggingface_hub")

IMPORT_ALL = """
import importlib, pkgutil, {package}
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    importlib.import_module(module.name)
"""
HELP = """
import sys
from danlu.cli.main import main
sys.argv = ["danlu", {words}]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def loaded(code: str, packages: tuple[str, ...]) -> list[str]:
    """Those of ``packages`` that a fresh interpreter has loaded after running ``code``."""
    report = f"\nimport sys; print('LOADED', *[name for name in {packages!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "LOADED"
    return last[1:]


def test_the_measure_sees_a_heavy_import() -> None:
    assert loaded("import numpy", HEAVY) == ["numpy"]


def test_import_danlu_is_light() -> None:
    assert loaded("import danlu", HEAVY) == []


@pytest.mark.parametrize("package", ["danlu.core", "danlu.data"])
def test_light_rooms_never_load_tensors(package: str) -> None:
    assert loaded(IMPORT_ALL.format(package=package), TENSORS) == []


def test_reading_a_configuration_is_light() -> None:
    assert loaded("import danlu.tune.config", HEAVY) == []


@pytest.mark.parametrize("words", ["'--help'", "'train', '--help'", "'data', '--help'"])
def test_help_is_light(words: str) -> None:
    assert loaded(HELP.format(words=words), HEAVY) == []
