"""Finds the programs of the peers, and runs them in turn."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from workloads import ByVariant, Workload

TIMEOUT = 60.0  # seconds, of one repetition
REPETITIONS = 5
ENOUGH = 3  # repetitions of a workload that has taken longer than this, in seconds:
PATIENCE = 25.0
STARTS = 20  # of a whole program, for one repetition

Command = List[str]
Failures = Dict[Tuple[str, str], str]  # (variant, workload): why


@dataclass
class Peers:
    commands: Dict[Tuple[str, str], Command] = field(default_factory=dict)  # of a variant and a workload
    programs: List[str] = field(default_factory=list)
    broken: Dict[str, str] = field(default_factory=dict)  # programs that cannot tell what they know: why

    def at(self, workload: str) -> Dict[str, Command]:
        return {variant: command for (variant, name), command in self.commands.items() if name == workload}


def find_peers(folders: Sequence[Path]) -> Peers:
    """Of the programs in these folders: what can be run is one, and so is what Python can run."""
    peers = Peers()
    for program in sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        if program.suffix == ".py":
            _add(peers, program, [sys.executable, str(program)])
        elif not program.suffix and program.is_file() and os.access(program, os.X_OK):
            _add(peers, program, [str(program)])
    return peers


def _add(peers: Peers, program: Path, command: Command) -> None:
    try:
        lines = _output(command + ["--list"]).splitlines()
    except MeasuringError as error:
        peers.broken[program.stem] = str(error)
        return
    peers.programs.append(program.stem)
    for line in lines:
        variant, tab, workload = line.partition("\t")
        if tab:
            peers.commands[variant, workload] = command + [variant, workload]


class MeasuringError(Exception):
    """A program failed; says how."""


def _output(command: Command, workers: int = 0) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "WORKERS"}
    if workers:
        environment["WORKERS"] = str(workers)
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise MeasuringError(f"took longer than {TIMEOUT:g} s") from None
    except OSError as error:
        raise MeasuringError(str(error)) from None
    if done.returncode != 0:
        says = done.stderr.strip().splitlines()[-1:] or ["nothing said"]
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise MeasuringError(f"{ended}: {says[0]}")
    return done.stdout


def _number(text: str) -> float:
    try:
        return float(text.split()[-1])
    except (IndexError, ValueError):
        raise MeasuringError(f"printed no number: {text.strip()[:60]!r}") from None


def _start_to_exit(command: Command) -> float:
    """Milliseconds from the start of a program to its exit; it is started without copying this program."""
    nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    begin = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=nowhere)
    status = os.waitpid(pid, 0)[1]
    elapsed = time.perf_counter() - begin
    if status != 0:
        raise MeasuringError(f"wait status {status}")
    return elapsed * 1e3


def measure_once(workload: Workload, command: Command) -> float:
    if workload.name == "cold_start":
        _start_to_exit(command)  # its libraries are read
        return statistics.median(_start_to_exit(command) for _ in range(STARTS))
    return _number(_output(command, workload.workers))


@dataclass
class Measured:
    by_variant: ByVariant = field(default_factory=dict)
    failed: Dict[str, str] = field(default_factory=dict)  # variants: why


def measure(workload: Workload, peers: Peers, repetitions: Optional[int]) -> Measured:
    """All peers that know the workload, in turn: A B C A B C ... Who fails once is left out."""
    commands = peers.at(workload.asked_as or workload.name)
    measured = Measured()
    begin = time.monotonic()
    for repetition in range(min(repetitions or REPETITIONS, workload.repetitions)):
        if not repetitions and repetition >= ENOUGH and time.monotonic() - begin > PATIENCE:
            break
        for variant, command in commands.items():
            if variant in measured.failed:
                continue
            try:
                measured.by_variant.setdefault(variant, []).append(measure_once(workload, command))
            except MeasuringError as error:
                measured.failed[variant] = str(error)
    for variant in measured.failed:
        measured.by_variant.pop(variant, None)
    return measured


# A stretch of work: worker, begin and end in microseconds.
Stretch = Tuple[int, float, float]


def traces(peers: Peers) -> Dict[str, List[Stretch]]:
    """Of each variant that knows the workload `trace`."""
    found: Dict[str, List[Stretch]] = {}
    for variant, command in peers.at("trace").items():
        try:
            found[variant] = [_stretch(line) for line in _output(command).splitlines() if line.count("\t") == 2]
        except (MeasuringError, ValueError) as error:
            print(f"no time line of {variant}: {error}")
    return {variant: stretches for variant, stretches in found.items() if stretches}


def _stretch(line: str) -> Stretch:
    worker, begin, end = line.split("\t")
    return int(worker), float(begin), float(end)


# How quiet the machine is ------------------------------------------------------------------------------


@dataclass(frozen=True)
class CpuTimes:
    """Seconds since the start of the machine, all CPUs together."""

    total: float
    busy: float
    stolen: float
    ours: float  # of this program and those that it ran

    @staticmethod
    def now() -> Optional[CpuTimes]:
        try:
            fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        user, nice, system, idle, iowait, irq, softirq, stolen = (value / ticks for value in fields)
        busy = user + nice + system + irq + softirq
        used = os.times()
        return CpuTimes(busy + idle + iowait + stolen, busy, stolen, sum(used[:4]))


def disturbance(before: Optional[CpuTimes], after: Optional[CpuTimes]) -> Optional[Tuple[float, float]]:
    """Percent of all CPU time that other programs took meanwhile, and that other machines took."""
    if before is None or after is None or after.total <= before.total:
        return None
    total = (after.total - before.total) / 100
    others = (after.busy - before.busy) - (after.ours - before.ours)
    return max(0.0, others / total), (after.stolen - before.stolen) / total
