"""From dataset names to tokenised sequences on disk: tokenised once, found again by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError
from danlu.core.workspace import cache_folder
from danlu.data.catalog import resolve
from danlu.data.encode import EncodingReport, EncodingRules
from danlu.data.encoders import ENCODERS
from danlu.data.loading import LoadedRows, SourceInfo, digest, load_rows
from danlu.data.mixing import Strategy
from danlu.data.schema import row_key
from danlu.data.templates import Template
from danlu.data.tokens import FORMAT, TokenStore, write_store


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows: the arguments of :func:`danlu.data.loading.load_rows` that change what comes out."""

    names: tuple[str, ...]
    dataset_dir: str = "data"
    max_samples: int | None = None
    on_bad_row: str = "skip"
    separator: str = "\n"
    mix_strategy: Strategy = "concat"
    interleave_probs: tuple[float, ...] = ()
    seed: int = 42

    def load(self, stage: str | None = None) -> LoadedRows:
        """Read the rows."""
        return load_rows(
            self.names,
            dataset_dir=self.dataset_dir,
            max_samples=self.max_samples,
            on_bad_row="error" if self.on_bad_row == "error" else "skip",
            stage=stage,
            separator=self.separator,
            mix_strategy=self.mix_strategy,
            interleave_probs=self.interleave_probs,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """Tokenised rows and what is known about them.

    Attributes:
        store: the sequences.
        sources: the datasets they came from.
        bad_rows: how many rows could not be read, and ``bad_examples``: the first of them in words.
        reused: whether the cache had them.
    """

    store: TokenStore
    sources: tuple[SourceInfo, ...]
    bad_rows: int
    bad_examples: tuple[str, ...]
    reused: bool


class _Report:
    """The encoding report together with what was read, as the store keeps it."""

    def __init__(self, encoding: EncodingReport, loaded: LoadedRows) -> None:
        self.encoding, self.loaded = encoding, loaded

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.encoding.as_dict(),
            "sources": [asdict(source) for source in self.loaded.sources],
            "bad_rows": len(self.loaded.bad),
            "bad_examples": [str(bad) for bad in self.loaded.bad[:5]],
        }


def prepare(
    selection: Selection,
    template: Template,
    rules: EncodingRules,
    *,
    tokenizer_digest: str,
    stage: str = "sft",
    folder: Path | None = None,
    again: bool = False,
) -> Prepared:
    """Tokenise the selected rows, or find them in the cache.

    Args:
        selection: which rows.
        template: turns them into ids.
        rules: cutoff, masks, truncation.
        tokenizer_digest: names the vocabulary.
        stage: what the rows are for.
        folder: where to keep the result; below the cache by default.
        again: do not use an earlier result.

    Raises:
        DataError: for an unknown dataset, or when no row can be trained on.
    """
    key = _content_key(selection, template, rules, tokenizer_digest, stage)
    place = (folder or cache_folder("tokens")) / key
    if not again and (place / "report.json").exists():
        return _prepared(TokenStore(place), rules, reused=True)
    loaded = selection.load(stage)
    report = EncodingReport()
    store = write_store(
        place,
        ENCODERS[stage](loaded.rows, template, rules, report),
        (row_key(row) for row in loaded.rows),
        _Report(report, loaded),
    )
    return _prepared(store, rules, reused=False)


def _content_key(
    selection: Selection, template: Template, rules: EncodingRules, tokenizer_digest: str, stage: str
) -> str:
    contents = []
    for name in selection.names:
        source = resolve(name, selection.dataset_dir)
        contents.append([digest(source.files()), repr(source.shape), source.num_samples])
    kind = ENCODERS[stage].__name__
    parts = [FORMAT, asdict(selection), contents, template.digest, asdict(rules), tokenizer_digest, kind]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _prepared(store: TokenStore, rules: EncodingRules, *, reused: bool) -> Prepared:
    report = store.report
    sources = tuple(SourceInfo(**{**item, "warnings": tuple(item["warnings"])}) for item in report["sources"])
    if not len(store):
        raise _nothing_left(report, rules)
    return Prepared(store, sources, report["bad_rows"], tuple(report["bad_examples"]), reused)


def _nothing_left(report: dict[str, Any], rules: EncodingRules) -> DataError:
    if report["left_out"]:
        few = report["rows"] - report["left_out"]  # below 0 where a row makes several sequences
        which = f"all {report['rows']} rows are" if few <= 0 else f"{report['left_out']} of {report['rows']} rows are"
        return DataError(
            f"no row is left to train on: {which} longer than cutoff_len={rules.cutoff_len} tokens (the longest has "
            f"{report['longest']})",
            hint="Raise cutoff_len, or choose another truncation than drop.",
        )
    first = next(iter(report["examples"].values()), ["?"])[0]
    return DataError(
        f"none of {report['rows']} rows can be trained on, for instance {first}",
        hint="`danlu data check` names the reasons.",
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """A hash of a tokenizer's vocabulary and rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = str(backend.to_str())
    else:
        own = getattr(tokenizer, "model_digest", None)
        text = json.dumps([own, tokenizer.get_added_vocab() if own else tokenizer.get_vocab()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def names_of(sources: Sequence[SourceInfo]) -> str:
    """Dataset names for a message."""
    return ", ".join(source.name for source in sources)
