"""How fast the compat metrics are, as a ratio against jieba + rouge-chinese + NLTK on the same pairs.

    python benchmarks/metrics.py --data alpaca_zh_demo.json --pairs 1000

The pairs are cut into blocks; each block is measured by both sides in turn, so what else the machine does meets both.
No text is seen twice by either side: what danlu remembers of earlier texts cannot help it. See README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from speed.report import machine

from danlu.evaluate.metrics import words
from danlu.evaluate.metrics.column import Pairs
from danlu.evaluate.metrics.compat import bleu, rouge

Rows = list[tuple[float, float, float, float]]


def made_pairs(texts: Sequence[str], count: int, seed: int = 7) -> list[tuple[str, str]]:
    """``count`` pairs (prediction, reference), no text twice.

    A third are unrelated (another answer without its last character), a third begin like the reference and end like
    another answer, a third are the reference with its clauses shuffled and a quarter of them left out.
    """
    generator = random.Random(seed)
    order = generator.sample(range(len(texts)), count)
    pairs = []
    for place, number in enumerate(order):
        reference, other = texts[number], texts[order[place - 1]]
        if place % 3 == 0:
            prediction = other[:-1]
        elif place % 3 == 1:
            prediction = reference[: len(reference) // 2] + other[len(other) // 2 :]
        else:
            clauses = reference.replace("。", "。\0").replace("，", "，\0").split("\0")
            generator.shuffle(clauses)
            prediction = "".join(clauses[: max(1, 3 * len(clauses) // 4)])
        pairs.append((prediction, reference))
    return pairs


def answers(paths: Sequence[Path], shortest: int = 2) -> list[str]:
    """The different answers of files of rows with ``output``."""
    rows = [row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))]
    return list(dict.fromkeys(row["output"] for row in rows if len(row["output"]) >= shortest))


def ours(predictions: Sequence[str], references: Sequence[str]) -> Rows:
    """The four numbers of each pair by danlu."""
    pairs = Pairs(tuple(predictions), tuple(references))
    columns = [column.rows.tolist() for column in (*rouge(pairs), *bleu(pairs))]
    return list(zip(*columns, strict=True))


def timed(side: Callable[[Sequence[str], Sequence[str]], Rows], block: Sequence[tuple[str, str]]) -> tuple[Rows, float]:
    """The rows of a side and the seconds of this process's own computing."""
    predictions, references = [one for one, _ in block], [two for _, two in block]
    gc.collect()
    start = time.process_time()
    rows = side(predictions, references)
    return rows, time.process_time() - start


def compare(pairs: Sequence[tuple[str, str]], size: int, repeats: int) -> dict[str, Any]:
    """Speeds of both sides, block by block, and how many rows differ."""
    from peers import metrics_side

    metrics_side.load()
    speeds: dict[str, list[float]] = {"danlu": [], "peer": []}
    unequal = 0
    for repeat in range(repeats):
        words.segmenter.cache_clear()
        words.cut.cache_clear()
        words.segmenter()
        for start in range(0, len(pairs), size):
            block = pairs[start : start + size]
            sides = [("danlu", ours), ("peer", metrics_side.rows)]
            found: dict[str, Rows] = {}
            for name, side in sides if (start // size + repeat) % 2 else reversed(sides):
                found[name], seconds = timed(side, block)
                speeds[name].append(len(block) / seconds)
            unequal += sum(mine != theirs for mine, theirs in zip(found["danlu"], found["peer"], strict=True))
    ratios = [mine / theirs for mine, theirs in zip(speeds["danlu"], speeds["peer"], strict=True)]
    return {**speeds, "ratio": ratios, "unequal": unequal, "blocks": len(ratios)}


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="JSON lists of rows with output")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--block", type=int, default=50, help="pairs of a block")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write every measured value here")
    options = parser.parse_args(given)
    texts = answers(options.data)
    if len(texts) < options.pairs:
        parser.error(f"there are {len(texts)} different answers, fewer than --pairs {options.pairs}")
    pairs = made_pairs(texts, options.pairs)
    found = compare(pairs, options.block, options.repeats)
    length = statistics.mean(len(one) + len(two) for one, two in pairs) / 2
    print(f"{len(pairs)} pairs, {length:.0f} characters a text, {found['blocks']} blocks")
    print(f"rows that differ: {found['unequal']}")
    for name, unit in (("danlu", "pairs/s"), ("peer", "pairs/s"), ("ratio", "×")):
        values = found[name]
        print(f"{name}: {statistics.median(values):.1f} {unit} ({min(values):.1f}–{max(values):.1f})")
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if found["unequal"] else 0)


if __name__ == "__main__":
    main()
