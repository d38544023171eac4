"""The table of TrainingArguments against the installed transformers: it must not drift."""

import dataclasses
import shlex

import pytest

from danlu.cli.compat import resolve_train
from danlu.cli.compat.tables import table
from danlu.cli.compat.train import train_vocabulary
from danlu.tune.config import TrainConfig
from danlu.tune.options.running import SCHEDULERS

pytestmark = pytest.mark.model

transformers = pytest.importorskip("transformers")


def fields(arguments):
    return {field.name: field for field in dataclasses.fields(arguments) if field.init}


def test_every_name_that_is_handed_on_is_a_real_field():
    real = fields(transformers.TrainingArguments)
    assert set(table("transformers").passed) <= set(real)


def test_every_field_is_known():
    vocabulary = train_vocabulary()
    for arguments in (transformers.TrainingArguments, transformers.Seq2SeqTrainingArguments):
        unknown = set(fields(arguments)) - set(vocabulary.names)
        assert not unknown


def test_kinds_of_plain_fields_agree():
    wanted = {"bool": "bool", "int": "integer", "float": "number", "str": "text"}
    for name, kind in table("transformers").passed.items():
        declared = fields(transformers.TrainingArguments)[name].type
        text = declared if isinstance(declared, str) else getattr(declared, "__name__", str(declared))
        plain = text.removesuffix(" | None")
        if plain in wanted:
            assert kind == wanted[plain], name


def test_schedules_are_those_of_transformers():
    assert {member.value for member in transformers.SchedulerType} == set(SCHEDULERS)


def test_values_from_a_command_line_are_accepted():
    words = shlex.split(
        "--do_train --dataset a --adam_beta1 0.8 --tf32 false --optim_args a=1 --data_seed 3 "
        "--log_level info --accelerator_config '{\"split_batches\": false}' "
        "--include_tokens_per_second --no_cuda "
        "--gradient_checkpointing_kwargs '{\"use_reentrant\": false}' "
        "--dataloader_pin_memory no"
    )
    passed = resolve_train(words).config.trainer
    made = transformers.TrainingArguments(output_dir="unused", **passed)
    assert (made.adam_beta1, made.data_seed, made.use_cpu) == (0.8, 3, True)
    assert made.dataloader_pin_memory is False
    assert made.include_num_input_tokens_seen == "all"


def test_our_own_fields_have_the_types_of_transformers():
    real = fields(transformers.TrainingArguments)
    config = TrainConfig()
    shared = {
        key: value
        for group in (config.optimizer, config.log, config.compute)
        for key, value in group.model_dump().items()
        if key in real
    }
    shared["report_to"] = list(shared["report_to"]) or "none"
    made = transformers.TrainingArguments(output_dir="unused", use_cpu=True, **shared)
    assert made.learning_rate == config.optimizer.learning_rate
    assert len(shared) > 25
