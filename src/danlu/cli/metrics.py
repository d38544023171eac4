"""``danlu metrics``: what can be measured, and what each number means."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.table import Table

from danlu.core.console import out
from danlu.core.errors import UsageError, did_you_mean

app = typer.Typer(no_args_is_help=True, help="What can be measured, and what each number means.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LanguageOption = Annotated[str, typer.Option("--language", help="en or zh")]


@app.command("list")
def _list(language: LanguageOption = "en", as_json: JsonOption = False) -> None:
    """Every metric with its scores, range, and which values are better; and the two sets."""
    from danlu.evaluate.metrics import METRIC_SETS, METRICS
    from danlu.evaluate.metrics.catalogue import cards
    from danlu.evaluate.metrics.page import WORDS, arrow, range_text

    chosen = _language(language)
    known = cards()
    if as_json:
        out.print_json(json.dumps([asdict(card) for card in known.values()], ensure_ascii=False))
        return
    table = Table(*WORDS[chosen]["columns"], box=None, pad_edge=False)
    for card in known.values():
        table.add_row(card.name, ", ".join(card.scores), range_text(card), arrow(card), card.title(chosen))
    for name in METRICS:
        if name not in known:
            table.add_row(name, "", "", "", METRICS.target(name))
    out.print(table)
    for name, members in METRIC_SETS.items():
        out.print(f"{name}: {', '.join(members)}", style="quiet", soft_wrap=True, highlight=False)


@app.command("show")
def _show(
    name: Annotated[str, typer.Argument(help="A metric, or one of its scores.")],
    language: LanguageOption = "en",
    as_json: JsonOption = False,
) -> None:
    """Formula, range, pitfalls, options and source of a metric."""
    from danlu.evaluate.metrics.catalogue import cards
    from danlu.evaluate.metrics.page import card_text

    chosen = _language(language)
    known = cards()
    card = known.get(name) or next((one for one in known.values() if name in one.scores), None)
    if card is None:
        names = [*known, *(score for one in known.values() for score in one.scores)]
        hint = did_you_mean(name, names) or "`danlu metrics list` shows them all."
        raise UsageError(f"there is no metric {name!r}", hint=hint)
    if as_json:
        out.print_json(json.dumps(asdict(card), ensure_ascii=False))
        return
    out.print(card_text(card, chosen), markup=False, highlight=False, soft_wrap=True)


def _language(name: str) -> Literal["en", "zh"]:
    if name == "en":
        return "en"
    if name == "zh":
        return "zh"
    raise UsageError(f"there is no text in {name!r}", hint="Known: en, zh.")
