"""Reward models: opening one, and `danlu score`, which writes its number for every answer of a dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from danlu.core.console import note, out, progress
from danlu.core.errors import DataError, RunError, UsageError
from danlu.core.files import replacing
from danlu.core.results import write_results
from danlu.core.run import MANIFEST, RunDirectory, is_run
from danlu.data.branching import answer_of, prompt_of
from danlu.data.prepare import names_of
from danlu.data.schema import Conversation, Document, Message, Preference, Row
from danlu.evaluate.statistics import wilson_interval
from danlu.models.adapters import read_adapter
from danlu.models.runs import TrainedModel
from danlu.tune.config import TrainConfig
from danlu.verbs.material import evaluation_rows
from danlu.verbs.opening import Opened, open_model, settings

if TYPE_CHECKING:
    from danlu.models.value_head import ValueHead
    from danlu.tune.online.rewards import Rewards
    from danlu.tune.online.samples import Reward, Sample
    from danlu.tune.scoring import RewardModel

FILE_NAME = "scores.jsonl"
BATCH = 64


@dataclass(frozen=True, slots=True)
class Scored:
    """A row and what the reward model says of its answer, or of both of its answers (the better one first)."""

    prompt: Conversation
    answers: tuple[str, ...]
    scores: tuple[float, ...]


def score(run: str | Path | None = None, *, model: str | None = None, adapter: Sequence[str] = (), **keys: Any) -> Path:
    """Score the answers of a dataset with a reward model.

    Args:
        run: a run of stage rm, or one of its checkpoints.
        model: without a run, the model; its last adapter holds the value head.
        adapter: adapters on ``model``.
        keys: options of :class:`TrainConfig`: ``dataset``, ``max_samples``, ``output_dir``, …

    Returns:
        The file scores.jsonl: ``{"index", "prompt", "answer", "score"}`` a line, or for pairs ``{"index", "prompt",
        "chosen", "rejected", "chosen_score", "rejected_score"}``.

    Raises:
        UsageError: when no rows are named.
        RunError: when the model has no value head.
    """
    config, source, folder = settings(run, model, adapter, keys)
    if not config.data.eval_dataset:
        raise UsageError("no rows to score are named", hint="Give dataset=NAME or a file.")
    loaded = evaluation_rows(config).load()
    rows = [row for row in loaded.rows if not isinstance(row, Document) and answer_of(row) is not None]
    if not rows:
        raise DataError(f"no row of {names_of(loaded.sources)} has an answer to score")
    if len(rows) < len(loaded.rows):
        note(f"{len(loaded.rows) - len(rows)} rows have no answer and are left out")
    opened = open_model(config, source)
    scored = score_rows(reward_model(opened), rows)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        for number, item in enumerate(scored):
            stream.write(json.dumps({"index": number, **_line(item)}, ensure_ascii=False) + "\n")
    summary = summarise(scored)
    write_results(folder, "score", {f"score_{name}": value for name, value in summary.items()})
    show(summary)
    return path


def reward_model(opened: Opened) -> RewardModel:
    """The engine of an opened model that has a value head."""
    from danlu.models.value_head import hidden_width
    from danlu.tune.scoring import RewardModel

    head = value_head(opened.source, hidden_width(opened.model))
    return RewardModel(opened.model, head, opened.text.template)


def value_head(source: TrainedModel, width: int) -> ValueHead:
    """The value head of a reward model: beside its last adapter, or in its folder.

    Args:
        source: the reward model.
        width: numbers in a hidden state of it.

    Raises:
        RunError: when there is none, it is of another width, or it was trained for something else.
    """
    from danlu.models.loading import model_folder
    from danlu.models.value_head import ValueHead

    folder = source.run or (Path(source.adapters[-1]) if source.adapters else model_folder(source.model))
    head = ValueHead(width)
    head.load(folder)
    stage = RunDirectory(folder).read_manifest().stage if (folder / MANIFEST).is_file() else "rm"
    if stage != "rm":
        raise RunError(
            f"the value head of this run says what stage {stage} expected of a state: it is no reward model",
            where=str(folder),
            hint="Name a run of stage rm.",
        )
    return head


def score_rows(scorer: RewardModel, rows: Sequence[Row]) -> list[Scored]:
    """Both answers of pairs, the one answer of other rows."""
    found: list[Scored] = []
    with progress("scores", len(rows)) as line:
        for start in range(0, len(rows), BATCH):
            part = [(prompt_of(row), _answers(row)) for row in rows[start : start + BATCH]]
            asked = [_with(prompt, answer) for prompt, answers in part for answer in answers]
            given = iter(scorer.score(asked))
            found += [
                Scored(prompt, tuple(answer.content for answer in answers), tuple(next(given) for _ in answers))
                for prompt, answers in part
            ]
            line.advance(len(part))
    return found


def _answers(row: Row) -> tuple[Message, ...]:
    if isinstance(row, Preference):
        return row.chosen, row.rejected
    return (row.conversation.messages[-1],) if not isinstance(row, Document) else ()


def _with(prompt: Conversation, answer: Message) -> Conversation:
    return replace(prompt, messages=(*prompt.messages, answer))


def _line(item: Scored) -> dict[str, Any]:
    prompt = [{"role": message.role, "content": message.content} for message in item.prompt.messages]
    if len(item.scores) == 1:
        return {"prompt": prompt, "answer": item.answers[0], "score": item.scores[0]}
    (chosen, rejected), (better, worse) = item.answers, item.scores
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "chosen_score": better,
        "rejected_score": worse,
    }


def summarise(scored: Sequence[Scored]) -> dict[str, float]:
    """Mean score; of pairs also the share in which the better answer wins, with its 95 % Wilson interval."""
    numbers = [number for item in scored for number in item.scores]
    summary: dict[str, float] = {"rows": len(scored), "mean": sum(numbers) / len(numbers)}
    pairs = [item.scores for item in scored if len(item.scores) == 2]
    if pairs:
        won = sum(better > worse for better, worse in pairs)
        interval = wilson_interval(won, len(pairs))
        summary |= {
            "pairs": len(pairs),
            "accuracy": won / len(pairs),
            "accuracy_low": interval.low,
            "accuracy_high": interval.high,
            "margin": sum(better - worse for better, worse in pairs) / len(pairs),
        }
    return summary


def show(summary: Mapping[str, float]) -> None:
    """The summary in words."""
    out.print(f"{summary['rows']:.0f} rows, mean score {summary['mean']:.4f}")
    if "accuracy" in summary:
        out.print(
            f"the better answer wins in {100 * summary['accuracy']:.1f} % of {summary['pairs']:.0f} pairs "
            f"(95 % interval {100 * summary['accuracy_low']:.1f}–{100 * summary['accuracy_high']:.1f}), "
            f"mean margin {summary['margin']:.4f}",
            soft_wrap=True,
        )


class RunReward:
    """A reward model as a reward for training (:class:`danlu.tune.online.samples.Reward`).

    Args:
        scorer: the opened reward model.
    """

    def __init__(self, scorer: RewardModel) -> None:
        self.scorer = scorer

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """What the model says of each answer after its prompt."""
        return self.scorer.score([_with(sample.prompt, Message("assistant", sample.answer)) for sample in samples])


Sources: TypeAlias = "Sequence[tuple[str, Reward]]"
"""Label and reward of everything in ``reward_funcs``."""


def reward_sources(config: TrainConfig) -> Sources:
    """Open ``reward_funcs``, and see that ``reward_model`` could be opened, before anything costly is done.

    Raises:
        DanluError: naming the function, its file or line, or the run that is no reward model.
    """
    from transformers import AutoConfig

    from danlu.models.loading import model_folder
    from danlu.tune.online.rewards import open_sources

    if config.rollout.reward_model:
        _, source = _named(config.rollout.reward_model, config)
        base = AutoConfig.from_pretrained(model_folder(source.model))
        value_head(source, int(base.get_text_config().hidden_size))
    return open_sources(config.rollout.reward_funcs)


def training_rewards(config: TrainConfig, sources: Sources) -> Rewards:
    """Everything that says how good answers are in a training on the model's own answers.

    Args:
        config: names the reward model and the weights.
        sources: from :func:`reward_sources`.

    Raises:
        DanluError: when the reward model cannot be opened.
    """
    from danlu.tune.online.rewards import Rewards

    rollout = config.rollout
    further = []
    if rollout.reward_model:
        own, source = _named(rollout.reward_model, config)
        further.append(("model", RunReward(reward_model(open_model(own, source)))))
    return Rewards([*sources, *further], rollout.reward_weights)


def _named(name: str, config: TrainConfig) -> tuple[TrainConfig, TrainedModel]:
    """The reward model of a run, or of an adapter folder that another tool wrote, in the precision of the training."""
    folder = Path(name).expanduser()
    if not is_run(folder) and (folder / "adapter_config.json").is_file():
        base = read_adapter(folder).base or config.model.model_name_or_path
        own, source, _ = settings(None, base, (name,), {})
    else:
        own, source, _ = settings(name, None, (), {})
    return own.model_copy(update={"compute": config.compute}), source
