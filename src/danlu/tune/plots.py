"""The loss curves of a run, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from danlu.core import console
from danlu.core.files import replacing

LINE = 60
"""Characters of a title in one line; matplotlib's own wrapping would read ``$`` as mathematics."""

FAMILIES = (
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("Microsoft YaHei", "PingFang SC", "SimHei", "Noto Serif CJK SC"),
)
"""Fonts to draw a title with, the first that has a character draws it."""


def smooth(values: Sequence[float]) -> list[float]:
    """An exponential moving average whose weight grows with the number of values.

    The weight is ``1.8 (1 / (1 + exp(-0.05 n)) - 0.5)``, as in LLaMA-Factory's and ChatGLM-Efficient-Tuning's
    curves: a short run is hardly smoothed, a long one strongly. The first value is kept.
    """
    if not values:
        return []
    weight = 1.8 * (1 / (1 + math.exp(-0.05 * len(values))) - 0.5)
    smoothed = [values[0]]
    for value in values[1:]:
        smoothed.append(weight * smoothed[-1] + (1 - weight) * value)
    return smoothed


def plot_curves(
    folder: Path,
    log: Sequence[Mapping[str, Any]],
    keys: Sequence[str] = ("loss",),
    *,
    tell: Callable[[str], None] = console.note,
) -> list[Path]:
    """Draw ``training_<key>.png`` for each key that was logged (with ``/`` as ``_``).

    Args:
        folder: the run directory.
        log: the trainer's log history, each event with ``step``.
        keys: what to draw, for instance ``loss`` and ``eval_loss``.
        tell: takes one line for each key: the figure's path, or that there is nothing to draw.

    Returns:
        The files written, 640 × 480 pixels each.
    """
    written: list[Path] = []
    for key in keys:
        points = [(event["step"], event[key]) for event in log if _drawable(event, key)]
        if not points:
            tell(f"No metric {key} to plot.")
            continue
        path = folder / f"training_{key.replace('/', '_')}.png"
        _draw(path, [step for step, _ in points], [value for _, value in points], key, str(folder))
        tell(f"Figure saved: {path}")
        written.append(path)
    return written


def _drawable(event: Mapping[str, Any], key: str) -> bool:
    value = event.get(key)
    return event.get("step") is not None and isinstance(value, int | float) and math.isfinite(value)


def _draw(path: Path, steps: Sequence[float], values: Sequence[float], key: str, folder: str) -> None:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title = f"training {key} of {folder}"
    families, title = legible(title)
    with mpl.rc_context({"font.family": families, "axes.unicode_minus": False, "text.parse_math": False}):
        figure = Figure(figsize=(6.4, 4.8), dpi=100)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot(steps, values, color="#1f77b4", alpha=0.4, label="original")
        axes.plot(steps, smooth(values), color="#1f77b4", label="smoothed")
        axes.legend()
        axes.set_xlabel("step")
        axes.set_ylabel(key)
        axes.set_title("\n".join(wrap(title, LINE)), fontsize="large" if len(title) <= LINE else "small")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")


def legible(text: str) -> tuple[list[str], str]:
    """Fonts that together can draw ``text``; characters that no installed font has become ``·``."""
    from matplotlib import font_manager

    families: list[str] = []
    missing = set(text)
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    for family in FAMILIES:
        if family not in installed or (families and not missing):
            continue
        file = font_manager.findfont(font_manager.FontProperties(family=family), fallback_to_default=False)
        characters = font_manager.get_font(file).get_charmap()
        if found := {character for character in missing if ord(character) in characters}:
            families.append(family)
            missing -= found
    return families, "".join("·" if character in missing else character for character in text)
