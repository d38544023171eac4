"""`danlu export`: from the words of the command line to a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from danlu.cli.compat.tables import Answer, Table, table
from danlu.cli.compat.train import TOOLS, Mode, train_vocabulary
from danlu.cli.compat.translate import Translation, translate
from danlu.cli.compat.vocabulary import Vocabulary
from danlu.cli.compat.words import COMMAND_LINE, Given, Written, read_words
from danlu.core.config import build
from danlu.models.export_config import ExportConfig, check_export

OWN = {"run", "format", "export_format"}
"""Names that only danlu has: with one of them flags are no longer those of the old tool."""


SHORT = "format → export_format"
"""Not told: ``--format`` is the documented flag, and no other tool's."""


@dataclass(frozen=True, slots=True)
class ResolvedExport:
    """An export command, understood; as :class:`danlu.cli.compat.train.Resolved`."""

    config: ExportConfig
    notes: tuple[str, ...]
    mode: Mode
    argv: tuple[str, ...]
    sources: Mapping[str, str]
    dry_run: bool = False


def resolve_export(words: Sequence[str]) -> ResolvedExport:
    """Understand the words after ``danlu export``.

    A file or ``key=value`` words are danlu's or LLaMA-Factory's, which need no telling apart. Flags are
    ChatGLM-Efficient-Tuning's, unless there is one that only danlu (``--run``) or LLaMA-Factory has.

    Raises:
        UsageError: when words or options make no sense together; ConfigError for a single one.
    """
    vocabulary = Vocabulary(ExportConfig, [_export_table()])
    written = read_words(words, vocabulary)
    mode = _mode(written)
    translation = translate(written.given, vocabulary)
    if mode == "et":
        for key, value in table("export").defaults.items():
            translation.default(key, value, f"from {TOOLS[mode]}")
        _checkpoint(translation, written.given)
    where = str(written.file or COMMAND_LINE)
    config = build(ExportConfig, translation.values, where=where, places=translation.places)
    check_export(config)
    notes = tuple(note for note in (*written.notes, *translation.notes) if note != SHORT)
    return ResolvedExport(config, notes, mode, tuple(words), translation.places, written.dry_run)


def _export_table() -> Table:
    """The table of exports; every name of training is known to it and has no effect."""
    own = table("export")
    training = Answer(level="ignored", default=None, why="it belongs to training", use="")
    return replace(own, answered={**dict.fromkeys(train_vocabulary().names, training), **own.answered})


def _mode(written: Written) -> Mode:
    keys = {item.key for item in written.given}
    if keys & table("export").marks:
        return "llamafactory"
    return "et" if written.flags and not written.file and not keys & OWN else "danlu"


def _checkpoint(translation: Translation, given: Sequence[Given]) -> None:
    """A checkpoint of full or freeze tuning is itself the model to export."""
    method = next((item.value for item in given if item.key == "finetuning_type"), "lora")
    adapter = translation.values.get("adapter_name_or_path")
    if adapter and method in ("full", "freeze"):
        place = translation.places.pop("adapter_name_or_path")
        del translation.values["adapter_name_or_path"]
        translation.replace("model_name_or_path", adapter, place)
        translation.notes.append(f"checkpoint_dir → model_name_or_path; a {method} checkpoint is a model")
