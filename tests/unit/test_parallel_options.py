"""Options of several processes: what they allow, the ready configurations, ranks, and keeping the rows of a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from danlu.core.config import build
from danlu.core.errors import ConfigError, RunError, UsageError
from danlu.core.ranks import Ranks, ranks
from danlu.core.run import RunDirectory
from danlu.tune.checks import check
from danlu.tune.config import FREE_ON_RESUME, TrainConfig
from danlu.tune.parallel.configs import FOLDER, deepspeed_settings, divided, fsdp_settings, sharding_plan
from danlu.tune.parallel.failure import Failure, failure_of, leave, root_cause
from danlu.tune.parallel.resume import same_batch
from danlu.tune.parallel.start import Start, needs_launcher, planned


def config(**values: object) -> TrainConfig:
    return build(TrainConfig, {"dataset": "a", **values}, where="test")


def test_alone_without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert ranks() == Ranks()
    assert planned(config(nproc=2, nnodes=3, node_rank=1, master_port=9)) == Ranks(0, 6, 0, 2, 1)
    assert not needs_launcher(config())
    assert needs_launcher(config(nproc=2))
    assert needs_launcher(config(fsdp=True))


def test_ranks_are_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": 4, "RANK": 3, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    place = ranks()
    assert place == Ranks(rank=3, world=4, local_rank=1, local_world=2, machine=1)
    assert place.machines == 2
    assert planned(config(nproc=7)) == place


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"node_rank": 1}, "node_rank 1 needs nnodes of 2"),
        ({"nnodes": 2}, "master_port must be given"),
        ({"fsdp": True, "deepspeed": "z3"}, "exclude each other"),
        ({"nproc": 0}, "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**values)


def test_every_ready_configuration_loads() -> None:
    files = {file.name for file in FOLDER.iterdir()}
    assert files == {"fsdp2.yaml", "fsdp2_offload.yaml"} | {
        f"ds_z{stage}{ending}.json" for stage in (2, 3) for ending in ("", "_offload")
    }
    for name, stage, offload in (("z2", 2, False), ("z2_offload", 2, True), ("z3", 3, False), ("z3_offload", 3, True)):
        settings = deepspeed_settings(config(deepspeed=name).parallel)
        assert settings is not None
        zero = settings["zero_optimization"]
        assert zero["stage"] == stage
        assert ("offload_optimizer" in zero) == offload
        assert divided(config(deepspeed=name).parallel) == (stage == 3, True)
    for name, offload in (("fsdp2", False), ("fsdp2_offload", True)):
        plan = sharding_plan(config(fsdp=name).parallel)
        assert plan is not None
        assert (plan.reshard, plan.offload) == (True, offload)
    assert divided(config().parallel) == (False, False)


@pytest.mark.parametrize("name", ["ds_z3", "ds_z3.json", "examples/deepspeed/ds_z3_config.json"])
def test_names_of_other_tools_find_ours(name: str) -> None:
    assert deepspeed_settings(config(deepspeed=name).parallel) == json.loads((FOLDER / "ds_z3.json").read_text())


def test_files_and_mappings(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"zero_optimization": {"stage": 1}}')
    assert divided(config(deepspeed=str(path)).parallel) == (False, True)
    accelerate = tmp_path / "accelerate.yaml"
    accelerate.write_text(
        "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n  fsdp_reshard_after_forward: false\n"
        "  fsdp_offload_params: true\n  fsdp_transformer_layer_cls_to_wrap: Layer\n  fsdp_state_dict_type: X\n"
    )
    plan = sharding_plan(config(fsdp=str(accelerate)).parallel)
    assert plan is not None
    assert (plan.reshard, plan.offload, plan.layers) == (False, True, ("Layer",))
    plan = sharding_plan(config(fsdp="shard_grad_op auto_wrap offload").parallel)
    assert plan is not None
    assert (plan.reshard, plan.offload) == (False, True)
    assert fsdp_settings(config(fsdp=False).parallel) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"deepspeed": "z4"}, "no file 'z4'.*z2"),
        ({"fsdp": "fsdp3"}, "no file 'fsdp3'.*fsdp2"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, "only version 2"),
        ({"fsdp": True, "fsdp_config": {"reshard": True}}, "no setting 'reshard'"),
        ({"fsdp": True, "fsdp_config": {"activation_checkpointing": True}}, "gradient_checkpointing=true"),
        ({"trainer": {"fsdp": "full_shard"}}, "option of its own"),
        (
            {"fsdp": True, "predict_with_generate": True, "eval_strategy": "epoch", "val_size": 0.1},
            "not generated during training",
        ),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check(config(**values))


def run_with(path: Path, **values: object) -> RunDirectory:
    run = RunDirectory(path)
    (path / "checkpoint-5").mkdir(parents=True)
    run.write_config(config(**values))
    return run


def test_the_rows_of_a_step_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    run = run_with(tmp_path / "run", nproc=4, **sizes)
    kept, free = same_batch(config(nproc=2, **sizes), run, FREE_ON_RESUME)
    assert kept.optimizer.gradient_accumulation_steps == 6
    assert "keeps the 24 rows" in capsys.readouterr().err
    assert not run.differences(kept, free)
    kept, free = same_batch(config(nproc=1, per_device_train_batch_size=24), run, FREE_ON_RESUME)
    assert not run.differences(kept, free)
    with pytest.raises(RunError, match="sees 24 rows, and would now see 30"):
        same_batch(config(nproc=5, **sizes), run, FREE_ON_RESUME)
    kept, free = same_batch(config(nproc=4, **{**sizes, "gradient_accumulation_steps": 1}), run, FREE_ON_RESUME)
    assert run.differences(kept, free) == ["optimizer.gradient_accumulation_steps: 3 → 1"]


def test_what_is_decided_reaches_the_workers() -> None:
    start = Start.of(config(nproc=2, output_dir="x", lora_rank=3), Path("x/checkpoint-1"), True)
    again = Start.read(start.text())
    assert again == start
    assert again.config == config(nproc=2, output_dir="x", lora_rank=3)


def test_the_first_cause_is_named(tmp_path: Path) -> None:
    log = tmp_path / "rank-1.log"
    log.write_text("one\n\ntwo\n")
    lost = Failure(0, 1, "Connection reset by peer", True, log)
    own = Failure(2, 2, "a wrong row", True, log)
    killed = Failure(1, -9, "", False, log)
    assert root_cause([lost, own, killed]) is killed
    assert root_cause([lost, own]) is own
    assert root_cause([lost]) is lost
    assert root_cause([]) is None
    text = str(killed.error())
    assert "rank 1 was ended by SIGKILL" in text
    assert text.endswith("  one\n  two.") or text.endswith("  one\n  two")
    assert str(own.error()) == "a wrong row"
    assert own.error().exit_code == 2


def test_what_a_worker_leaves_is_read(tmp_path: Path) -> None:
    file = tmp_path / "0.json"
    leave(str(file), "it broke", known=True)
    assert failure_of(3, 1, file, tmp_path / "log") == Failure(3, 1, "it broke", True, tmp_path / "log")
    assert failure_of(3, 1, tmp_path / "none", tmp_path / "log").text == ""
    assert "(it printed nothing)" not in str(failure_of(3, 1, file, tmp_path / "log").error())
