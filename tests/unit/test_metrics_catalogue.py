"""Every metric has a card, every card tells the truth about its metric, and the pages are written from the cards."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from danlu.cli.main import main
from danlu.core.errors import UsageError
from danlu.evaluate.metrics import METRICS, Column, Pairs
from danlu.evaluate.metrics.catalogue import GROUPS, cards
from danlu.evaluate.metrics.choosing import options_of
from danlu.evaluate.metrics.page import WORDS, range_text, render_page

CJK = re.compile("[一-鿿]")
OPTIONS = {
    "regex": {"pattern": "好"},
    "keywords": {"must": "好"},
    "layout": {"lacks": "table"},
    "json-schema": {"schema": {"type": "object"}},
}
NEEDS_MORE = {"model", "encoder"}
LIGHT = [name for name, card in cards().items() if not NEEDS_MORE & set(card.needs)]


def columns(name: str) -> tuple[Column, ...]:
    card = cards()[name]
    for package in card.packages:
        pytest.importorskip(package)
    references = ("你好 world", "3.14") if "reference" in card.needs else None
    pairs = Pairs(("你好世界 hello", "1, 2"), references, {"confidence": (0.5, 1)})
    return METRICS[name](pairs, **OPTIONS.get(name, {}))


def test_every_metric_has_a_card_and_every_card_a_metric() -> None:
    ours = [name for name in METRICS if METRICS.target(name).startswith("danlu.")]
    assert sorted(ours) == sorted(cards())


@pytest.mark.parametrize("name", LIGHT)
def test_a_card_names_the_scores_and_their_range(name: str) -> None:
    card = cards()[name]
    made = columns(name)
    assert [column.name for column in made] == list(card.scores)
    for column in made:
        assert column.protocol
        assert card.high is None or column.scale == card.high
        assert card.low <= column.value <= (card.high or float("inf"))


@pytest.mark.parametrize("name", LIGHT)
def test_a_card_says_whether_references_are_needed(name: str) -> None:
    if "reference" not in cards()[name].needs:
        columns(name)  # its pairs have none
        return
    with pytest.raises(UsageError, match="no references"):
        METRICS[name](Pairs(("你好",), None, {"confidence": (0.5,)}))


@pytest.mark.parametrize("name", list(cards()))
def test_a_card_explains_the_options_of_its_metric(name: str) -> None:
    taken = [option for option in options_of(METRICS[name]) if option != "scorer"]  # given by the verb, not by words
    assert taken == list(cards()[name].options)


@pytest.mark.parametrize("name", list(cards()))
def test_a_card_speaks_both_languages(name: str) -> None:
    card = cards()[name]
    assert card.group in GROUPS
    assert card.source
    assert len(card.pitfalls("en")) == len(card.pitfalls("zh")) > 0
    chinese = [card.title("zh"), *card.pitfalls("zh"), *(texts["zh"] for texts in card.options.values())]
    assert all(CJK.search(text) or len(text) < 30 for text in chinese), chinese
    english = [card.title("en"), card.formula("en")]
    assert card.formula("zh") != card.formula("en")
    assert not any(CJK.search(text) for text in english)


def test_every_file_says_where_it_is_from() -> None:
    folder = files("danlu").joinpath("assets/metrics")
    for entry in folder.iterdir():
        if entry.name.endswith(".yaml"):
            read = yaml.safe_load(entry.read_text(encoding="utf-8"))
            assert entry.name == f"{read['name']}.yaml"
            assert read["licence"] == "Apache-2.0"
            assert read["direction"] in WORDS["en"]["direction"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_current(root: Path, language: str) -> None:
    written = (root / "docs" / language / "metrics.md").read_text(encoding="utf-8")
    assert written == render_page(language), "run: python -m danlu.evaluate.metrics.page docs"


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> str:
        with pytest.raises(SystemExit) as done:
            main(["metrics", *words])
        assert done.value.code in (0, None)
        return capsys.readouterr().out

    assert [row["name"] for row in json.loads(told("list", "--json"))] == list(cards())
    assert "self-bleu" in told("list")
    assert "Lin 2004" in told("show", "rouge-l-char")
    assert "最长公共子序列" in told("show", "rouge-char", "--language", "zh")
    assert json.loads(told("show", "pii", "--json"))["direction"] == "lower"


@pytest.mark.parametrize(("words", "reason"), [(("rouge-9",), "Did you mean"), (("f1", "--language", "fr"), "en, zh")])
def test_show_of_nothing_is_explained(words: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["metrics", "show", *words])
    assert done.value.code == 2
    assert reason in capsys.readouterr().err


def test_an_open_range_is_shown_as_one() -> None:
    assert range_text(cards()["perplexity"]) == "0–∞"
