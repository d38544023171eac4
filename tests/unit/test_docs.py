"""The documentation: two mirrored languages, every verb in both, no dead links, a current reference."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.core.config import field_homes
from danlu.data.named_templates import named_templates
from danlu.models.zoo import families
from danlu.tune import reference
from danlu.tune.config import TrainConfig
from danlu.tune.matrix import REFUSED, STAGES
from danlu.tune.methods import FAMILIES

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CJK = re.compile("[一-鿿]")


def pages(root: Path, language: str) -> dict[str, str]:
    folder = root / "docs" / language
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.md"))
    }


def headings(text: str) -> list[int]:
    """The level of each heading, in order."""
    return [len(match[1]) for match in re.finditer(r"^(#+) ", FENCE.sub("", text), re.MULTILINE)]


def blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def markdown(root: Path) -> Iterator[Path]:
    yield from root.glob("*.md")
    yield from (root / "docs").rglob("*.md")
    yield from (root / "design").rglob("*.md")
    yield from (root / "examples").rglob("*.md")


def verbs() -> list[tuple[str, ...]]:
    """Every command of the CLI, as its words: ("train",), ("data", "check"), …"""
    import typer

    from danlu.cli.main import app

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if not hasattr(command, "list_commands"):
            yield words
            return
        context = command.make_context("danlu", [], resilient_parsing=True)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if not child.hidden:
                yield from walk(child, (*words, name))

    return list(walk(typer.main.get_command(app), ()))


def test_both_trees_have_the_same_pages_and_headings(root: Path) -> None:
    english, chinese = pages(root, "en"), pages(root, "zh")
    assert english.keys() == chinese.keys() != set()
    assert {name: headings(text) for name, text in english.items()} == {
        name: headings(text) for name, text in chinese.items()
    }


def test_both_trees_show_the_same_commands(root: Path) -> None:
    english, chinese = pages(root, "en"), pages(root, "zh")
    for name, text in english.items():
        assert blocks(text, "bash") == blocks(chinese[name], "bash"), name
        assert blocks(text, "json") == blocks(chinese[name], "json"), name


def test_chinese_pages_are_chinese(root: Path) -> None:
    for name, text in pages(root, "zh").items():
        lines = FENCE.sub("", text).splitlines()
        prose = [line for line in lines if line.strip() and not line.startswith(("|", "#"))]
        assert prose
        assert all(CJK.search(line) for line in prose if len(line) > 60), name


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_page_is_in_the_index(root: Path, language: str) -> None:
    texts = pages(root, language)
    linked = set(LINK.findall(texts["index.md"]))
    assert texts.keys() - {"index.md"} == linked


def test_no_link_is_dead(root: Path) -> None:
    dead = [
        f"{path.relative_to(root)}: {target}"
        for path in markdown(root)
        for target in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8")))
        if not target.startswith(("http", "#")) and not (path.parent / target.split("#")[0]).exists()
    ]
    assert not dead


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_verb_is_documented(root: Path, language: str) -> None:
    text = "\n".join(pages(root, language).values())
    missing = [" ".join(words) for words in verbs() if f"danlu {' '.join(words)}" not in text]
    assert not missing


def test_every_command_shown_exists(root: Path) -> None:
    known = set(verbs())
    for path in markdown(root):
        for body in blocks(path.read_text(encoding="utf-8"), "bash"):
            for line in body.replace("\\\n", " ").splitlines():
                command = line.rpartition("|")[2].strip()
                if not command.startswith("danlu "):
                    continue
                words = tuple(word for word in shlex.split(command)[1:3])
                if words[0] == "bench" and words not in known:
                    words = ("bench", "run")  # a first word that is no command is a benchmark's name
                assert words[:1] in known or words in known, f"{path.name}: {line}"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_configuration_page_is_current(root: Path, language: reference.Language) -> None:
    written = (root / "docs" / language / "configuration.md").read_text(encoding="utf-8")
    assert written == reference.render(language), "run: python -m danlu.tune.reference docs"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_of_methods_and_stages_is_current(root: Path, language: reference.Language) -> None:
    page = (root / "docs" / language / "objectives.md").read_text(encoding="utf-8")
    assert page == reference.with_matrix(page, language), "run: python -m danlu.tune.reference docs"
    rows = [line.split("|")[1:-1] for line in reference.render_matrix(language).splitlines() if line.startswith("|")]
    table = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows[2 : 2 + len(FAMILIES)]}
    marks = {(method, stage): mark for method, row in table.items() for stage, mark in zip(STAGES, row, strict=True)}
    assert {pair for pair, mark in marks.items() if mark != reference.GOES} == REFUSED.keys()
    assert marks.keys() == {(method, stage) for method in FAMILIES for stage in STAGES}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_of_families_is_current(root: Path, language: reference.Language) -> None:
    page = (root / "docs" / language / "models.md").read_text(encoding="utf-8")
    assert page == reference.with_families(page, language), "run: python -m danlu.tune.reference docs"
    assert all(f"| `{name}` |" in page for name in (*families(), *named_templates())), "a template has no line"


def test_every_reason_has_a_chinese_text() -> None:
    texts = reference.translations()["reasons"]
    assert texts.keys() == set(REFUSED.values())
    assert all(CJK.search(text) for text in texts.values())


def test_a_page_without_a_place_for_the_table_is_told() -> None:
    with pytest.raises(ValueError, match="no part between"):
        reference.with_matrix("# Objectives\n", "en")


def test_every_option_is_on_the_configuration_page() -> None:
    page = reference.render("en")
    assert [name for name in field_homes(TrainConfig) if f"| `{name}` |" not in page] == []


def test_the_chinese_texts_match_the_options() -> None:
    texts = reference.translations()
    assert texts["options"].keys() == field_homes(TrainConfig).keys()
    assert texts["groups"].keys() == {name for name, _ in reference.groups()}
    assert all(CJK.search(text) for text in texts["options"].values())


def test_the_reference_writes_both_pages(tmp_path: Path) -> None:
    reference.main(tmp_path)
    assert (tmp_path / "en" / "configuration.md").read_text(encoding="utf-8") == reference.render("en")
    assert (tmp_path / "zh" / "configuration.md").read_text(encoding="utf-8") == reference.render("zh")


@pytest.mark.parametrize(
    ("key", "cells"),
    [
        ("truncation", ("`drop`, `keep_start`, `keep_end`, `split`, `error`", "`drop`")),
        ("lora_rank", ("integer ≥ 1", "`8`")),
        ("lora_alpha", ("number", "`null`")),
        ("warmup_ratio", ("number ≥ 0, ≤ 1", "`0.0`")),
        ("lora_target", ("list of texts", "`[all]`")),
        ("resume_from_checkpoint", ("text or true or false", "`null`")),
    ],
)
def test_types_and_defaults_are_readable(key: str, cells: tuple[str, str]) -> None:
    row = next(line for line in reference.render("en").splitlines() if line.startswith(f"| `{key}` |"))
    assert tuple(row.split(" | ")[1:3]) == cells
