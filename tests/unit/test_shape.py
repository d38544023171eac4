"""The size of things: files, functions, parameters, option groups."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from danlu.core.config import Options
from danlu.tune.config import TrainConfig

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
MAX_GROUP_FIELDS = 12

# functions that mirror somebody else's signature, or take one thing a parameter on purpose: "file:function"
MANY_PARAMETERS = {
    "src/danlu/cli/preview.py:preview",  # a verb: one parameter for each option of the command line
    "src/danlu/cli/main.py:chat",  # a verb
    "src/danlu/cli/main.py:score",  # a verb
    "src/danlu/verbs/score_file.py:score_file",  # a verb
    "src/danlu/cli/bench.py:run_benchmark",  # a verb
    "src/danlu/verbs/chat.py:chat",  # a verb
    "src/danlu/data/loading.py:load_rows",  # public; keyword-only, one for each option of a dataset
    "src/danlu/models/attention.py:packed_attention",  # the attention interface of transformers
}


def python_files(root: Path, *folders: str) -> Iterator[Path]:
    return chain.from_iterable(sorted((root / folder).rglob("*.py")) for folder in folders)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_no_file_is_long(root: Path) -> None:
    long = {
        str(path.relative_to(root)): lines
        for path in python_files(root, "src", "tests", "benchmarks", "examples")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert not long, "split them: a file holds one thing"


def test_no_function_is_long(root: Path) -> None:
    long = {
        f"{path.relative_to(root)}:{function.name}": lines
        for path in python_files(root, "src", "tests", "benchmarks", "examples")
        for function in functions(path)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert not long


def test_no_function_takes_many_parameters(root: Path) -> None:
    many = {
        f"{path.relative_to(root)}:{function.name}"
        for path in python_files(root, "src")
        for function in functions(path)
        if parameters(function) > MAX_PARAMETERS
    }
    assert many == MANY_PARAMETERS, "group them in a value, or list the function above with its reason"


def test_option_groups_stay_small() -> None:
    groups = [
        field.annotation
        for field in TrainConfig.model_fields.values()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options)
    ]
    assert groups
    large = {group.__name__: len(group.model_fields) for group in groups if len(group.model_fields) > MAX_GROUP_FIELDS}
    assert not large


def test_every_option_is_described() -> None:
    missing = [
        f"{name}.{inner}"
        for name, field in TrainConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options)
        for inner, option in field.annotation.model_fields.items()
        if not option.description
    ]
    assert not missing
