"""Texts that tokenizers like to disagree about, for comparing a converted tokenizer with its original."""

from __future__ import annotations

import random

FRAGMENTS = (
    *("a", "The furnace", " takes raw text", "people", "a sophisticated man", "sop", "eop", "x=1;", "1,234.50", "été"),
    *(
        "丹炉",
        "把原始文本炼成会回答的小模型。",
        "问：",
        "答：",
        "，",
        "“引号”",
        "𠮷野家",
        "日本語テキスト",
        "한국어",
        "ไทย",
    ),
    *(
        "🙂",
        "👩‍👩‍👧‍👦",
        "🇨🇳",
        "e\u0301",
        "\u200b",
        "\u200d",
        "\ufeff",
        "\u3000",
        "\u00a0",
        "\u2581",
        "\u2028",
        "ﬁ",
        "①",
    ),
    *(" ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "\n ", " \n", "---", "=====", "......", "____", "aaaaa"),
    *("[gMASK]", "[MASK]", "[sMASK]", "<|user|>", "<|assistant|>", "<|observation|>", "<|system|>", "<sop>", "<eop>"),
    *("</s>", "<s>", "<unk>", "<pad>", "<0x0A>", "<n>", "<|tab|>", "<|blank_3|>", "<image_12>", "▁▁", "\x00", "\x7f"),
    *(
        "def f(x):\n    return x + 1\n",
        "https://example.org/?q=1&r=%20",
        "[Round 1]\n\n问：",
        "```python\n",
        '{"a": [1, 2]}',
    ),
)
"""Words, Chinese, emoji, blanks, and what looks like control tokens."""

RUNS = tuple(part * count for part in (" ", "-", "=", ".", "a", "哈", "\n", "\t", "ab", "0") for count in range(2, 12))
"""Repetitions, where the order of merges shows."""


def hard_texts(count: int = 400, seed: int = 0) -> list[str]:
    """Every fragment, every run, and ``count`` mixtures of them; the same for the same seed."""
    chooser = random.Random(seed)
    mixed = ["".join(chooser.choices(FRAGMENTS, k=chooser.randint(2, 8))) for _ in range(count)]
    return ["", *FRAGMENTS, *RUNS, *mixed]
