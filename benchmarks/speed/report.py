"""From measured runs to a table: medians, their spread, and ratios of medians."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speed.sides import DANLU, PEER, PEER_BEST

GIB = 2**30
COLUMNS = (DANLU, PEER, PEER_BEST)


@dataclass(frozen=True, slots=True)
class Measure:
    """A line of the table: its words, the unit's size, digits after the point, and whether more is better."""

    words: str
    unit: float = 1.0
    digits: int = 0
    more: bool = True


MEASURES = {
    "speed": Measure("tokens/s"),
    "supervised_speed": Measure("supervised tokens/s"),
    "first_epoch_speed": Measure("tokens/s, first epoch"),
    "first_epoch_supervised_speed": Measure("supervised tokens/s, first epoch"),
    "later_epochs_speed": Measure("tokens/s, later epochs"),
    "later_epochs_supervised_speed": Measure("supervised tokens/s, later epochs"),
    "peak": Measure("peak memory, GiB", GIB, 2, more=False),
    "begin": Measure("command to beginning of training, s", 1, 1, more=False),
    "first_step": Measure("command to first optimizer step done, s", 1, 1, more=False),
    "rows_speed": Measure("rows/s"),
    "rows_peak": Measure("peak memory of the process, GiB", GIB, 2, more=False),
}


def grouped(runs: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Values by (what ran, measure) and contender, in the order of the runs."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        for name, value in run["values"].items():
            values.setdefault((run["what"], name), {}).setdefault(run["contender"], []).append(value)
    return values


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over median; not a number when a side has none."""
    if not ours or not theirs:
        return math.nan
    below = statistics.median(theirs)
    return statistics.median(ours) / below if below else math.nan


def cell(values: Sequence[float], measure: Measure) -> str:
    """The median, and the smallest and largest value when there are several."""
    scaled = [value / measure.unit for value in values]
    if not scaled:
        return "–"
    middle = f"{statistics.median(scaled):.{measure.digits}f}"
    if len(scaled) == 1:
        return middle
    return f"{middle} ({min(scaled):.{measure.digits}f}–{max(scaled):.{measure.digits}f})"


def ratio_cell(value: float) -> str:
    """A ratio with two digits."""
    return "–" if math.isnan(value) else f"{value:.2f}×"


def table(runs: Iterable[Mapping[str, Any]]) -> str:
    """The table as Markdown: one line a method and measure."""
    values = grouped(runs)
    head = ["", "measure", "better", *COLUMNS, f"danlu ÷ {PEER}", "danlu ÷ its best"]
    lines = [head, ["---", "---", "---", *["---:"] * (len(head) - 3)]]
    order = list(dict.fromkeys(what for what, _ in values))
    for what in order:
        for name, measure in MEASURES.items():
            if (what, name) not in values:
                continue
            of = values[what, name]
            ours, peer, best = (of.get(column, []) for column in COLUMNS)
            lines.append(
                [
                    what,
                    measure.words,
                    "more" if measure.more else "less",
                    *(cell(side, measure) for side in (ours, peer, best)),
                    ratio_cell(ratio(ours, peer)),
                    ratio_cell(ratio(ours, best)),
                ]
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """Processor, cores, memory and load of this machine."""
    text = ""
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": cores(),
        "memory": memory,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def heading(results: Mapping[str, Any]) -> str:
    """What was measured, on what, with what: the lines above the table."""
    box, settings = results["machine"], results["settings"]
    lines = [
        f"{box['processor']}, {box['cores']} cores, {box['memory'] / GIB:.0f} GiB, Python {box['python']}; "
        f"load {box['load']:.1f} before the start",
        f"{settings['model']}, bf16, cutoff {settings['cutoff']}, batch {settings['batch']} × "
        f"{settings['accumulation']}, {settings['rows']} rows from {settings['data']}, "
        f"{settings['steps']} steps (freeze: {settings['epochs']} epochs), {settings['repeats']} repeats, interleaved",
    ]
    for side, versions in results["versions"].items():
        lines.append(f"{side}: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if box["load"] > box["cores"] / 4:
        lines.append("WARNING: the machine was busy; these numbers support no ratio")
    return "\n".join([*lines, *results["remarks"]])


def token_remarks(ours: Mapping[str, Any], peers: Mapping[str, Any], template: str) -> list[str]:
    """How far both sides train the same tokens.

    Args:
        ours: ``order``, and by row ``tokens`` and ``supervised``; of the first row in that order ``pieces``
            and ``trained``.
        peers: the same, by place in that order.
        template: the peer's template.
    """
    mine = [(ours["tokens"][i], ours["supervised"][i]) for i in ours["order"]]
    other = list(zip(peers["tokens"], peers["supervised"], strict=True))
    remarks = [
        f"tokens of an epoch: danlu {sum(t for t, _ in mine)} ({sum(s for _, s in mine)} supervised), "
        f"{PEER} {sum(t for t, _ in other)} ({sum(s for _, s in other)} supervised), template {template}"
    ]
    if len(mine) != len(other):
        return [*remarks, f"WARNING: danlu trains {len(mine)} sequences, the peer {len(other)}"]
    differences = sorted({(b[0] - a[0], b[1] - a[1]) for a, b in zip(mine, other, strict=True)})
    if differences == [(0, 0)]:
        remarks.append("every row has equally many tokens on both sides")
    else:
        told = ", ".join(f"{tokens:+d} tokens ({trained:+d} supervised)" for tokens, trained in differences)
        remarks.append(f"a row of the peer against danlu's: {told}")
    return [*remarks, *_first_row_remarks(ours, peers)]


def _first_row_remarks(ours: Mapping[str, Any], peers: Mapping[str, Any]) -> list[str]:
    from difflib import SequenceMatcher

    mine, other = list(ours["pieces"]), list(peers["pieces"])
    remarks = []
    for kind, a, b, c, d in SequenceMatcher(None, mine, other, autojunk=False).get_opcodes():
        before = "".join(mine[max(a - 3, 0) : a])
        if kind != "equal":
            remarks.append(f"first row, after {before!r}: danlu {mine[a:b]}, the peer {other[c:d]}")
            continue
        for place, (i, j) in enumerate(zip(range(a, b), range(c, d), strict=True)):
            if ours["trained"][i] != peers["trained"][j]:
                who = "danlu" if ours["trained"][i] else "the peer"
                remarks.append(f"first row, token {a + place} {mine[i]!r}: trained by {who} alone")
    return remarks or ["first row: the same tokens on both sides, the same of them trained"]
