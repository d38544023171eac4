"""`danlu train`: from the words of the command line to a configuration.

Which tool a command was written for:

* a file with a group (``lora: {…}``), or options without a file as ``key=value``: danlu's own;
* flags without a file: ChatGLM-Efficient-Tuning's, unless one of them exists only in LLaMA-Factory
  (``--template``, ``--cutoff_len``, ``--eval_dataset``, …); then they are LLaMA-Factory's;
* a flat file with ``do_train``, ``do_eval`` or ``do_predict``: LLaMA-Factory's, unless a key exists only in
  ChatGLM-Efficient-Tuning (``checkpoint_dir``, ``dev_ratio``, …) and none only in LLaMA-Factory;
* any other flat file is danlu's.

Only the defaults depend on it: the names of all three are understood everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from danlu.cli.compat.et import check_as_asked, complete
from danlu.cli.compat.tables import Table, table
from danlu.cli.compat.translate import Translation, as_number, translate
from danlu.cli.compat.vocabulary import Vocabulary
from danlu.cli.compat.words import COMMAND_LINE, Written, read_words
from danlu.core.config import build
from danlu.core.errors import UsageError
from danlu.tune.checks import check
from danlu.tune.config import TrainConfig

Mode = Literal["danlu", "et", "llamafactory"]
TOOLS: Mapping[str, str] = {
    "danlu": "danlu",
    "et": "ChatGLM-Efficient-Tuning",
    "llamafactory": "LLaMA-Factory",
}
TASKS = ("do_train", "do_eval", "do_predict")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A command, understood.

    Attributes:
        config: every option with its value.
        notes: what was translated, what was left out and why.
        mode: whose defaults hold.
        argv: the words as they were given.
        sources: where the value of an option comes from, by bare name; danlu's own defaults are absent.
        dry_run: whether ``--dry-run`` was among the words.
    """

    config: TrainConfig
    notes: tuple[str, ...]
    mode: Mode
    argv: tuple[str, ...]
    sources: Mapping[str, str]
    dry_run: bool = False


def resolve_train(words: Sequence[str]) -> Resolved:
    """Understand the words after ``danlu train``. Nothing heavy is imported, no data is read.

    Raises:
        UsageError: when words or options make no sense together; ConfigError for a single one.
    """
    vocabulary = train_vocabulary()
    written = read_words(words, vocabulary)
    if not written.given:
        raise UsageError(
            "there is no configuration",
            where=COMMAND_LINE,
            hint="danlu train CONFIG.yaml [key=value …], or the flags of ChatGLM-Efficient-Tuning.",
        )
    mode = _mode(written)
    asked = {item.key: item.value for item in written.given}
    if mode == "et":
        check_as_asked(asked)
    translation = translate(written.given, vocabulary)
    _fill(translation, mode)
    if translation.trainer:
        translation.values["trainer"] = translation.trainer
    where = str(written.file or COMMAND_LINE)
    config = build(TrainConfig, translation.values, where=where, places=translation.places)
    _check(config, mode)
    notes = (*written.notes, *_mode_note(mode, written), *translation.notes, *_trust_note(config))
    return Resolved(config, notes, mode, tuple(words), translation.places, written.dry_run)


def train_vocabulary() -> Vocabulary:
    """Every name that `danlu train` understands."""
    return Vocabulary(TrainConfig, [table("et"), table("llamafactory"), table("transformers")])


def _mode(written: Written) -> Mode:
    keys = {item.key for item in written.given}
    newer = any(_is_llamafactory(key) for key in keys)
    if not written.file:
        return "danlu" if not written.flags else "llamafactory" if newer else "et"
    if written.grouped or not keys & set(TASKS):
        return "danlu"
    return "et" if keys & table("et").marks and not newer else "llamafactory"


def _is_llamafactory(key: str) -> bool:
    others: tuple[Table, ...] = (table("et"), table("transformers"))
    return table("llamafactory").knows(key) and not any(other.knows(key) for other in others)


def _mode_note(mode: Mode, written: Written) -> list[str]:
    if mode == "danlu":
        return []
    what = "the flags" if written.file is None else "a file"
    return [f"read as {what} of {TOOLS[mode]}: what is left out has the default of that tool"]


def _trust_note(config: TrainConfig) -> list[str]:
    if not config.model.trust_remote_code:
        return []
    return ["trust_remote_code is accepted and has no effect: danlu never runs code from a model's folder"]


def _fill(translation: Translation, mode: Mode) -> None:
    if mode == "danlu":
        return
    place = f"from {TOOLS[mode]}"
    if mode == "llamafactory" and not any(name in translation.values for name in TASKS):
        translation.default("do_train", True, place)
    defaults: dict[str, Any] = dict(table(mode).defaults)
    for key, value in defaults.items():
        translation.default(key, value, place)
    beams = as_number(translation.values.get("num_beams"))
    if beams and beams > 1 and place == translation.places.get("do_sample"):
        translation.replace("do_sample", False, "because of num_beams")
        translation.notes.append("beams are searched without sampling: do_sample=false")
    if mode == "et":
        complete(translation)


def _check(config: TrainConfig, mode: Mode) -> None:
    asks = config.task.do_predict and config.task.stage == "sft"
    if mode != "danlu" and asks and not config.task.predict_with_generate:
        raise UsageError("Please enable `predict_with_generate` to save model predictions.")
    check(config)
