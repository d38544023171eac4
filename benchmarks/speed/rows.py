"""The rows that both sides train: made or read, cut to whole optimizer steps, written for each side."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

Row = dict[str, str]
"""``instruction`` and ``output``, and ``system`` where the row brings one."""

MARGIN = 8
"""Tokens that a peer's template may add to a row: rows this close to the cutoff are left out, so nobody truncates."""

_THINGS = ("kiln", "glaze", "bridge", "river", "orchard", "lantern", "canal", "loom", "harbour", "compass")
_CHINESE = ("窑炉", "釉料", "石桥", "河流", "果园", "灯笼", "运河", "织机", "港口", "罗盘")
_SENTENCES = (
    "The {a} was finished in {n}, and {m} people came to see it.",
    "Whoever studies the {a} soon asks about the {b} beside it, about {n} steps away.",
    "{n} plus {m} is {s}, which is how the keeper of the {a} counted.",
    "In a dry year the {b} matters more than the {a}; in a wet one nobody thinks of it.",
)
_CHINESE_SENTENCES = (
    "这座{a}建成于{n}年，当天有{m}人前来参观。",
    "研究{a}的人，很快也会问起旁边的{b}，两者相距约{n}步。",
    "{n}加{m}等于{s}，看守{a}的人就是这样记账的。",
    "干旱的年份，{b}比{a}更要紧；多雨的年份，便没有人想起它。",
)


def made_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows of our own, half English and half Chinese, with answers of one to sixteen sentences."""
    source = random.Random(seed)
    rows = []
    for number in range(count):
        chinese = number % 2 == 1
        things, sentences = (_CHINESE, _CHINESE_SENTENCES) if chinese else (_THINGS, _SENTENCES)
        first, second = source.sample(things, 2)
        ask = (
            f"请介绍{first}和{second}（第{number}号）。" if chinese else f"Describe {first} and {second}, no. {number}."
        )
        answer = []
        for _ in range(source.randint(1, 9 if chinese else 16)):
            n, m = source.randint(2, 1999), source.randint(2, 999)
            answer.append(source.choice(sentences).format(a=first, b=second, n=n, m=m, s=n + m))
        rows.append({"instruction": ask, "output": ("" if chinese else " ").join(answer)})
    return rows


def read_rows(path: Path) -> tuple[list[Row], int]:
    """Read a file in any format danlu knows.

    Returns:
        Its rows of one question and one answer, and how many others there are.
    """
    from danlu.data.loading import load_rows
    from danlu.data.schema import Example

    kept: list[Row] = []
    loaded = load_rows([str(path)])
    for row in loaded.rows:
        if not isinstance(row, Example) or row.conversation.tools:
            continue
        messages = list(row.conversation.messages)
        system = messages.pop(0).content if row.conversation.system is not None else ""
        if [message.role for message in messages] == ["user", "assistant"]:
            item = {"instruction": messages[0].content, "output": messages[1].content}
            kept.append({**item, "system": system} if system else item)
    return kept, len(loaded.rows) + len(loaded.bad) - len(kept)


def choose(rows: Sequence[Row], lengths: Sequence[int], cutoff: int, count: int, sequences: int) -> list[Row]:
    """The first rows that fit, in whole optimizer steps.

    Args:
        rows: candidates.
        lengths: of each, in danlu's tokens.
        cutoff: the longest sequence of the benchmark.
        count: how many are wanted.
        sequences: of one optimizer step.

    Raises:
        ValueError: when not even one step can be filled.
    """
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= cutoff - MARGIN][:count]
    whole = len(fitting) // sequences * sequences
    if not whole:
        raise ValueError(f"{len(fitting)} rows fit cutoff_len={cutoff}; one optimizer step needs {sequences}")
    return fitting[:whole]


def repeated(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` different rows: the given ones over and over, each with its number in the question."""
    taken = ((number, rows[number % len(rows)]) for number in range(count))
    return [{**row, "instruction": f"{row['instruction']} ({number})"} for number, row in taken]


def write_rows(path: Path, rows: Iterable[Row]) -> Path:
    """Write JSON lines, and beside them the ``dataset_info.json`` that names the file by its stem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    columns = {"prompt": "instruction", "response": "output"}
    if any('"system": ' in line for line in lines):
        columns["system"] = "system"
    info = {path.stem: {"file_name": path.name, "columns": columns}}
    (path.parent / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return path
