"""`danlu train nproc=2`: prepare once, start the processes, and say how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from danlu.core.console import note
from danlu.core.errors import RunError
from danlu.core.run import RunDirectory, config_sha256
from danlu.tune.config import TrainConfig
from danlu.tune.parallel.failure import lost_peer
from danlu.tune.parallel.launcher import Launch
from danlu.tune.parallel.meeting import Meeting, host_meeting, join_meeting
from danlu.tune.parallel.start import Start, planned
from danlu.verbs.train import begin, gather, start_of, with_place

LOGS = "logs"


def train_together(config: TrainConfig, folder: Path, command: Sequence[str]) -> None:
    """Train with several processes on this machine, and perhaps on others.

    Raises:
        DanluError: what ended the training; all processes of this machine are gone then.
    """
    config, folder = with_place(config, folder)
    place, options = planned(config), config.parallel
    first = place.machine == 0
    meeting = host_meeting(options.master_port) if first else join_meeting(options.master_addr, options.master_port)
    try:
        start = _prepare(config, folder, command, meeting)
        note(f"starting {place.local_world} processes; what they print is in {folder / LOGS}")
        address = "127.0.0.1" if first else options.master_addr
        failure = Launch(place, start, meeting, address, folder / LOGS).run()
        if failure is not None:
            if place.machines > 1 and lost_peer(failure.text) and (told := meeting.heard_soon("failed")):
                raise RunError(told)  # of another machine
            if not failure.known:
                RunDirectory(folder).events.write("failed", rank=failure.rank, code=failure.code)
            raise failure.error()
    except BaseException as error:
        if place.machines > 1:
            meeting.say_last("failed", f"machine {place.machine} ended: {error}")
        raise
    if place.machines > 1:
        meeting.say(f"done/{place.machine}")
        if first:
            meeting.wait([f"done/{machine}" for machine in range(place.machines)], what="the other machines")


def _prepare(config: TrainConfig, folder: Path, command: Sequence[str], meeting: Meeting) -> Start:
    """The first machine writes the run directory; each tokenises its rows; all wait until all are ready."""
    place = planned(config)
    machines = range(1, place.machines)
    if place.machine:
        gather(config)
        digest = config_sha256(_comparable(config))
        meeting.say(f"rows/{place.machine}", digest)
        text, theirs, *_ = meeting.wait(["start", "digest"], what="the first machine")
        if theirs != digest:
            raise RunError(
                "the machines were started with different options", hint="Start the same command on each of them."
            )
        return Start.read(text)
    begun = begin(config, folder, command)
    start = start_of(begun)
    meeting.wait([f"rows/{machine}" for machine in machines], what="the other machines")
    meeting.say("digest", config_sha256(_comparable(config)))
    meeting.say("start", start.text())
    return start


def _comparable(config: TrainConfig) -> TrainConfig:
    """The options without those that differ between machines on purpose."""
    parallel = config.parallel.model_copy(update={"node_rank": 0, "master_addr": ""})
    return config.model_copy(update={"parallel": parallel})
