"""The catalogue of metrics as text: for `danlu metrics` and for the page ``metrics.md`` in both languages.

``python -m danlu.evaluate.metrics.page docs`` writes ``docs/*/metrics.md``.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from danlu.core.console import note
from danlu.core.files import write_text
from danlu.evaluate.metrics.catalogue import GROUPS, Card, Language, cards

WORDS: dict[Language, dict[str, Any]] = {
    "en": {
        "columns": ("metric", "scores", "range", "better", "what"),
        "needs": {
            "reference": "references",
            "model": "a model (`--run` or `--model`)",
            "encoder": "a local encoder",
            "field": "a further column",
        },
        "direction": {"higher": "higher is better", "lower": "lower is better", "none": "depends on what is wanted"},
        "groups": {
            "match": "Right or wrong",
            "overlap": "Overlap with a reference",
            "diversity": "Diversity",
            "model": "Judged by a model",
            "form": "Form",
            "privacy": "Personal data",
            "calibration": "Calibration",
        },
        "labels": ("Scores", "Formula", "Range", "Needs", "Packages", "Pitfall", "Source"),
        "colon": ": ",
        "comma": ", ",
    },
    "zh": {
        "columns": ("指标", "分数", "范围", "方向", "衡量什么"),
        "needs": {
            "reference": "参考答案",
            "model": "模型（`--run` 或 `--model`）",
            "encoder": "本地编码器",
            "field": "另外一列",
        },
        "direction": {"higher": "越高越好", "lower": "越低越好", "none": "取决于目的"},
        "groups": {
            "match": "对与错",
            "overlap": "与参考答案的重合",
            "diversity": "多样性",
            "model": "由模型衡量",
            "form": "形式",
            "privacy": "个人信息",
            "calibration": "校准",
        },
        "labels": ("分数", "公式", "范围", "需要", "软件包", "注意", "来源"),
        "colon": "：",
        "comma": "、",
    },
}


def render_page(language: Language) -> str:
    """The whole page: how to measure, the table, and every metric."""
    head = files("danlu").joinpath(f"assets/metrics/page.{language}.md").read_text(encoding="utf-8")
    return f"{head}\n{render_table(language)}\n{render_details(language)}"


def range_text(card: Card) -> str:
    """``0–100``, or ``0–∞``."""
    return f"{card.low:g}–{'∞' if card.high is None else f'{card.high:g}'}"


def arrow(card: Card) -> str:
    """Which values are better, as an arrow."""
    return {"higher": "↑", "lower": "↓", "none": "·"}[card.direction]


def render_table(language: Language) -> str:
    """Every metric as a row of a Markdown table."""
    rows = [WORDS[language]["columns"], ("---",) * 5]
    for card in cards().values():
        scores = ", ".join(f"`{score}`" for score in card.scores)
        rows.append((f"`{card.name}`", scores, range_text(card), arrow(card), card.title(language)))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def render_details(language: Language) -> str:
    """Every metric with formula, range, pitfalls and source, under the headings of their groups."""
    parts = []
    for group in GROUPS:
        parts.append(f"## {WORDS[language]['groups'][group]}\n")
        for card in cards().values():
            if card.group == group:
                parts.append(f"### {card.name}\n\n{card.title(language)}\n\n{_list(card, language)}")
    return "\n".join(parts)


def card_text(card: Card, language: Language) -> str:
    """One metric for the terminal."""
    return f"{card.name}  {card.title(language)}\n\n{_list(card, language)}".replace("**", "").replace("`", "").rstrip()


def _list(card: Card, language: Language) -> str:
    words = WORDS[language]
    scores, formula, limits, needs, packages, pitfall, source = words["labels"]
    colon = words["colon"]

    def line(label: str, text: str) -> str:
        return f"- **{label}**{colon}{text}\n"

    lines = [
        line(scores, words["comma"].join(f"`{score}`" for score in card.scores)),
        line(formula, card.formula(language)),
        line(limits, f"{range_text(card)}{words['comma']}{words['direction'][card.direction]}"),
    ]
    if card.needs:
        lines.append(line(needs, words["comma"].join(words["needs"][need] for need in card.needs)))
    if card.packages:
        lines.append(line(packages, words["comma"].join(f"`{package}`" for package in card.packages)))
    for name, texts in card.options.items():
        lines.append(line(f"`{name}=`", texts[language]))
    lines += [line(pitfall, text) for text in card.pitfalls(language)]
    lines.append(line(source, card.source))
    return "".join(lines)


def main(folder: Path) -> None:
    """Write the pages below ``folder``."""
    languages: tuple[Language, ...] = ("en", "zh")
    for language in languages:
        write_text(folder / language / "metrics.md", render_page(language))
        note(f"{folder / language / 'metrics.md'} written")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
