"""One self-contained page about a comparison: scores, loss, answers, provenance; Chinese and English."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from danlu.core.files import write_text
from danlu.evaluate.compare import Change, Comparison, p_text, step_text
from danlu.evaluate.drawing import bar, line_chart, spread_rows
from danlu.evaluate.metrics.words import has_chinese
from danlu.evaluate.results import interval, number

Language: TypeAlias = Literal["zh", "en"]
Text: TypeAlias = str | Mapping[str, str]
"""A string for both languages, or one for each: ``{"zh": …, "en": …}``."""

LOSS_ROWS = 8


@dataclass(frozen=True, slots=True)
class Report:
    """What the page says.

    Attributes:
        title: of the page.
        comparison: before and after.
        headline: name of the metric that the first sentence is about.
        losses: (step, loss) of training, in order.
        eval_losses: (step, loss) on held-out rows.
        facts: provenance, shown in this order. Keys with a word in both languages are model, method, data,
            data_hash, rows, seed, generation, versions, machine, duration, date, run, command; others are
            shown as they are.
        summary: one or two sentences below the title.
    """

    title: Text
    comparison: Comparison
    headline: str
    losses: tuple[tuple[float, float], ...] = ()
    eval_losses: tuple[tuple[float, float], ...] = ()
    facts: Mapping[str, str] | None = None
    summary: Text = ""


def write_report(path: Path, report: Report, *, language: Language = "zh") -> None:
    """Write the page; ``language`` is the one it opens in."""
    write_text(path, render_report(report, language=language))


def render_report(report: Report, *, language: Language = "zh") -> str:
    """The page as HTML that needs no other file, no network and no script.

    Raises:
        KeyError: when the headline names no metric of the comparison.
    """
    words = catalogue()
    return (
        _environment(words)
        .get_template("report.html.j2")
        .render(
            report=report,
            language=language,
            headline=_headline(report.comparison, report.headline),
            rows=[_row(change) for change in report.comparison.changes],
            chart=line_chart(report.losses, report.eval_losses),
            losses=spread_rows(report.losses, LOSS_ROWS),
            facts=report.facts or {},
            fact_words=words["zh"]["facts"],
        )
    )


def catalogue() -> dict[str, Any]:
    """The words of the page by language."""
    loaded: dict[str, Any] = yaml.safe_load(_asset("words.yaml"))
    return loaded


def _asset(name: str) -> str:
    return (files("danlu") / "assets" / "report" / name).read_text(encoding="utf-8")


def _environment(words: Mapping[str, Any]) -> Environment:
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    find = _finder(words)
    environment.globals.update(
        t=lambda key, **values: both(find(key, values)),
        plain=lambda key, **values: " · ".join(find(key, values).values()),
        each=lambda key: zip(("zh-CN", "en"), find(key, {}).values()),
        both=both,
        language_of=language_of,
    )
    return environment


def _finder(words: Mapping[str, Any]) -> Callable[[str, Mapping[str, str]], dict[str, str]]:
    def find(key: str, values: Mapping[str, str]) -> dict[str, str]:
        """The text ``key`` (with dots between levels) in both languages, its gaps filled."""
        texts = {}
        for language in ("zh", "en"):
            text: Any = words[language]
            for part in key.split("."):
                text = text[part]
            texts[language] = text.format(**values)
        return texts

    return find


def both(text: Text) -> Markup:
    """A text in both languages as two elements, of which the style sheet shows one; a string as it is."""
    if isinstance(text, str):
        return escape(text)
    return Markup("").join(
        Markup('<span class="t" lang="{}">{}</span>').format(code, text[language])
        for language, code in (("zh", "zh-CN"), ("en", "en"))
    )


def language_of(text: str) -> str:
    """The language tag of a text of unknown origin, for the browser's choice of glyphs."""
    return "zh-CN" if has_chinese(text) else "en"


def _row(change: Change) -> dict[str, Any]:
    scale, difference = change.before.scale, change.difference
    return {
        "change": change,
        "before": number(change.before.value, scale),
        "before_interval": interval(change.before),
        "after": number(change.after.value, scale),
        "after_interval": interval(change.after),
        "step": step_text(change),
        "step_interval": _signed_interval(change) if difference else "",
        "p": p_text(difference.p_value) if difference else "",
        "test": difference.test if difference else "",
        "bars": [bar(score.value, score.low, score.high, scale) for score in (change.before, change.after)],
    }


def _signed_interval(change: Change) -> str:
    assert change.difference is not None
    ends = change.difference.interval
    return " … ".join(
        ("+" if end > 0 else "−" if end < 0 else "") + number(abs(end), change.before.scale)
        for end in (ends.low, ends.high)
    )


def _headline(comparison: Comparison, name: str) -> dict[str, Any]:
    for change in comparison.changes:
        if change.name == name:
            return {**_row(change), "name": name, "verdict": change.verdict}
    raise KeyError(f"the comparison has no metric {name!r}")
