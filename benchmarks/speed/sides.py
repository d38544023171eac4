"""The two tools as commands: the same options for both, in each one's own words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speed.measure import Child, run_child

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / "peers"
PINS = PEERS / "llamafactory.txt"

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc keeps large freed blocks; danlu asks for the same from inside."""

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"finetuning_type": "lora", "lora_target": "all", "lora_rank": 8},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 2},
    "full": {"finetuning_type": "full"},
}


@dataclass(frozen=True, slots=True)
class Contender:
    """One column of the table: a tool at some settings.

    Attributes:
        name: of the column.
        peer: whether it runs in the peer's environment.
        training: further options of a training, and ``tokenising`` of a tokenising.
        environment: further variables.
    """

    name: str
    peer: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    tokenising: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


DANLU, PEER, PEER_BEST = "danlu", "LLaMA-Factory", "LLaMA-Factory at its best"


def contenders(cores: int) -> tuple[Contender, Contender, Contender]:
    """The columns: danlu as it comes, the peer as it comes, the peer with what makes it faster on a CPU."""
    return (
        Contender(DANLU),
        Contender(PEER, peer=True),
        Contender(
            PEER_BEST,
            peer=True,
            training={"disable_gradient_checkpointing": True, "flash_attn": "sdpa"},
            tokenising={"preprocessing_num_workers": cores},
            environment=MALLOC,
        ),
    )


@dataclass(frozen=True, slots=True)
class Bench:
    """What every run of one benchmark shares.

    Attributes:
        work: folder for everything that is written.
        peer_python: the peer's interpreter.
        cores: threads that every process may use.
        model: folder of the model, "" until it is known.
        template: the peer's template, or several with ``|`` between them of which the first known one is used.
        cutoff: longest sequence, ``batch`` sequences in a forward pass, ``accumulation`` passes in a step.
    """

    work: Path
    peer_python: Path
    cores: int
    model: str = ""
    template: str = "smollm2|chatml"
    cutoff: int = 512
    batch: int = 4
    accumulation: int = 2

    @property
    def sequences(self) -> int:
        """Sequences of one optimizer step."""
        return self.batch * self.accumulation

    def knowing(self, **values: Any) -> Bench:
        """The same with something added."""
        return replace(self, **values)

    def options(self) -> dict[str, Any]:
        """Options that both tools call the same."""
        return {
            "model_name_or_path": self.model,
            "cutoff_len": self.cutoff,
            "per_device_train_batch_size": self.batch,
            "gradient_accumulation_steps": self.accumulation,
            "bf16": True,
            "learning_rate": 5e-5,
            "seed": 42,
            "logging_steps": 1,
            "save_strategy": "no",
        }

    def danlu_options(self, rows: Path) -> dict[str, Any]:
        """For danlu."""
        return {**self.options(), "dataset": str(rows)}

    def peer_options(self, rows: Path) -> dict[str, Any]:
        """For the peer; its rows are in danlu's order of the first epoch, and it keeps that order."""
        return {
            **self.options(),
            "stage": "sft",
            "do_train": True,
            "dataset": rows.stem,
            "dataset_dir": str(rows.parent),
            "template": self.template,
            "disable_shuffling": True,
            "report_to": "none",
            "output_dir": str(self.work / "unused"),
        }

    def environment(self, *, peer: bool, cache: Path) -> dict[str, str]:
        """All variables of a process: every core for both sides, no network, caches of the benchmark's own."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "VIRTUAL_ENV", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM")
            and not name.startswith(("MALLOC_", "KMP_", "HF_", "DANLU_"))
        }
        kept |= {"OMP_NUM_THREADS": str(self.cores), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        if peer:
            return kept | {"HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets")}
        import danlu

        source = Path(danlu.__file__).resolve().parents[1]
        return kept | {"PYTHONPATH": str(source), "DANLU_CACHE": str(cache)}

    def danlu_task(self, name: str, task: dict[str, Any], cache: Path | None = None) -> tuple[dict[str, Any], Child]:
        """Run ``danlu_side.py``; without a cache of its own it uses the user's (to find the model)."""
        environment = self.environment(peer=False, cache=cache or self.work)
        if cache is None:
            del environment["DANLU_CACHE"]
            environment |= {k: v for k, v in os.environ.items() if k == "DANLU_CACHE"}
        return self._task([sys.executable, str(HERE / "danlu_side.py")], name, task, environment)

    def peer_task(
        self, name: str, task: dict[str, Any], cache: Path, extra: Mapping[str, str] | None = None
    ) -> tuple[dict[str, Any], Child]:
        """Run ``peers/llamafactory_side.py``."""
        environment = self.environment(peer=True, cache=cache) | dict(extra or {})
        return self._task([str(self.peer_python), str(PEERS / "llamafactory_side.py")], name, task, environment)

    def _task(
        self, command: list[str], name: str, task: dict[str, Any], environment: dict[str, str]
    ) -> tuple[dict[str, Any], Child]:
        folder = self.work / name
        folder.mkdir(parents=True, exist_ok=True)
        question, answer = folder / "task.json", folder / "answer.json"
        question.write_text(json.dumps(task, ensure_ascii=False), encoding="utf-8")
        child = run_child([*command, str(question), str(answer)], environment, folder / "log.txt")
        return json.loads(answer.read_text(encoding="utf-8")), child


def words(options: Mapping[str, Any]) -> list[str]:
    """Options as ``key=value`` words of danlu's command line."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in options.items()]


def peer_environment(folder: Path) -> Path:
    """The peer's interpreter; its virtual environment is made first when it is not there.

    torch is installed with what it needs, everything else exactly as pinned and without asking for more: the
    peer's own list includes a web page, video and audio that a text training does not touch.

    Raises:
        subprocess.CalledProcessError: when pip fails.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    installed = subprocess.run(
        [str(python), "-c", "import importlib.metadata as m; m.version('llamafactory')"],
        capture_output=True,
        check=False,
    )
    if installed.returncode:
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--constraint", str(PINS), "torch"], check=True)
        subprocess.run([*pip, "--no-deps", "--requirement", str(PINS)], check=True)
    return python


def peer_versions(python: Path) -> dict[str, str]:
    """Versions of what the peer runs on."""
    names = ("llamafactory", "torch", "transformers", "peft", "accelerate", "datasets")
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    answer = subprocess.run([str(python), "-c", code], capture_output=True, check=True, text=True)
    versions: dict[str, str] = json.loads(answer.stdout)
    return versions
