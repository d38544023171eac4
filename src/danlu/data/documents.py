"""Plain text as sequences to pre-train on: every token is trained, long texts are cut into pieces, none is lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from danlu.data.encode import EncodingReport, EncodingRules, batches_of
from danlu.data.fitting import too_long
from danlu.data.schema import Document, Row
from danlu.data.templates import Encoded, Template
from danlu.data.tokens import Item


def encode_documents(
    rows: Iterable[Row], template: Template, rules: EncodingRules, report: EncodingReport
) -> Iterator[Item]:
    """Documents with the tokenizer's own beginning and an end of text, in pieces of at most ``cutoff_len`` tokens.

    A piece begins with the last token of the one before it, which is seen and not learnt again, so every token of a
    text but its first is predicted exactly once.

    Raises:
        DataError: a text is too long and the policy is ``error``.
    """
    for batch in batches_of(rows, report):
        documents = [(number, row) for number, row in batch if isinstance(row, Document)]
        for (number, row), ids in zip(documents, template.document_ids([row.text for _, row in documents])):
            report.longest = max(report.longest, len(ids))
            if len(ids) > rules.cutoff_len:
                report.too_long += 1
                report.add_example("too_long", str(row.origin))
                if rules.truncation == "error":
                    raise too_long(rules.cutoff_len, row.origin)
            if len(ids) < 2 or rules.cutoff_len < 2:  # one token alone predicts nothing
                report.untrainable += 1
                report.add_example("untrainable", str(row.origin))
                continue
            for start in range(0, len(ids) - 1, rules.cutoff_len - 1):
                piece = ids[start : start + rules.cutoff_len]
                report.sequences += 1
                report.tokens += len(piece)
                report.supervised += len(piece) - 1
                yield Item(number, (Encoded(piece, [False] + [True] * (len(piece) - 1)),))
