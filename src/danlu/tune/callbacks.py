"""What a training tells while it runs: the terminal, the log files, and when it must stop."""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from danlu.core.console import ProgressLine, note, warn
from danlu.core.errors import RunError
from danlu.core.events import EventLog
from danlu.core.ranks import ranks
from danlu.core.run import RunDirectory
from danlu.tune.artefacts import append_log, log_values
from danlu.tune.methods import Tuned, call
from danlu.tune.options.running import FileStyle


class Recorder(TrainerCallback):
    """Writes every log event to trainer_log.jsonl and events.jsonl, and moves the progress bar.

    Args:
        folder: the run directory.
        style: whose keys trainer_log.jsonl has.
        tokens_per_step: tokens of one optimizer step on average, for the speed shown; None where it is not known.
    """

    def __init__(self, folder: Path, style: FileStyle, tokens_per_step: float | None) -> None:
        self.folder, self.style, self.tokens_per_step = folder, style, tokens_per_step
        self.events = EventLog(folder / "events.jsonl")
        self.line: ProgressLine | None = None
        self.loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the bar where the run stands, and drop log lines of steps that will be made again."""
        self.started, self.first_step = time.monotonic(), state.global_step
        if not state.is_world_process_zero:
            return
        _keep_until(self.folder / "trainer_log.jsonl", state.global_step, "current_steps")
        self.line = ProgressLine("training", state.max_steps)
        self.line.done = state.global_step
        self.line.__enter__()
        self.events.write("train_begin", step=state.global_step, steps=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step further."""
        if self.line:
            seconds = max(time.monotonic() - self.started, 1e-9)
            made = state.global_step - self.first_step
            speed = "" if self.tokens_per_step is None else f"{made * self.tokens_per_step / seconds:.0f} tokens/s"
            self.line.advance(state.global_step - self.line.done, f"{self.loss}{speed}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Write one event."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            told = [name for name in ("loss", "accuracy", "reward", "kl") if name in logs]
            self.loss = "".join(f"{name} {logs[name]:.4f}  " for name in told)
        made = state.global_step - getattr(self, "first_step", 0)
        elapsed = time.monotonic() - getattr(self, "started", time.monotonic())
        named = {"epoch": round(state.epoch or 0.0, 4), **logs}
        values = log_values(named, step=state.global_step, total_steps=state.max_steps, elapsed=elapsed, done=made)
        append_log(self.folder, values, self.style)
        self.events.write("log", step=state.global_step, **{key: _plain(value) for key, value in logs.items()})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the checkpoint."""
        if state.is_world_process_zero:
            self.events.write("checkpoint", step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.close()
        if state.is_world_process_zero:
            self.events.write("train_end", step=state.global_step)

    def close(self) -> None:
        """Take the bar off the terminal, also after an error."""
        if self.line:
            self.line.__exit__()
            self.line = None


class StopOnRequest(TrainerCallback):
    """Ctrl-C once, or the end of a limit of time: finish the step, save, say how to go on. Ctrl-C twice: stop at once.

    Attributes:
        asked: whether this process was asked to stop.
        agreed: whether all processes have heard of it, which they do together at the beginning of a step.
        reason: who asked, for the message.
    """

    clock = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.asked = self.agreed = self.interrupted = False
        self.reason = "as you asked"
        self.alone = ranks().world == 1
        self.minutes, self.deadline = 0.0, math.inf

    def after(self, minutes: float | None, started: float) -> None:
        """Stop when so many minutes are over since ``started`` (seconds of ``clock``); None: never."""
        if minutes is not None:
            self.minutes, self.deadline = minutes, started + 60 * minutes

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen for SIGINT and SIGTERM; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.asked = self.interrupted = True
        note("stopping after this step and saving; press Ctrl-C again to stop without saving")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop if that was asked, or if the time is over."""
        if not self.asked and self.clock() >= self.deadline:
            self.asked, self.reason = True, f"after max_minutes={self.minutes:g}"
            note("the time is over: saving and stopping")
        self.agreed |= self.asked and self.alone
        if self.agreed and state.global_step < state.max_steps:
            args.save_only_model = False  # without the optimizer there would be no going on
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An epoch that was cut short is not measured, logged or saved as if it were whole."""
        if self.agreed and not float(state.epoch or 0.0).is_integer():
            control.should_log = control.should_evaluate = control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop listening."""
        self.release()

    def release(self) -> None:
        """Give the signals back, also after an error."""
        for number, handler in getattr(self, "before", {}).items():
            signal.signal(number, handler)
        self.before = {}


class StopOnNonsense(TrainerCallback):
    """A loss that is not a number ends the run: what follows would be lost work. One that explodes is warned of.

    Args:
        compare: whether losses of different steps compare; not where each is of other answers of the model.
    """

    def __init__(self, compare: bool = True) -> None:
        self.compare, self.told = compare, False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Check every logged loss.

        Raises:
            RunError: naming the step and the last good checkpoint.
        """
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        folder = Path(args.output_dir)
        stop_if_nonsense(loss, state.global_step, folder)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if self.compare and not self.told and exploded(losses) and state.is_world_process_zero:
            self.told = True
            warn(
                f"the loss went from {losses[0]:.4g} to {loss:.4g} by step {state.global_step} and stays there: "
                f"learning_rate={args.learning_rate:g} is probably too high"
            )
            RunDirectory(folder).events.write("loss_exploded", step=state.global_step, loss=loss, first=losses[0])


TIMES, MORE, LINES = 3.0, 5.0, 3
"""A loss has exploded when the last LINES logged ones are all TIMES the first one and MORE above it (in nats)."""


def exploded(losses: Sequence[float]) -> bool:
    """Whether the last losses are further above the first one than batches differ from each other."""
    if len(losses) <= LINES:
        return False
    return min(losses[-LINES:]) > max(TIMES * losses[0], losses[0] + MORE)


def last_good(folder: Path, before: int) -> str:
    """Where a run that went wrong can be taken up again, in a sentence.

    Args:
        folder: the run directory.
        before: a step from which on weights may be spoilt; checkpoints of earlier ones are not.
    """
    saved = [path for path in RunDirectory(folder).checkpoints() if int(path.name.rpartition("-")[2]) < before]
    if not saved:
        return "No checkpoint was written before that: start again with overwrite_output_dir=true."
    return f"Go on from the last checkpoint before that with resume_from_checkpoint={saved[-1]}."


def stop_if_nonsense(loss: float, step: int, folder: Path) -> None:
    """Refuse a loss that is not a number.

    Args:
        loss: of the steps since the last log line.
        step: optimizer steps made.
        folder: the run directory.

    Raises:
        RunError: naming the step and the last good checkpoint.
    """
    if math.isfinite(loss):
        return
    raise RunError(
        f"the loss became {loss} at step {step}",
        where=str(folder),
        hint=f"Lower learning_rate, add warmup_ratio, or use bf16 where fp16 was used. {last_good(folder, step)}",
    )


def name_in_tensorboard(callbacks: Iterable[Any], folder: Path, name: str) -> None:
    """Let tensorboard's files go to ``runs/<name>``, which it shows as the run's name, also when it goes on.

    By themselves they go to a folder named for the time and the machine. ``TENSORBOARD_LOGGING_DIR`` still wins.
    """
    for callback in callbacks:
        if hasattr(callback, "tb_writer") and callback.logging_dir is None:
            callback.logging_dir = str(folder / "runs" / (re.sub(r"[^\w.+-]+", "-", name).strip(".-") or "run"))


def _plain(value: Any) -> Any:
    return float(value) if hasattr(value, "__float__") and not isinstance(value, (int, bool)) else value


def _keep_until(path: Path, step: int, key: str) -> None:
    """Cut a log back to the step a run is resumed from; a new run begins with an empty one."""
    import json

    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        closing = "loss" not in entry and "eval_loss" not in entry  # written again when the run ends again
        if step and entry.get(key, 0) <= step and not closing:
            kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")


class MethodHooks(TrainerCallback):
    """Calls what a method wants to do at the beginning and after each step; see :mod:`danlu.tune.methods`."""

    def __init__(self, method: Any, tuned: Tuned) -> None:
        self.method, self.tuned = method, tuned
        self.checked = tuned.adapter is None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The number of steps is known now."""
        call(self.method, "begin", self.tuned, state.max_steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say once which adapters the model's code passes over: they would be saved as they began."""
        if self.checked or args.deepspeed or args.fsdp:
            return
        self.checked = True
        weights = self.tuned.adapter.named_parameters()
        unused = [name for name, weight in weights if weight.requires_grad and weight.grad is None]
        if unused:
            warn(
                f"{len(unused)} trained weights got no gradient in the first step, for instance {unused[0]}: "
                "the model's code may read its own weights past the adapter"
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The weights have moved, the gradients are still there."""
        call(self.method, "after_step", self.tuned, state.global_step + 1)
