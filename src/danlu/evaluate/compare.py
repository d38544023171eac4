"""Before and after on the same rows: paired differences, and answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from danlu.core.errors import UsageError
from danlu.evaluate.metrics import Column, Measurement, Score
from danlu.evaluate.metrics.catalogue import direction_of
from danlu.evaluate.results import interval, number
from danlu.evaluate.statistics import Difference, paired_difference

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """One metric before and after.

    Attributes:
        before: the score before.
        after: the score after.
        difference: after minus before with interval and p-value; None where rows do not pair (distinct-n).
    """

    before: Score
    after: Score
    difference: Difference | None

    @property
    def name(self) -> str:
        """The metric."""
        return self.before.name

    @property
    def step(self) -> float:
        """After minus before."""
        return self.after.value - self.before.value

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``same`` (not distinguishable at 5 %) or ``untested``.

        A score whose better values depend on what is wanted, such as a length, is untested too.
        """
        direction = direction_of(self.name)
        if self.difference is None or direction == "none":
            return "untested"
        if self.difference.p_value >= SIGNIFICANT or self.step == 0:
            return "same"
        return "better" if (self.step > 0) == (direction == "higher") else "worse"


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with both answers and the reference."""

    question: str
    reference: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All metrics of one set before and after, and some answers to read.

    Attributes:
        changes: in the order of the metric set.
        answers: a few rows side by side.
        n: rows both were measured on.
    """

    changes: tuple[Change, ...]
    answers: tuple[Answer, ...]
    n: int


def compare(
    before: Measurement,
    after: Measurement,
    answers: Sequence[Answer] = (),
    *,
    shown: int = 10,
    seed: int = 42,
) -> Comparison:
    """Compare two measurements of the same rows, metric by metric.

    Args:
        before: measured with the first model.
        after: measured with the second, on the same rows in the same order.
        answers: every row's answers; ``shown`` of them, spread evenly over the dataset, are kept.
        shown: how many answers to keep.
        seed: of resampling.

    Raises:
        UsageError: when the two do not have the same metrics, protocols and rows.
    """
    changes = []
    for first, second, one, two in zip(before.scores, after.scores, before.columns, after.columns):
        if (first.name, first.protocol, first.n) != (second.name, second.protocol, second.n):
            raise UsageError(
                f"{first.name} over {first.n} rows and {second.name} over {second.n} were not measured alike",
                hint="Measure both with the same metric set on the same rows.",
            )
        changes.append(Change(first, second, _difference(one, two, seed)))
    if len(before.scores) != len(after.scores):
        raise UsageError("the two measurements have different metrics", hint="Use the same metric set for both.")
    return Comparison(tuple(changes), spread(answers, shown), before.scores[0].n if before.scores else 0)


def _difference(one: Column, two: Column, seed: int) -> Difference | None:
    if one.kind == "pool":
        return None
    share = one.kind == "share"
    return paired_difference(one.summed, two.summed, one.aggregate, yes_or_no=share, seed=seed)


def spread(answers: Sequence[Answer], shown: int) -> tuple[Answer, ...]:
    """``shown`` answers at even distances, first and last included: nobody picked them."""
    if len(answers) <= shown:
        return tuple(answers)
    if shown <= 1:
        return tuple(answers[:shown])
    last = len(answers) - 1
    return tuple(answers[round(place * last / (shown - 1))] for place in range(shown))


def p_text(p_value: float) -> str:
    """A p-value as it is shown: three digits, ``< 0.001`` below."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def step_text(change: Change) -> str:
    """The difference with its sign (a true minus)."""
    text = number(abs(change.step), change.before.scale)
    if not float(text.replace("–", "0")):
        return text
    return ("+" if change.step > 0 else "−") + text


def comparison_table(comparison: Comparison, title: str | None = None) -> Table:
    """Metric, before, after, difference with interval, and p-value, to print."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for name in ("before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("95 % interval", justify="right", no_wrap=True, style="quiet")
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("paired p", justify="right", no_wrap=True)
    styles = {"better": "good", "worse": "bad"}
    for change in comparison.changes:
        scale = change.before.scale
        table.add_row(
            change.name,
            number(change.before.value, scale),
            interval(change.before),
            number(change.after.value, scale),
            interval(change.after),
            Text(step_text(change), style=styles.get(change.verdict, "")),
            p_text(change.difference.p_value) if change.difference else "–",
        )
    table.caption = f"n = {comparison.n} rows; p: paired permutation test, McNemar for accuracy and exact match"
    table.caption_justify = "left"
    return table
