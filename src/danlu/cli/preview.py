"""`danlu data preview`: rows as the model sees them, with what is trained in colour."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from danlu.data.templates import Encoded

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
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids too.")] = False,
) -> None:
    """Rows as the model sees them; trained text is coloured (and between ⟦ ⟧ without colour)."""
    from danlu.core.config import build
    from danlu.core.console import out
    from danlu.core.errors import UsageError
    from danlu.data.encode import EncodingReport, encode_rows
    from danlu.data.loading import load_rows
    from danlu.models.loading import load_tokenizer, model_folder
    from danlu.tune.config import TrainConfig
    from danlu.verbs.material import generation_stops, open_text, rules

    values = {"template": template, "cutoff_len": cutoff, "truncation": truncation}
    config = build(TrainConfig, values, where="command line")
    folder = model_folder(model)
    text = open_text(load_tokenizer(folder), config, generation_stops(folder))
    found = load_rows([name], dataset_dir=dataset_dir, max_samples=start + rows).rows
    chosen = found[start:]
    if not chosen:
        raise UsageError(f"there are {len(found)} rows, the first to show is row {start}", where="--start")
    report = EncodingReport()
    for number, encoded in encode_rows(chosen, text.template, rules(config), report):
        supervised = sum(encoded.trained)
        where = chosen[number].origin
        told = f"{where}: {len(encoded.ids)} tokens, {supervised} trained"
        out.print(told, style="quiet", markup=False, soft_wrap=True)
        out.print(coloured(text.tokenizer, encoded, marks=not out.is_terminal), soft_wrap=True)
        if ids:
            out.print(" ".join(map(str, encoded.ids)), style="quiet", soft_wrap=True)
    if report.sequences < len(chosen):
        reasons = "; ".join(
            f"{kind.replace('_', ' ')}: {', '.join(places)}" for kind, places in report.examples.items()
        )
        out.print(f"{len(chosen) - report.sequences} rows make no sequence ({reasons})", markup=False, soft_wrap=True)


def coloured(tokenizer: Any, encoded: Encoded, *, marks: bool) -> Text:
    """The decoded sequence with trained runs in colour, or between ⟦ and ⟧."""
    from rich.text import Text

    text = Text()
    pairs = zip(encoded.ids, encoded.trained, strict=True)
    for trained, run in groupby(pairs, key=lambda pair: pair[1]):
        part = tokenizer.decode([number for number, _ in run], skip_special_tokens=False)
        shown = f"⟦{part}⟧" if trained and marks else part
        text.append(shown, style="bold #d9694f" if trained else "")
    return text
