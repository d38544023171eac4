"""The shape of a file nobody described, seen from the names of its columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from danlu.core.errors import DataError
from danlu.data.formats import usual_shape
from danlu.data.formats.shape import Columns, Shape

_CHATS = ("messages", "conversations", "conversation", "dialog", "dialogue")
_PAIRS_OF_NAMES = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("query", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("content", "summary"),
    ("input", "output"),
    ("input", "target"),
    ("q", "a"),
    ("问题", "答案"),
    ("问题", "回答"),
)
_TEXTS = ("text", "content")
_LABELS = ("kto_tag", "label")


def detect(rows: Iterable[dict[str, Any]], *, where: str, separator: str = "\n", labelled: bool = False) -> Shape:
    """Find out how to read rows from the first of them.

    Args:
        rows: raw rows; their column names are taken together, since optional columns come and go.
        where: the file, for the error.
        separator: between instruction and input.
        labelled: a column of labels says whether an answer is wanted, even if most of it is neither true nor false.

    Raises:
        DataError: when the columns fit no format.
    """
    sample: dict[str, Any] = {}
    labels: dict[str, list[bool]] = {}
    for row in rows:
        for key, value in row.items():
            if sample.get(key) is None:
                sample[key] = value
            if key in _LABELS and value is not None:
                labels.setdefault(key, []).append(_is_label(value))
    label = _label_column(labels, labelled)
    shape = (
        _pairs_of_chats(sample) or _chat(sample, label) or _labelled(sample) or _flat(sample, label) or _text(sample)
    )
    if shape is None:
        raise DataError(
            f"no known format has these columns: {', '.join(sample) or 'none'}",
            where=where,
            hint="Name them under columns of an entry in dataset_info.json.",
        )
    return replace(shape, separator=separator)


def _pairs_of_chats(sample: dict[str, Any]) -> Shape | None:
    if "chosen_messages" in sample and "rejected_messages" in sample:
        return usual_shape("native")
    return None


def _chat(sample: dict[str, Any], label: str | None) -> Shape | None:
    column = next((name for name in _CHATS if _is_list(sample.get(name))), None)
    if column is None:
        return None
    items = sample[column]
    first = next((item for item in items if isinstance(item, dict)), {}) if isinstance(items, list) else {}
    if "from" in first or (not first and column.startswith("conversation")):
        name = "sharegpt"
    elif "question" in first:
        name = "rounds"
    elif isinstance(first.get("content"), list) and any(
        "value" in part for part in first["content"] if isinstance(part, dict)
    ):
        name = "native"
    else:
        name = "openai"
    shape = usual_shape(name)
    return replace(shape, columns=replace(shape.columns, messages=column, kto_tag=label))


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def _labelled(sample: dict[str, Any]) -> Shape | None:
    if "chosen" in sample and "rejected" in sample and not {"instruction", "question", "query"} & set(sample):
        return usual_shape("preference")
    if "prompt" in sample and "completion" in sample and "label" in sample:
        return usual_shape("kto")
    return None


def _flat(sample: dict[str, Any], label: str | None) -> Shape | None:
    names = next((pair for pair in _PAIRS_OF_NAMES if set(pair) <= set(sample)), None)
    pair = "chosen" in sample and "rejected" in sample
    if names is None and pair:
        prompt = next((name for name in ("instruction", "question", "query") if name in sample), None)
        names = (prompt, "output") if prompt else None
    if names is None:
        return None
    usual = usual_shape("alpaca")
    query = "input" if names[0] == "instruction" else None
    columns: Columns = replace(usual.columns, prompt=names[0], query=query, response=names[1], kto_tag=label)
    return replace(usual, columns=columns)


def _is_label(value: Any) -> bool:
    return isinstance(value, bool) or str(value).strip().lower() in ("true", "false")


def _label_column(labels: dict[str, list[bool]], labelled: bool) -> str | None:
    """The column that says whether an answer is wanted; other labels (classes, numbers) are not that.

    Args:
        labels: column → whether each of its values is true or false.
        labelled: there has to be one.
    """
    names = [name for name in _LABELS if name in labels]
    mostly = (name for name in names if 2 * sum(labels[name]) >= len(labels[name]))
    return next(mostly, names[0] if names and labelled else None)


def _text(sample: dict[str, Any]) -> Shape | None:
    column = next((name for name in _TEXTS if isinstance(sample.get(name), str)), None)
    if column is None:
        return None
    shape = usual_shape("text")
    return replace(shape, columns=replace(shape.columns, prompt=column))
