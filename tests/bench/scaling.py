#!/usr/bin/env python3
"""Simulates how items are shared out on more cores than there are here: prints the tables of docs/design/scaling.md.

Workers claim by the rules of detail/run/claims.hpp, and come by those of detail/executor/thread_pool.hpp. What they
share is a queue each: the cache line of the counter, and the pool's mutex.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterable, List, Sequence, Tuple

# All times are nanoseconds.
US = 1e3
MS = 1e6

# To hand over a cache line, by number of workers: measured for 2; for more, see the page.
HANDOVER = {2: 40.0, 16: 50.0, 64: 115.0, 256: 200.0}


@dataclass(frozen=True)
class Machine:
    handover: float
    touches: int = 2  # handovers of the counter's line per claim: a look whether any are left, and the add
    clock: float = 20.0  # a look at the clock
    own_line: float = 10.0  # an atomic operation on a line that nobody else wants
    wake: float = 4 * US  # to whoever wakes a thread
    arrival: float = 50 * US  # from then until that one runs
    mutex_lines: int = 3  # handovers while one passes through the pool's mutex
    wakes_in_mutex: bool = False


@dataclass(frozen=True)
class Rules:
    """The constants of Pace and Taker."""

    claim: float = 50 * US
    least: float = 2 * US
    block: float = 4 * US
    too_long: float = 100 * US
    growth: int = 16
    tray: int = 0  # items at most, 0: by Pace
    tray_quick: float = 20 * US
    wait_counts: bool = False  # the wait for the counter is taken for work
    claim_per_wait: float = 0.0  # claims are at least so many times as long as one waited for them


@dataclass(frozen=True)
class Work:
    """Items that take `item`, but the last `tail` of them `tail_item`; or `item` on average, growing with the index."""

    name: str
    size: int
    item: float
    tail: int = 0
    tail_item: float = 0.0
    linear: bool = False

    def until(self, index: int) -> float:
        if self.linear:
            return self.item * index * index / self.size
        in_tail = max(0, index - (self.size - self.tail))
        return (index - in_tail) * self.item + in_tail * self.tail_item

    def even(self, first: int, last: int) -> bool:
        return not self.linear and (last <= self.size - self.tail or first >= self.size - self.tail)


class Queue:
    """What one at a time can have, in the order of asking."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def use(self, now: float, time: float) -> float:
        self.free_at = max(now, self.free_at) + time
        return self.free_at


@dataclass
class Worker:
    chunk: int = 1
    per_item: float = 0.0
    mark: float = -1.0  # the last look at the clock
    filled: float = -math.inf
    waited: float = 0.0  # for the counter, the last time
    claim: Tuple[int, int] = (0, 0)


class Simulation:
    def __init__(self, work: Work, workers: int, machine: Machine, rules: Rules = Rules()) -> None:
        self.work, self.workers, self.machine, self.rules = work, workers, machine, rules
        self.line, self.pool, self.returned = Queue(), Queue(), Queue()
        self.next = 0
        self.given_back: List[Tuple[int, int]] = []
        self.wanted, self.on_their_way, self.left = workers - 1, 0, 0
        self.lost = {"claims": 0.0, "clock": 0.0}
        self.arrivals: List[float] = []
        self.events: List[Tuple[float, int, str, Worker]] = []
        self.order = itertools.count()

    def run(self) -> Dict[str, float]:
        """Shares of all workers' time; none if one worker would have been faster."""
        self.arrivals.append(self._call_one(0.0))
        self._at(self.arrivals[0], "claim", Worker())
        work = self.work.until(self.work.size)
        end = 0.0
        while self.events:
            now, _, what, worker = heapq.heappop(self.events)
            if now > 2 * work:
                return {}
            if what == "arrive":
                self._arrive(now, worker)
            elif what == "claim":
                self._claim(now, worker)
            elif what == "give back":
                self._give_back(now, worker)
            else:
                self.left += 1
                end = max(end, self.pool.use(now, self.machine.mutex_lines * self.machine.handover))
        self.arrivals = [*self.arrivals, *[end] * self.workers][: self.workers]
        shares = {"work": work, "start": sum(self.arrivals), **self.lost}
        shares["end"] = self.workers * end - sum(shares.values())
        return {name: time / (self.workers * end) for name, time in shares.items()}

    def _at(self, time: float, what: str, worker: Worker) -> None:
        heapq.heappush(self.events, (time, next(self.order), what, worker))

    # ThreadPool ----------------------------------------------------------------------------------------------

    def _call_one(self, now: float) -> float:
        """Returns when the waker goes on."""
        if self.wanted <= self.on_their_way:
            return now
        self.on_their_way += 1
        self._at(now + self.machine.wake + self.machine.arrival, "arrive", Worker())
        return now + self.machine.wake

    def _arrive(self, now: float, worker: Worker) -> None:
        inside = self.pool.use(now, self.machine.mutex_lines * self.machine.handover)
        self.on_their_way -= 1
        if self.wanted == 0 or not (self.next < self.work.size or self.given_back):
            return
        self.wanted -= 1
        for _ in range(2):
            inside = self._call_one(inside)
        if self.machine.wakes_in_mutex:
            self.pool.free_at = inside
        self.arrivals.append(inside)
        self._at(inside, "claim", worker)

    # Claims --------------------------------------------------------------------------------------------------

    def _claim(self, now: float, worker: Worker) -> None:
        """A claim and its work."""
        one_by_one = self.rules.tray > 0
        most, least = worker.chunk, min(self._items_in(worker, self._at_least(self.rules.least, worker)), worker.chunk)
        if one_by_one:
            quick = now - worker.filled < self.rules.tray_quick
            worker.chunk = most = min(4 * worker.chunk, self.rules.tray) if quick else 1
            worker.filled, least = now, 1
        begun = now
        if self.given_back:
            now = self.returned.use(now, 3 * self.machine.handover)
            first, end = self.given_back.pop()
            last = min(end, first + most)
            if last < end:
                self.given_back.append((last, end))
        elif self.next == self.work.size:  # seen in a line that nobody changes any more
            now += self.machine.handover
            first = last = self.next
        else:
            now = self.line.use(now, self.machine.touches * self.machine.handover)
            most = min(most, max(least, (self.work.size - self.next) // (2 * self.workers)))
            first, last = self.next, min(self.next + most, self.work.size)
            self.next = last
        if one_by_one:  # the counter apart: a look at another's tray, or at all of them when there are no more items
            now += self.machine.handover * (1 if first < last else self.workers - 1)
        self.lost["claims"] += now - begun
        if not self.rules.wait_counts:
            worker.filled, worker.mark, worker.waited = now, -1.0, now - begun
        if first == last:
            self._at(now, "leave", worker)
        elif one_by_one:
            taken = (last - first) * self.machine.own_line + self.machine.clock
            self.lost["claims"] += taken
            self._at(now + taken + self.work.until(last) - self.work.until(first), "claim", worker)
        else:
            self._run_blocks(now, first, last, worker)

    def _items_in(self, worker: Worker, time: float) -> int:
        return int(min(1e6, max(1.0, time / worker.per_item))) if worker.per_item > 0 else 1

    def _at_least(self, time: float, worker: Worker, waits: float = 1.0) -> float:
        return max(time, waits * worker.waited) if self.rules.claim_per_wait > 0 else time

    def _run_blocks(self, now: float, first: int, last: int, worker: Worker) -> None:
        looks = 0
        if worker.mark < 0:
            now, looks = now + self.machine.clock, 1
            worker.mark = now
        begun, worked = worker.mark, False
        claim = self._at_least(self.rules.claim, worker, self.rules.claim_per_wait)
        too_long = self.rules.too_long * claim / self.rules.claim
        while first < last:
            block = self._items_in(worker, self.rules.block)
            # The blocks of even items but for the first are one like the other, and none of them too slow.
            many = worked and self.work.even(first, last)
            end = last if many else min(last, first + block)
            these = math.ceil((end - first) / block)
            now += self.work.until(end) - self.work.until(first) + these * self.machine.clock
            looks, worked = looks + these, True
            worker.per_item = (now - worker.mark) / (end - first)
            worker.mark, first = now, end
            if now - begun >= too_long:
                break
        self.lost["clock"] += looks * self.machine.clock
        worker.chunk = min(worker.chunk * self.rules.growth, self._items_in(worker, claim))
        worker.claim = (first, last)
        self._at(now, "give back" if first < last else "claim", worker)

    def _give_back(self, now: float, worker: Worker) -> None:
        self.given_back.append(worker.claim)
        now = self.returned.use(now, 3 * self.machine.handover)
        self.wanted, self.left = self.wanted + self.left, 0
        self._at(self._call_one(now), "claim", worker)


# Tables ------------------------------------------------------------------------------------------------------


def workloads(workers: int, each: float) -> List[Work]:
    def sized(name: str, item: float) -> Work:
        return Work(name, max(1, round(workers * each / item)), item)

    items = [sized("100 ns", 100.0), sized("1 us", US), sized("10 us", 10 * US), sized("100 us", 100 * US)]
    size = items[2].size
    tail = Work("heavy tail", size, 10 * US / 2 / 0.99, size // 100, 10 * US / 2 * 100)
    return [Work("10 M x 0.3 ns", 10_000_000, 0.3), *items, replace(items[2], name="linear", linear=True), tail]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{' --- |' + ' ---: |' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def percent(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:.1f}"


def compare(title: str, cases: Iterable[Tuple[str, Work, int, Machine]], rules: Dict[str, Rules]) -> None:
    def efficiency(*case: Any) -> str:
        shares = Simulation(*case).run()
        return percent(shares["work"]) if shares and shares["work"] * case[1] > 1 else "slower than one"

    rows = ([name, *(efficiency(*case, rule) for rule in rules.values())] for name, *case in cases)
    table(f"Efficiency %, {title}", ["workers", *rules], rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    asleep = {workers: Machine(handover) for workers, handover in HANDOVER.items()}
    awake = {workers: replace(machine, wake=0.0, arrival=0.5 * US) for workers, machine in asleep.items()}

    def shares(*case: Any) -> List[str]:
        return [percent(share) for share in Simulation(*case).run().values()]

    rows = ([f"{n}, {work.name}", *shares(work, n, asleep[n])] for n in asleep for work in workloads(n, 50 * MS))
    head = ["workers, items", "efficiency %", "start %", "claims %", "clock %", "end %"]
    table("Rules as they are; the threads sleep at first", head, rows)

    long = Rules(claim=200 * US, too_long=400 * US)
    rules = {"as they are": Rules(), "were the wait work": Rules(wait_counts=True), "200 us": long}
    rules["16 waits"] = Rules(claim_per_wait=16)
    costs = [(2, 40), (16, 50), (64, 50), (64, 115), (128, 115), (256, 50), (256, 100), (256, 200), (256, 400)]
    for index, title in ((2, "items of 1 us, 10 ms for each worker"), (0, "10 M items of 0.3 ns")):
        cases = ((f"{n}, {cost} ns", workloads(n, 10 * MS)[index], n, replace(awake[2], handover=float(cost)))
                 for n, cost in costs)  # fmt: skip
        compare(title + ", threads look out", cases, rules)

    rules = {"as they are": Rules(tray=64), "were the wait work": Rules(tray=64, wait_counts=True)}
    rules["1024 items, 100 us"] = Rules(tray=1024, tray_quick=100 * US)
    cases = ((f"{n}, {work.name}", replace(work, size=min(work.size, 1_000_000)), n, awake[n])
             for n in awake for work in workloads(n, 10 * MS)[1:5])  # fmt: skip
    compare("one by one, threads look out", cases, rules)

    def starts() -> Iterable[Sequence[str]]:
        for workers, wake in itertools.product((16, 64, 256), (0.0, 4 * US, 17 * US)):
            cells = [f"{workers}, {wake / US:.0f} us"]
            for within in (False, True):
                machine = replace(asleep[workers] if wake > 0 else awake[workers], wake=wake, wakes_in_mutex=within)
                simulation = Simulation(workloads(workers, 50 * MS)[4], workers, machine)
                simulation.run()
                cells += [f"{time / US:.0f}" for time in (max(simulation.arrivals), sum(simulation.arrivals) / workers)]
            yield cells

    head = ["workers, wake", "all there, us", "lost by each, us", "mutex held: all there", "lost by each"]
    table("Start", head, starts())


if __name__ == "__main__":
    main()
