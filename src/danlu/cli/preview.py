"""`danlu data preview`: rows as the model sees them, with what is trained in colour."""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from danlu.data.schema import Conversation, Document, Message, Preference, Row, UnpairedPreference

if TYPE_CHECKING:
    from rich.text import Text as RichText

    from danlu.data.encode import EncodingRules
    from danlu.data.templates import Encoded
    from danlu.data.tokens import Item
    from danlu.verbs.material import Text

StageOption = Annotated[
    str | None, typer.Option(help="What the rows are for; by default what they are made for.", metavar="pt|sft|rm|…")
]
CutoffOption = Annotated[int, typer.Option(min=1, help="Longest sequence, in tokens.")]


def preview(
    name: Annotated[str, typer.Argument(help="A name, file, folder, pattern or hub id.")],
    model: Annotated[str, typer.Option(help="Whose template and tokenizer.")] = "smollm2-135m",
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
    start: Annotated[int, typer.Option(min=0, help="First row, from 0.")] = 0,
    template: Annotated[str | None, typer.Option(help="Named template, for models without one.")] = None,
    cutoff: CutoffOption = 2048,
    truncation: Annotated[str, typer.Option(help="drop, keep_start, keep_end, split or error.")] = "keep_start",
    dataset_dir: Annotated[str, typer.Option(help="Folder that holds dataset_info.json.")] = "data",
    stage: StageOption = None,
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids too.")] = False,
) -> None:
    """Rows as the model sees them; trained text is coloured (and between ⟦ ⟧ without colour).

    Of pairs the prompt is shown once and each answer behind it.
    """
    from danlu.core.config import build
    from danlu.core.console import out
    from danlu.core.errors import UsageError
    from danlu.data.loading import known_stage, load_rows
    from danlu.models.loading import load_tokenizer, model_folder
    from danlu.tune.config import TrainConfig
    from danlu.verbs.material import generation_stops, open_text, rules

    values = {"template": template, "cutoff_len": cutoff, "truncation": truncation}
    config = build(TrainConfig, values, where="command line")
    folder = model_folder(model)
    text = open_text(load_tokenizer(folder), config, generation_stops(folder))
    wanted = stage and known_stage(stage)
    loaded = load_rows([name], dataset_dir=dataset_dir, max_samples=start + rows, stage=wanted)
    chosen = loaded.rows[start:]
    if not chosen:
        raise UsageError(f"there are {len(loaded.rows)} rows, the first to show is row {start}", where="--start")
    for one, members in groupby(chosen, key=lambda row: stage or usual_stage(row)):
        _show(list(members), one, text, rules(config), ids=ids)
    if loaded.bad:
        told = f"{len(loaded.bad)} rows cannot be used, for instance {loaded.bad[0]}"
        out.print(told, markup=False, soft_wrap=True)


def _show(rows: list[Row], stage: str, text: Text, rules: EncodingRules, *, ids: bool) -> None:
    from danlu.core.console import out
    from danlu.data.encode import EncodingReport
    from danlu.data.encoders import ENCODERS

    report, shown = EncodingReport(), set()
    # kto wants answers to other prompts, also where a single row is looked at
    asked = [*rows, SOMEBODY_ELSE] if stage == "kto" else rows
    for item in ENCODERS[stage](asked, text.template, rules, report):
        if item.row >= len(rows):
            continue
        shown.add(item.row)
        parts = item.parts[:2] if stage == "kto" else item.parts
        tokens = sum(len(part.ids) for part in parts)
        trained = sum(sum(part.trained) for part in parts)
        told = f"{rows[item.row].origin}: {tokens} tokens, {trained} trained"
        out.print(told, style="quiet", markup=False, soft_wrap=True)
        for label, part in zip(labels(stage, item), parts, strict=True):
            if label:
                out.print(label, style="quiet", markup=False)
            out.print(coloured(text.tokenizer, part, marks=not out.is_terminal), soft_wrap=True)
            if ids:
                out.print(" ".join(map(str, part.ids)), style="quiet", soft_wrap=True)
    missing = len(rows) - len(shown)
    if missing:
        reasons = "; ".join(
            f"{kind.replace('_', ' ')}: {', '.join(places)}" for kind, places in report.examples.items()
        )
        out.print(f"{missing} rows make no sequence ({reasons})", markup=False, soft_wrap=True)


SOMEBODY_ELSE = UnpairedPreference(Conversation((Message("user", "…?"), Message("assistant", "…"))), True)


def labels(stage: str, item: Item) -> tuple[str, ...]:
    """What stands above each part of an item."""
    if len(item.parts) == 1:
        return ("",)
    if stage == "kto":
        return "prompt", "wanted answer" if item.value == 1 else "unwanted answer"
    margin = "" if math.isnan(item.value) else f", better by {item.value:g}"
    return "prompt", f"chosen{margin}", "rejected"


def usual_stage(row: Row) -> str:
    """The stage that a row is made for."""
    match row:
        case Preference():
            return "dpo"
        case UnpairedPreference():
            return "kto"
        case Document():
            return "pt"
        case _:
            return "sft"


def coloured(tokenizer: Any, encoded: Encoded, *, marks: bool) -> RichText:
    """The decoded sequence with trained runs in colour, or between ⟦ and ⟧."""
    from rich.text import Text

    text = Text()
    pairs = zip(encoded.ids, encoded.trained, strict=True)
    for trained, run in groupby(pairs, key=lambda pair: pair[1]):
        part = tokenizer.decode([number for number, _ in run], skip_special_tokens=False)
        shown = f"⟦{part}⟧" if trained and marks else part
        text.append(shown, style="bold #d9694f" if trained else "")
    return text
