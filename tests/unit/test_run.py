"""Run directories: lineage, resuming, refusing what belongs to somebody else."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.core.config import build
from danlu.core.errors import ConfigError, RunError
from danlu.core.events import read_events
from danlu.core.manifest import (
    DataRecord,
    Manifest,
    installed_versions,
    model_record,
    now,
    weights_fingerprint,
    without_secrets,
)
from danlu.core.run import RunDirectory, clear, config_sha256, is_run, open_existing, prepare, resolve_run
from danlu.tune.config import FREE_ON_RESUME, TrainConfig


def config(**values):
    return build(TrainConfig, {"dataset": "a", **values}, where="test")


@pytest.fixture
def run(tmp_path):
    made = prepare(tmp_path / "run", config(), free=FREE_ON_RESUME)
    made.write_manifest(Manifest(created=now(), method="lora", data=(DataRecord(name="a", path="a.json", rows=3),)))
    return made


def test_a_new_directory_holds_its_configuration(tmp_path):
    made = prepare(tmp_path / "deep" / "run", config(learning_rate=1e-4))
    text = (made.path / "run.yaml").read_text()
    assert "learning_rate: 0.0001" in text
    assert "# peak learning rate" in text
    assert made.read_config(TrainConfig) == config(learning_rate=1e-4)
    assert is_run(made.path)
    assert open_existing(made.path) is not None
    assert open_existing(tmp_path) is None


def test_the_manifest_round_trips(run):
    assert run.read_manifest().data[0].rows == 3
    assert json.loads((run.path / "manifest.json").read_text())["method"] == "lora"


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "the manifest is damaged"), ('{"data": [{"name": 1}]}', r"data:0:name")],
)
def test_a_damaged_manifest_is_named(run, text, message):
    (run.path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=message):
        run.read_manifest()


def test_a_manifest_of_a_later_version_is_read(run):
    (run.path / "manifest.json").write_text('{"danlu": "9.0", "colour": "red"}')
    assert run.read_manifest().danlu == "9.0"


def test_the_same_run_is_resumed(run):
    (run.path / "checkpoint-10").mkdir()
    again = prepare(run.path, config(plot_loss=True, save_steps=7, run_name="x"), free=FREE_ON_RESUME)
    assert [path.name for path in again.checkpoints()] == ["checkpoint-10"]
    assert again.read_config(TrainConfig).output.save_steps == 7


def test_other_options_are_named(run):
    run.events.write("train_begin", step=0)
    with pytest.raises(RunError) as caught:
        prepare(run.path, config(learning_rate=1e-3, lora_rank=16, plot_loss=True), free=FREE_ON_RESUME)
    message = str(caught.value)
    assert "lora.lora_rank: 8 → 16" in message
    assert "optimizer.learning_rate: 5e-05 → 0.001" in message
    assert "plot_loss" not in message
    assert "overwrite_output_dir=true" in message


def test_a_checkpoint_named_by_hand_overrules(run):
    made = prepare(run.path, config(learning_rate=1e-3), free=FREE_ON_RESUME, insist=True, overwrite=True)
    assert made.read_config(TrainConfig).optimizer.learning_rate == 1e-3
    assert (run.path / "manifest.json").exists()


@pytest.mark.parametrize("name", ["adapter_config.json", "model.safetensors", "trainer_state.json", "checkpoint-5"])
def test_files_of_another_tool_are_not_overwritten(tmp_path, name):
    (tmp_path / name).mkdir() if name.startswith("checkpoint") else (tmp_path / name).write_text("x")
    with pytest.raises(RunError, match=f"another run's files \\({name}\\)"):
        prepare(tmp_path, config())
    prepare(tmp_path, config(), overwrite=True)
    assert not (tmp_path / name).exists()


def test_other_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    prepare(tmp_path, config())
    prepare(tmp_path, config(seed=1), overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_link_to_a_checkpoint_elsewhere_is_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keep").write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint-1").symlink_to(elsewhere)
    clear(run)
    assert (elsewhere / "keep").exists()
    assert not (run / "checkpoint-1").is_symlink()


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(RunError, match="this is a file"):
        prepare(tmp_path / "x", config())


def test_checkpoints_are_ordered_by_number(run):
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-last"):
        (run.path / name).mkdir()
    (run.path / "checkpoint-5").write_text("a file")
    assert [path.name for path in run.checkpoints()] == ["checkpoint-20", "checkpoint-100"]


def test_a_checkpoint_is_usable_by_itself(run, tmp_path):
    checkpoint = run.path / "checkpoint-7"
    checkpoint.mkdir()
    run.write_row_keys([1, 2, 3])
    run.stamp_checkpoint(checkpoint, 7)
    moved = tmp_path / "moved"
    checkpoint.rename(moved)
    alone = resolve_run(moved)
    assert alone.read_manifest().step == 7
    assert alone.read_manifest().data == run.read_manifest().data
    assert alone.read_config(TrainConfig) == config()
    assert list(alone.row_keys()) == [1, 2, 3]
    run.write_row_keys([9])
    assert list(alone.row_keys()) == [1, 2, 3]


@settings(deadline=None)
@given(st.lists(st.integers(min_value=0, max_value=2**64 - 1)), st.lists(st.integers(0, 2**64 - 1)))
def test_row_keys(tmp_path_factory, keys, others):
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    assert list(run.row_keys()) == []
    assert run.write_row_keys(keys) == "train_rows.u64"
    assert (run.path / "train_rows.u64").stat().st_size == 8 * len(keys)
    assert [int(key) for key in run.row_keys()] == keys
    assert list(run.seen(keys + others)) == [True] * len(keys) + [key in keys for key in others]


def test_cut_off_row_keys_are_noticed(run):
    run.write_row_keys([1, 2])
    with (run.path / "train_rows.u64").open("r+b") as stream:
        stream.truncate(11)
    with pytest.raises(RunError, match="cut off"):
        run.row_keys()


def test_row_keys_are_little_endian(run):
    run.write_row_keys([1])
    assert (run.path / "train_rows.u64").read_bytes() == b"\x01" + bytes(7)
    assert run.row_keys().dtype == np.dtype("<u8")


def test_runs_are_found(run):
    (run.path / "adapter_config.json").write_text("{}")
    assert resolve_run(run.path).path == run.path
    assert resolve_run(run.path / "adapter_config.json").path == run.path


def test_what_is_no_run_is_explained(run, tmp_path):
    with pytest.raises(RunError, match=r"there is no such run\.$"):
        resolve_run(tmp_path / "runn")  # the run beside it has no weights
    with pytest.raises(RunError, match=r"this is no run directory"):
        resolve_run(tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match="adapter_name_or_path instead of run"):
        resolve_run(foreign)
    begun = prepare(tmp_path / "begun", config())
    with pytest.raises(RunError, match="stopped before its first step"):
        resolve_run(begun.path)


def test_runs_that_can_be_named_are_shown(run, tmp_path):
    (run.path / "checkpoint-9").mkdir()
    (run.path / "checkpoint-10").mkdir()
    told = rf"there is no such run\. Runs that stopped, by their last checkpoint, in {tmp_path}: run/checkpoint-10\.$"
    with pytest.raises(RunError, match=told):
        resolve_run(tmp_path / "runn")
    for name in ("good", "better"):
        (shutil.copytree(run.path, tmp_path / name) / "model.safetensors").write_text("")
    prepare(tmp_path / "begun", config())
    told = r"Runs in .*: better, good\. Runs that stopped, by their last checkpoint: run/checkpoint-10\. 1 that stopped"
    with pytest.raises(RunError, match=told):
        resolve_run(tmp_path / "runn")


def test_a_run_without_configuration_says_so(run):
    (run.path / "run.yaml").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        run.read_config(TrainConfig)


def test_secrets_are_written_nowhere(tmp_path):
    secret = config(trainer={"hub_token": "hf_x", "data_seed": 1})
    made = prepare(tmp_path, secret)
    assert "hf_x" not in (tmp_path / "run.yaml").read_text()
    assert made.differences(secret) == []
    assert config_sha256(secret) == config_sha256(config(trainer={"data_seed": 1}))
    assert config_sha256(secret) != config_sha256(config(trainer={"data_seed": 2}))
    given_words = ["--hub_token", "a", "--hub_token=b", "trainer.hub_token=c", "--seed", "1"]
    hidden = ("--hub_token", "…", "--hub_token=…", "trainer.hub_token=…", "--seed", "1")
    assert without_secrets(given_words) == hidden


def test_events_are_kept_in_the_run(run):
    run.events.write("step", loss=1.5)
    assert [event["loss"] for event in read_events(run.path / "events.jsonl", "step")] == [1.5]


def test_fingerprints_follow_the_weights(tmp_path):
    assert weights_fingerprint(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    big = bytes(3 << 20)
    (tmp_path / "model.safetensors").write_bytes(big)
    first = weights_fingerprint(tmp_path)
    assert first == weights_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(big[:-1] + b"\x01")
    assert weights_fingerprint(tmp_path) != first
    (tmp_path / "model.safetensors").write_bytes(big + b"\x00")
    assert weights_fingerprint(tmp_path) != first
    record = model_record("name", tmp_path)
    assert record.config_sha256 is not None
    assert record.weights == weights_fingerprint(tmp_path)
    assert weights_fingerprint(tmp_path / "model.safetensors") is not None


def test_versions_are_those_installed():
    found = installed_versions(["pydantic", "no-such-package"])
    assert set(found) == {"python", "pydantic"}


def test_a_start_that_failed_early_does_not_hold_the_directory(run):
    """A mistyped dataset is corrected in the same command: nothing was trained yet that could be lost."""
    again = prepare(run.path, config(dataset="b"), free=FREE_ON_RESUME)
    assert again.read_config(TrainConfig).data.dataset == ("b",)
    again.events.write("train_begin", step=0)
    with pytest.raises(RunError, match=r"data\.dataset"):
        prepare(run.path, config(dataset="c"), free=FREE_ON_RESUME)


def test_what_danlu_wrote_without_training_is_told_apart(tmp_path):
    """Merged adapters and exports were written by danlu, but are no runs."""
    merged, exported = tmp_path / "merged", tmp_path / "exported"
    for folder, name, text in (
        (merged, "danlu_merge.json", '{"base": "smollm2-135m"}'),
        (exported, "danlu_export.json", "{}"),
    ):
        folder.mkdir()
        (folder / name).write_text(text)
    (merged / "adapter_config.json").write_text("{}")
    (exported / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"added up.*--model smollm2-135m --adapter .*merged.*cannot score"):
        resolve_run(merged)
    with pytest.raises(RunError, match=r"an export, and no run.*--model .*exported instead of --run"):
        resolve_run(exported)
