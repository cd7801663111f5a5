"""The bars that pyarallel is held against, and whether it meets them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Callable, Optional, Tuple

from workloads import SEQUENTIAL, WORKLOADS, Results, Samples, best_of, ours_of, peers_of, readable


@dataclass(frozen=True)
class Verdict:
    measured: str
    met: bool


@dataclass(frozen=True)
class Bar:
    number: str  # in the list of requirements
    workload: str
    what: str
    limit: str
    judge: Callable[[Results], Optional[Verdict]]  # None: was not measured


# Middle, least, most.
Spread = Tuple[float, float, float]


def _paired(one: Samples, other: Samples, combine: Callable[[float, float], float]) -> Spread:
    """Of the medians; and the extremes over repetitions, which were taken in turn and so belong together."""
    pairs = [combine(a, b) for a, b in zip(one, other)]
    return combine(statistics.median(one), statistics.median(other)), min(pairs), max(pairs)


def _shown(spread: Spread, form: str = "") -> str:
    middle, least, most = (format(value, form) if form else readable(value) for value in spread)
    return f"{middle} [{least}..{most}]"


def _ours(results: Results, name: str) -> Optional[Samples]:
    by_variant = results.get(name, {})
    variant = ours_of(by_variant)
    return by_variant[variant] if variant else None


def _best(results: Results, name: str, pattern: str) -> Tuple[str, Optional[Samples]]:
    by_variant = results.get(name, {})
    variant = best_of(WORKLOADS[name], by_variant, peers_of(by_variant, pattern))
    return (variant, by_variant[variant]) if variant else ("", None)


# Gives the name of what we are compared with, and its samples.
Other = Callable[[Results], Tuple[str, Optional[Samples]]]
Combine = Callable[[float, float], float]


def _compared(number: str, name: str, what: str, limit: str, other: Other, combine: Combine,
              says: Callable[[Spread, str], str], met: Callable[[float], bool]) -> Bar:
    """Ours at the workload `name`, combined with the other's; `says` puts it into words."""

    def judge(results: Results) -> Optional[Verdict]:
        ours, (whose, theirs) = _ours(results, name), other(results)
        if ours is None or theirs is None:
            return None
        spread = _paired(ours, theirs, combine)
        return Verdict(says(spread, whose), met(spread[0]))

    return Bar(number, name, what or WORKLOADS[name].title, limit, judge)


def _best_at(name: str, pattern: str) -> Other:
    return lambda results: _best(results, name, pattern)


def _ours_at(name: str) -> Other:
    return lambda results: ("", _ours(results, name))


def ratio(number: str, name: str, limit: float, peers: str = "", named: str = "best peer", what: str = "") -> Bar:
    """Our time in times of the best peer, or of the best of those that the pattern `peers` finds."""
    return _compared(number, name, what, f"at most {limit:g} x {named}", _best_at(name, peers), lambda a, b: a / b,
                     lambda spread, best: f"{_shown(spread, '.2f')} x {best}", lambda value: value <= limit)


def speed(number: str, name: str, limit: float, peers: str, named: str, what: str = "") -> Bar:
    """The same the other way round: our speed in parts of theirs."""
    return _compared(number, name, what, f"at least {limit:g} of the speed of {named}", _best_at(name, peers),
                     lambda a, b: b / a, lambda spread, best: f"{_shown(spread, '.2f')} of {best}",
                     lambda value: value >= limit)


def efficiency(number: str, name: str, limit: float, what: str = "") -> Bar:
    """Half of the sequential loop's time in percent of that of our two workers."""
    return _compared(number, name, what, f"at least {limit:g} % efficiency",
                     lambda results: ("", results.get(name, {}).get(SEQUENTIAL)), lambda a, b: 100 * b / (2 * a),
                     lambda spread, _: f"{_shown(spread, '.1f')} %", lambda value: value >= limit)


def beyond(number: str, name: str, base: str, limit: float, named: str, what: str = "") -> Bar:
    """Our time beyond our time at another workload."""
    unit = WORKLOADS[name].measure()
    return _compared(number, name, what, f"at most {limit:g} {unit} beyond {named}", _ours_at(base),
                     lambda a, b: a - b, lambda spread, _: f"{_shown(spread)} {unit} more",
                     lambda value: value <= limit)


def beyond_peer(number: str, name: str, limit: float, peers: str, named: str, what: str = "") -> Bar:
    unit = WORKLOADS[name].measure()
    return _compared(number, name, what, f"at most {limit:g} {unit} beyond {named}", _best_at(name, peers),
                     lambda a, b: a - b, lambda spread, best: f"{_shown(spread)} {unit} beyond {best}",
                     lambda value: value <= limit)


def times(number: str, name: str, base: str, limit: float, named: str, what: str = "") -> Bar:
    """Our time in times of ours at another workload."""
    return _compared(number, name, what, f"at most {limit:g} x {named}", _ours_at(base), lambda a, b: a / b,
                     lambda spread, _: f"{_shown(spread, '.2f')} x", lambda value: value <= limit)


def _value(number: str, name: str, limit: str, met: Callable[[float], bool], what: str) -> Bar:
    workload = WORKLOADS[name]

    def judge(results: Results) -> Optional[Verdict]:
        ours = _ours(results, name)
        if ours is None:
            return None
        middle = statistics.median(ours)
        return Verdict(f"{_shown((middle, min(ours), max(ours)))} {workload.unit}", met(middle))

    return Bar(number, name, what or WORKLOADS[name].title, limit, judge)


def at_most(number: str, name: str, limit: float, what: str = "") -> Bar:
    return _value(number, name, f"at most {limit:,g} {WORKLOADS[name].unit}", lambda value: value <= limit, what)


def at_least(number: str, name: str, limit: float, what: str = "") -> Bar:
    return _value(number, name, f"at least {limit:,g} {WORKLOADS[name].unit}", lambda value: value >= limit, what)


_STATIC = "TBB.*static|OpenMP.*static"
_PULLED = "rayon|TBB"
_BITS_OF_10M = 10_000_000 / 8 / 1024  # KiB, at a bit an item

BARS = (
    *(
        ratio("1", name, 1.0, _STATIC, "the best of TBB static and OpenMP static")
        for name in ("call_100", "call_1000", "call_10000")
    ),
    ratio("1", "idle_100", 1.0),
    ratio("1", "idle_200us", 1.0),
    ratio("2", "fresh_10M", 1.05, "rayon", "rayon", "10 M trivial items into fresh memory"),
    ratio("2", "reused_10M", 1.1, what="10 M trivial items into memory used before"),
    *(efficiency("3", name, 97) for name in ("grain_62ns", "grain_1us", "grain_10us", "grain_100us")),
    efficiency("3", "shape_linear", 97, "cost grows with the index"),
    efficiency("3", "shape_scattered", 97, "one item in a hundred is large"),
    efficiency("3", "shape_tail", 97, "the last hundredth is half of the work"),
    ratio("4", "blocked_1000_warm", 1.05, "parked", "the bare parked pool"),
    ratio("4", "blocked_1000_cold", 1.05, "parked", "the bare parked pool"),
    ratio("5", "cold_start", 1.1, "std::thread", "std::thread", "a whole program with one small call"),
    beyond("6", "policy_retry", "policy_none", 120, "the plain map"),
    beyond("6", "policy_rate_limit", "policy_none", 160, "the plain map"),
    beyond("6", "policy_callbacks", "policy_none", 300, "the plain map"),
    beyond("6", "policy_timeout_stop", "policy_none", 20, "the plain map"),
    ratio("6", "failing_1M", 1.3, "try|hand", "a try/catch loop by hand"),
    ratio("7", "limiter_1", 1.15, "CAS", "CAS + clock"),
    ratio("7", "limiter_2", 1.0),
    *(at_least("7", f"limiter_rate_{rate}", 98) for rate in (1, 100, 10_000, 1_000_000)),
    speed("8", "process_10M", 0.9, "guided", "the bare baseline"),
    speed("8", "process_100k", 0.9, "guided", "the bare baseline"),
    ratio("8", "process_100k", 1.5, "reap", "two bare children"),
    speed("8", "process_1MiB", 0.9, "slots", "the bare baseline"),
    at_most("8", "process_single_inherited", 200, "single items, inherited: 5 M/s"),
    at_most("8", "process_single_pulled", 2000, "single items, pulled: 0.5 M/s"),
    beyond_peer("8", "process_first_result", 0.3, "reap", "two bare children"),
    beyond_peer("8", "process_crash", 5, "reap|kill", "a bare fork"),
    ratio("9", "pulled_discard_10M", 0.5, _PULLED, "the best of rayon and TBB", "pulled items, results thrown away"),
    ratio("9", "pulled_collect_10M", 0.5, _PULLED, "the best of rayon and TBB", "pulled items, results collected"),
    ratio("9", "stream_1M", 1.0, "TBB", "TBB's pipeline", "stream of trivial items"),
    times("9", "stream_ordered_1M", "stream_1M", 1.3, "the same in any order", "stream of trivial items, in order"),
    at_most("9", "stream_one_by_one_1M", 1000, "stream, items handed over one by one"),
    at_most("9", "memory_streams", 8192, "memory of two streams of 10 M items"),
    at_most("10", "memory_map", round(64 + _BITS_OF_10M), "memory beyond 10 M results: 64 KiB and 1 bit an item"),
    at_most("10", "memory_pulled", round(64 + _BITS_OF_10M), "the same for pulled items"),
    at_most("", "progress", 100, "a call of ProgressBar"),
    ratio("", "checkpoint_100k", 3, "SQLite", "raw SQLite inserts", "100,000 trivial items stored"),
    ratio("", "checkpoint_100k_batch", 3, "SQLite", "raw SQLite inserts", "100,000 items stored, window of 1000"),
    ratio("", "checkpoint_100k_keyed", 3, "SQLite", "raw SQLite inserts", "100,000 items stored, with item_key"),
    ratio("", "checkpoint_1KiB", 3, "SQLite", "raw SQLite inserts", "100,000 results of 1 KiB stored"),
)
