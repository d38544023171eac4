"""Plain text as sequences to pre-train on: every token is trained, long texts are cut into pieces, none is lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from danlu.data.encode import EncodingReport, EncodingRules, batches_of
from danlu.data.schema import Document, Row
from danlu.data.templates import Encoded, Template
from danlu.data.tokens import Item


def encode_documents(
    rows: Iterable[Row], template: Template, rules: EncodingRules, report: EncodingReport
) -> Iterator[Item]:
    """Documents with the tokenizer's own beginning and an end of text, in pieces of at most ``cutoff_len`` tokens."""
    for batch in batches_of(rows, report):
        documents = [(number, row) for number, row in batch if isinstance(row, Document)]
        for (number, row), ids in zip(documents, template.document_ids([row.text for _, row in documents])):
            report.longest = max(report.longest, len(ids))
            report.too_long += len(ids) > rules.cutoff_len
            made = 0
            for start in range(0, len(ids), rules.cutoff_len):
                piece = ids[start : start + rules.cutoff_len]
                if len(piece) < 2:  # one token alone predicts nothing
                    continue
                made += 1
                report.sequences += 1
                report.tokens += len(piece)
                report.supervised += len(piece) - 1
                yield Item(number, (Encoded(piece, [True] * len(piece)),))
            if not made:
                report.untrainable += 1
                report.add_example("untrainable", str(row.origin))
