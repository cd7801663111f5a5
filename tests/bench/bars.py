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


def _title(name: str, what: str) -> str:
    return what or WORKLOADS[name].title


def ratio(number: str, name: str, limit: float, peers: str = "", named: str = "best peer", what: str = "") -> Bar:
    """Our time in times of the best peer, or of the best of those that the pattern `peers` finds."""

    def judge(results: Results) -> Optional[Verdict]:
        ours, (best, theirs) = _ours(results, name), _best(results, name, peers)
        if ours is None or theirs is None:
            return None
        spread = _paired(ours, theirs, lambda a, b: a / b)
        return Verdict(f"{_shown(spread, '.2f')} x {best}", spread[0] <= limit)

    return Bar(number, name, _title(name, what), f"at most {limit:g} x {named}", judge)


def speed(number: str, name: str, limit: float, peers: str, named: str, what: str = "") -> Bar:
    """The same the other way round: our speed in parts of theirs."""

    def judge(results: Results) -> Optional[Verdict]:
        ours, (best, theirs) = _ours(results, name), _best(results, name, peers)
        if ours is None or theirs is None:
            return None
        spread = _paired(theirs, ours, lambda a, b: a / b)
        return Verdict(f"{_shown(spread, '.2f')} of {best}", spread[0] >= limit)

    return Bar(number, name, _title(name, what), f"at least {limit:g} of the speed of {named}", judge)


def efficiency(number: str, name: str, limit: float, what: str = "") -> Bar:
    def judge(results: Results) -> Optional[Verdict]:
        ours, loop = _ours(results, name), results.get(name, {}).get(SEQUENTIAL)
        if ours is None or loop is None:
            return None
        spread = _paired(loop, ours, lambda one, two: 100 * one / (2 * two))
        return Verdict(f"{_shown(spread, '.1f')} %", spread[0] >= limit)

    return Bar(number, name, _title(name, what), f"at least {limit:g} % efficiency", judge)


def beyond(number: str, name: str, base: str, limit: float, named: str, what: str = "") -> Bar:
    """Our time beyond our time at another workload."""
    unit = WORKLOADS[name].measure()

    def judge(results: Results) -> Optional[Verdict]:
        ours, without = _ours(results, name), _ours(results, base)
        if ours is None or without is None:
            return None
        spread = _paired(ours, without, lambda a, b: a - b)
        return Verdict(f"{_shown(spread)} {unit} more", spread[0] <= limit)

    return Bar(number, name, _title(name, what), f"at most {limit:g} {unit} beyond {named}", judge)


def times(number: str, name: str, base: str, limit: float, named: str, what: str = "") -> Bar:
    """Our time in times of ours at another workload."""

    def judge(results: Results) -> Optional[Verdict]:
        ours, without = _ours(results, name), _ours(results, base)
        if ours is None or without is None:
            return None
        spread = _paired(ours, without, lambda a, b: a / b)
        return Verdict(f"{_shown(spread, '.2f')} x", spread[0] <= limit)

    return Bar(number, name, _title(name, what), f"at most {limit:g} x {named}", judge)


def beyond_peer(number: str, name: str, limit: float, peers: str, named: str, what: str = "") -> Bar:
    unit = WORKLOADS[name].measure()

    def judge(results: Results) -> Optional[Verdict]:
        ours, (best, theirs) = _ours(results, name), _best(results, name, peers)
        if ours is None or theirs is None:
            return None
        spread = _paired(ours, theirs, lambda a, b: a - b)
        return Verdict(f"{_shown(spread)} {unit} beyond {best}", spread[0] <= limit)

    return Bar(number, name, _title(name, what), f"at most {limit:g} {unit} beyond {named}", judge)


def _value(number: str, name: str, limit: str, met: Callable[[float], bool], what: str) -> Bar:
    workload = WORKLOADS[name]

    def judge(results: Results) -> Optional[Verdict]:
        ours = _ours(results, name)
        if ours is None:
            return None
        middle = statistics.median(ours)
        return Verdict(f"{_shown((middle, min(ours), max(ours)))} {workload.unit}", met(middle))

    return Bar(number, name, _title(name, what), limit, judge)


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
)
