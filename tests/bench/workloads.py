"""What is measured, and in which tables it is shown."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

# The repetitions of one peer at one workload; of all peers at one workload; of everything.
Samples = List[float]
ByVariant = Dict[str, Samples]
Results = Mapping[str, ByVariant]

SEQUENTIAL = "sequential loop"

# What nobody would use as it is: shown beside the peers, and never the best of them.
YARDSTICKS = re.compile(r"sequential|parked|empty|clock alone|reap|a grab")

# (what the programs print, what the tables show): factor
UNITS = {
    ("ns", "ns"): 1.0,
    ("ns", "us"): 1e-3,
    ("ms", "ms"): 1.0,
    ("%", "%"): 1.0,
    ("KiB", "KiB"): 1.0,
}


@dataclass(frozen=True)
class Workload:
    name: str
    title: str  # the head of its column
    unit: str
    shown: str = ""  # the unit in the tables, where it is another one
    per: str = ""
    more_is_better: bool = False
    efficiency: bool = False  # told of two workers, against the sequential loop
    repetitions: int = 1000  # at most
    asked_as: str = ""  # the name that the programs know it by, where it is another one
    workers: int = 0  # other than what the programs choose

    def scale(self) -> float:
        return UNITS[self.unit, self.shown or self.unit]

    def measure(self) -> str:
        shown = self.shown or self.unit
        return f"{shown} per {self.per}" if self.per else shown


@dataclass(frozen=True)
class Section:
    """A table of the page, between the markers of its name."""

    name: str
    title: str
    workloads: Tuple[Workload, ...]
    wide: bool = True  # a row for each peer and a column for each workload; else a row for each pair of them


def readable(number: float) -> str:
    """Three digits that mean something, and no exponent."""
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    for limit, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(number) >= limit:
            return f"{number:.{digits}f}"
    return f"{number:.3f}"


def is_ours(variant: str) -> bool:
    return variant.startswith("pyarallel")


def ours_of(by_variant: ByVariant) -> Optional[str]:
    """The variant of pyarallel that is compared: the plain one, where there are several."""
    names = [name for name in by_variant if is_ours(name)]
    return "pyarallel" if "pyarallel" in names else names[0] if names else None


def peers_of(by_variant: ByVariant, pattern: str = "") -> List[str]:
    """Those that may be the best peer: the ones that a bar names, else all but the yardsticks."""
    others = [name for name in by_variant if not is_ours(name)]
    if pattern:
        return [name for name in others if re.search(pattern, name)]
    return [name for name in others if not YARDSTICKS.search(name)]


def best_of(workload: Workload, by_variant: ByVariant, names: Sequence[str]) -> Optional[str]:
    better = max if workload.more_is_better else min
    return better(names, key=lambda name: statistics.median(by_variant[name])) if names else None


SECTIONS = (
    Section(
        "calls",
        "Small calls",
        (
            Workload("call_100", "100 trivial items", "ns", "us", "call"),
            Workload("call_1000", "1000 trivial items", "ns", "us", "call"),
            Workload("call_10000", "10,000 trivial items", "ns", "us", "call"),
            Workload("idle_100", "100 trivial items after 3 ms of idleness", "ns", "us", "call"),
            Workload("idle_200us", "200 items of 1 us after 3 ms of idleness", "ns", "us", "call"),
        ),
    ),
    Section(
        "arrays",
        "Ten million trivial items",
        (
            Workload("fresh_10M", "into fresh memory", "ns", per="item"),
            Workload("reused_10M", "into memory used before", "ns", per="item"),
        ),
    ),
    Section(
        "grain",
        "Items of one size",
        (
            Workload("grain_62ns", "1 M items of 62 ns", "ns", per="item", efficiency=True),
            Workload("grain_1us", "100,000 items of 1 us", "ns", per="item", efficiency=True),
            Workload("grain_10us", "10,000 items of 10 us", "ns", per="item", efficiency=True),
            Workload("grain_100us", "1000 items of 100 us", "ns", per="item", efficiency=True),
        ),
    ),
    Section(
        "shapes",
        "Items of different sizes",
        (
            Workload("shape_linear", "growing with the index", "ms", efficiency=True),
            Workload("shape_scattered", "one in a hundred is large", "ms", efficiency=True),
            Workload("shape_tail", "the last hundredth is half of it", "ms", efficiency=True),
        ),
    ),
    Section(
        "workers",
        "10,000 items of 10 us",
        tuple(
            Workload(f"workers_{n}", f"{n} worker{'s' * (n > 1)}", "ns", "us", "item", asked_as="grain_10us",
                     workers=n, repetitions=3)
            for n in (1, 2, 4)
        ),
    ),
    Section(
        "blocked",
        "Items that wait",
        (
            Workload("blocked_100_warm", "1000 x 1 ms, 100 workers, warm", "ms"),
            Workload("blocked_100_cold", "1000 x 1 ms, 100 workers, first call", "ms"),
            Workload("blocked_1000_warm", "10,000 x 10 ms, 1000 workers, warm", "ms"),
            Workload("blocked_1000_cold", "10,000 x 10 ms, 1000 workers, first call", "ms"),
        ),
    ),
    Section(
        "cold_start",
        "A whole program",
        (Workload("cold_start", "start, 200 items of 1 us, exit", "ms"),),
    ),
    Section(
        "pulled",
        "Ten million trivial items from a generator",
        (
            Workload("pulled_discard_10M", "results thrown away", "ns", per="item"),
            Workload("pulled_collect_10M", "results collected", "ns", per="item"),
        ),
    ),
    Section(
        "streams",
        "Streams",
        (
            Workload("stream_1M", "1 M trivial items", "ns", per="item"),
            Workload("stream_ordered_1M", "1 M trivial items, in order", "ns", per="item"),
            Workload("stream_1us_100k", "100,000 items of 1 us", "ns", per="item"),
            Workload("stream_one_by_one_1M", "1 M trivial items, handed over one by one", "ns", per="item"),
        ),
    ),
    Section(
        "processes",
        "Worker processes",
        (
            Workload("process_10M", "10 M trivial items", "ms"),
            Workload("process_100k", "100,000 trivial items", "ms"),
            Workload("process_1MiB", "200 results of 1 MiB", "ms"),
            Workload("process_single_inherited", "100,000 single items, inherited", "ns", per="item"),
            Workload("process_single_pulled", "100,000 single items, pulled", "ns", per="item"),
            Workload("process_first_result", "first result", "ms"),
            Workload("process_crash", "a crash and the next worker", "ms"),
        ),
        wide=False,
    ),
    Section(
        "policies",
        "Policies",
        (
            Workload("policy_none", "1 M trivial items, no policy", "ns", per="item"),
            Workload("policy_retry", "with Retry, nothing fails", "ns", per="item"),
            Workload("policy_rate_limit", "with a RateLimit far above need", "ns", per="item"),
            Workload("policy_callbacks", "with on_result and on_progress", "ns", per="item"),
            Workload("policy_timeout_stop", "with timeout and stop", "ns", per="item"),
            Workload("failing_1M", "1 M items that throw", "ns", per="item"),
        ),
        wide=False,
    ),
    Section(
        "checkpoint",
        "Checkpoints",
        (
            Workload("checkpoint_100k", "100,000 trivial items stored", "ms"),
            Workload("checkpoint_100k_batch", "the same, with a window of 1000", "ms"),
            Workload("checkpoint_100k_keyed", "the same, with item_key", "ms"),
            Workload("checkpoint_1KiB", "100,000 results of 1 KiB stored, with a window of 1000", "ms"),
            Workload("checkpoint_resumed", "100,000 results found", "ms"),
            Workload("checkpoint_resumed_keyed", "100,000 results found, with item_key", "ms"),
        ),
        wide=False,
    ),
    Section(
        "limiter",
        "Limiter",
        (
            Workload("limiter_1", "try_acquire by one thread", "ns", per="call"),
            Workload("limiter_2", "try_acquire by two threads", "ns", per="call"),
            *(
                Workload(f"limiter_rate_{rate}", f"{rate:,} per second: share of it reached", "%",
                         more_is_better=True, repetitions=2)
                for rate in (1, 100, 10_000, 1_000_000)
            ),
        ),
        wide=False,
    ),
    Section(
        "memory",
        "Memory and progress",
        (
            Workload("memory_map", "10 M results collected, beyond the results themselves", "KiB", repetitions=2),
            Workload("memory_pulled", "10 M pulled items, results collected, beyond the results", "KiB", repetitions=2),
            Workload("memory_streams", "two streams of 10 M items", "KiB", repetitions=2),
            Workload("progress", "a call of ProgressBar", "ns"),
        ),
        wide=False,
    ),
)

WORKLOADS = {workload.name: workload for section in SECTIONS for workload in section.workloads}
