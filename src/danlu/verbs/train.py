"""`danlu train`: from a configuration to a run directory."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.core import run as runs
from danlu.core.checkpoints import follow
from danlu.core.config import build, read_yaml
from danlu.core.console import note, warn
from danlu.core.errors import DanluError, RunError
from danlu.core.manifest import Manifest, installed_versions, model_record, now, without_secrets
from danlu.core.ranks import ranks
from danlu.core.run import RunDirectory
from danlu.data.prepare import Prepared, Selection, prepare, tokenizer_digest
from danlu.models.runs import adapter_chain
from danlu.tune.checks import check, check_packages, remarks
from danlu.tune.config import FREE_ON_RESUME, TrainConfig
from danlu.tune.matrix import ONLINE
from danlu.tune.parallel.resume import same_batch
from danlu.tune.parallel.start import Start, needs_launcher, planned
from danlu.verbs.material import (
    Text,
    data_records,
    default_output,
    evaluation_rows,
    generation_stops,
    open_text,
    rules,
    tell,
    training_rows,
)

if TYPE_CHECKING:
    from danlu.tune.online.wiring import Rollouts
    from danlu.tune.session import Session
    from danlu.verbs.rewards import Sources


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path, *, command: Sequence[str] = (), **overrides: Any
) -> Path:
    """Train, and afterwards evaluate and predict where the configuration says so.

    Args:
        config: options, as a :class:`TrainConfig`, a mapping of (flat or grouped) keys, or a YAML file.
        command: the words that started this, for the manifest.
        overrides: further keys.

    Returns:
        The run directory.

    Raises:
        DanluError: of any kind; what was finished before stays on disk.
    """
    options = as_config(config, overrides)
    check(options)
    for remark in remarks(options):
        warn(remark)
    folder = Path(options.output.output_dir) if options.output.output_dir else default_output(options)
    if options.task.do_train:
        if ranks().world > 1:
            folder = _train_with_others(options, folder, command)
        elif needs_launcher(options):
            from danlu.verbs.launch import train_together

            train_together(options, folder, command)
        else:
            _train_alone(options, folder, command)
    if (options.task.do_eval or options.task.do_predict) and planned(options).machine == ranks().rank == 0:
        from danlu.verbs.evaluate import after_training

        after_training(options, folder)
    return folder


def as_config(config: TrainConfig | Mapping[str, Any] | str | Path, overrides: Mapping[str, Any]) -> TrainConfig:
    """Build the options from whatever form they come in."""
    if isinstance(config, TrainConfig):
        if not overrides:
            return config
        config = config.model_dump(exclude_unset=True)
    where = str(config) if isinstance(config, (str, Path)) else "train()"
    values = read_yaml(Path(config)) if isinstance(config, (str, Path)) else dict(config)
    return build(TrainConfig, {**values, **overrides}, where=where)


@dataclass(frozen=True, slots=True)
class Material:
    """Everything a training needs that is not the model."""

    folder: Path
    text: Text
    rows: Prepared
    evaluation: Mapping[str, Prepared]


def gather(config: TrainConfig, *, say: bool = True) -> Material:
    """Find the model's folder, open its tokenizer and template, and tokenise the rows. No weights are read.

    Args:
        config: the run's options.
        say: what became of the rows; not when it has been said.
    """
    from danlu.models.loading import load_tokenizer, model_folder

    if config.compute.preprocessing_num_workers:  # read by the tokenizer when it first works on a batch
        os.environ["RAYON_NUM_THREADS"] = str(config.compute.preprocessing_num_workers)
    model = config.model
    folder = model_folder(
        model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir, hub=model.model_hub
    )
    text = open_text(load_tokenizer(folder), config, generation_stops(folder))
    digest = tokenizer_digest(text.tokenizer)
    place = Path(config.data.tokenized_path) if config.data.tokenized_path else None

    def tokenised(selection: Selection, what: str) -> Prepared:
        prepared = prepare(
            selection,
            text.template,
            rules(config),
            tokenizer_digest=digest,
            stage=config.task.stage,
            folder=place,
            again=config.data.overwrite_cache and say,
        )
        if say:
            tell(prepared, what)
        return prepared

    rows = tokenised(training_rows(config), "training")
    names = config.data.eval_dataset
    groups = (
        {label: (name,) for label, name in zip(_labels(names), names)}
        if config.data.eval_on_each_dataset
        else {"": names}
        if names
        else {}
    )
    evaluation = {
        name: tokenised(evaluation_rows(config, members), f"evaluation {name}".rstrip())
        for name, members in groups.items()
    }
    return Material(folder, text, rows, evaluation)


def _labels(names: Sequence[str]) -> list[str]:
    """Names for metrics: a file's without folder and ending, unless two would be the same."""
    short = [Path(name).stem if Path(name).suffix else name for name in names]
    return [label if short.count(label) == 1 else name for label, name in zip(short, names)]


@dataclass(frozen=True, slots=True)
class Begun:
    """A training whose directory and rows are ready."""

    config: TrainConfig
    run: RunDirectory
    material: Material
    checkpoint: Path | None
    rewards: Sources = ()

    def session(self) -> Session:
        """What trains; it loads the model when it is run."""
        return _session(self.config, self.run, self.material, self.rewards)


def begin(config: TrainConfig, folder: Path, command: Sequence[str]) -> Begun:
    """Make or find the run directory, tokenise the rows, and write down what will be done. One process does this.

    Raises:
        DanluError: when the directory holds another run, or rows, packages or rewards are missing.
    """
    check_packages(config)
    rewards = _reward_sources(config)
    resume = config.output.resume_from_checkpoint
    named = follow(Path(resume).expanduser()) if isinstance(resume, str) else None
    if named and not is_whole(named):
        raise RunError(
            "this is no checkpoint that training can go on from",
            where=str(named),
            hint="A checkpoint holds trainer_state.json and optimizer.pt.",
        )
    overwrite = config.output.overwrite_output_dir
    free: Collection[str] = FREE_ON_RESUME
    if not overwrite and named is None:
        config, free = same_batch(config, RunDirectory(folder), free)
    run = runs.prepare(folder, config, overwrite=overwrite, free=free, insist=named is not None)
    material = gather(config)
    run.write_manifest(_manifest(config, material, command))
    from danlu.tune.session import split_members

    store = material.rows.store
    members, _ = split_members(store, config.data.val_size, config.compute.seed)
    run.write_row_keys(int(key) for key in store.keys[np.unique(store.rows[members])])
    checkpoint = named or latest_checkpoint(run)
    if checkpoint:
        note(f"resuming from {checkpoint}")
    return Begun(config, run, material, checkpoint, rewards)


def _session(config: TrainConfig, run: RunDirectory, material: Material, rewards: Sources) -> Session:
    from danlu.tune.session import Session

    session = Session(config, run, material.folder, material.text.tokenizer, material.rows.store)
    session.evaluation = {name: prepared.store for name, prepared in material.evaluation.items()}
    session.data = [f"{s.name}: {s.rows} rows" for s in material.rows.sources]
    if config.task.predict_with_generate and config.log.eval_strategy != "no":
        from danlu.verbs.evaluate import generation_measure

        session.measure = generation_measure(config, material.text)
    if config.task.stage in ONLINE:
        session.open_rollouts = partial(_rollouts, config, material, rewards)
    return session


def _train_alone(config: TrainConfig, folder: Path, command: Sequence[str]) -> None:
    started = time.monotonic()
    begun = begin(config, folder, command)
    begun.session().run(begun.checkpoint, started=started)


def train_as_rank(start: Start) -> None:
    """The part of one process; rows and directory are ready."""
    from danlu.tune.parallel.together import process_group

    started, config = time.monotonic(), start.config
    with process_group(config):
        run, material = RunDirectory(Path(str(config.output.output_dir))), gather(config, say=False)
        session = _session(config, run, material, _reward_sources(config))
        session.decided = start.checkpointing
        session.run(Path(start.checkpoint) if start.checkpoint else None, started=started)


def _train_with_others(config: TrainConfig, folder: Path, command: Sequence[str]) -> Path:
    """Train as one of the processes that torchrun has started; returns the run directory."""
    from danlu.tune.parallel.meeting import meeting_of_ranks

    meeting, place = meeting_of_ranks(), ranks()
    try:
        if place.rank == 0:
            start = start_of(begin(*with_place(config, folder), command))
            meeting.say("start", start.text())
        if place.local_rank == 0:
            gather(config, say=False)
            meeting.say(f"rows/{place.machine}")
        text, *_ = meeting.wait(["start", *(f"rows/{machine}" for machine in range(place.machines))], what="the rows")
        start = Start.read(text)
        train_as_rank(start)
    except DanluError as error:
        if place.rank == 0:
            meeting.say("failed", str(error))
        error.told = not meeting.is_first(f"error/{error}")
        raise
    return Path(str(start.config.output.output_dir))


def start_of(begun: Begun) -> Start:
    """Say the plan, and decide for all processes what they must agree on."""
    plan = begun.session().plan_all()
    return Start.of(begun.config, begun.checkpoint, plan.checkpointing)


def with_place(config: TrainConfig, folder: Path) -> tuple[TrainConfig, Path]:
    """The options with the run directory and the number of processes that really take part, for run.yaml."""
    place = planned(config)
    parallel = config.parallel.model_copy(update={"nproc": place.local_world, "nnodes": place.machines})
    output = config.output.model_copy(update={"output_dir": str(folder)})
    return config.model_copy(update={"parallel": parallel, "output": output}), folder


def _reward_sources(config: TrainConfig) -> Sources:
    """What scores answers, where the stage needs that; all that can be wrong with it is found now."""
    if config.task.stage not in ONLINE:
        return ()
    from danlu.verbs.rewards import reward_sources

    return reward_sources(config)


def _rollouts(config: TrainConfig, material: Material, rewards: Sources) -> Rollouts:
    """The rows behind the prompts, and what scores the answers to them."""
    from danlu.tune.online.wiring import Rollouts
    from danlu.verbs.rewards import training_rewards

    stage, names = config.task.stage, config.data.eval_dataset
    rows = {str(material.rows.store.folder): training_rows(config).load(stage).rows}
    for label, prepared in material.evaluation.items():
        chosen = names if label == "" else (dict(zip(_labels(names), names))[label],)
        rows[str(prepared.store.folder)] = evaluation_rows(config, chosen).load(stage).rows
    text = material.text
    return Rollouts(rows, training_rewards(config, rewards), text.tokenizer, text.template.stop_ids)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has everything that training needs to go on."""
    states = ("optimizer.pt", "latest")  # of torch, or of DeepSpeed, where each process has its own files
    return (checkpoint / "trainer_state.json").is_file() and any((checkpoint / name).is_file() for name in states)


def latest_checkpoint(run: RunDirectory) -> Path | None:
    """The newest checkpoint that training can go on from."""
    for checkpoint in reversed(run.checkpoints()):
        if is_whole(checkpoint):
            return checkpoint
    if run.checkpoints():
        raise RunError(
            "the checkpoints of this run have no optimizer state (save_only_model), so it cannot be resumed",
            where=str(run.path),
            hint="Start again with overwrite_output_dir=true, or continue from its weights in another output_dir.",
        )
    return None


def _manifest(config: TrainConfig, material: Material, command: Sequence[str]) -> Manifest:
    from danlu.models.chatglm.convert import lasting_folder

    evaluation = [source for prepared in material.evaluation.values() for source in prepared.sources]
    adapters = adapter_chain(config.model.adapter_name_or_path)
    return Manifest(
        created=now(),
        command=without_secrets(command),
        versions=installed_versions(),
        stage=config.task.stage,
        method=config.method.finetuning_type,
        base=model_record(config.model.model_name_or_path, lasting_folder(material.folder)),
        tokenizer=tokenizer_digest(material.text.tokenizer),
        template=material.text.template.digest,
        data=data_records(material.rows.sources),
        eval_data=data_records(evaluation),
        row_keys=runs.ROW_KEYS,
        config_sha256=runs.config_sha256(config),
        parents=tuple(str(follow(Path(name))) for name in config.model.adapter_name_or_path),
        merged=adapters if config.model.create_new_adapter else adapters[:-1],
    )
