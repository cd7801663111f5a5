"""Python's pools as a peer, by the protocol of peer.hpp.

Processes: multiprocessing.Pool and concurrent.futures.ProcessPoolExecutor, forked as pyarallel's workers are, with
start and stop counted. Threads: ThreadPoolExecutor, for items that wait; other work one thread does at a time.
No workload for crashes: after one, the executor gives up all its items, and the pool waits for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Callable, Dict, Iterator, List, Tuple

POOL = "Python multiprocessing.Pool"
EXECUTOR = "Python ProcessPoolExecutor"
THREADS = "Python ThreadPoolExecutor"

WORKERS = int(os.environ.get("WORKERS", "2"))
FORK = multiprocessing.get_context("fork")
MEBIBYTE = 1 << 20

Measure = Callable[[], float]
Call = Callable[[], object]


def trivial(item: int) -> int:
    return item * 3 + 1


def sleeping(seconds: float, item: int) -> int:
    time.sleep(seconds)
    return trivial(item)


def make_large(item: int) -> bytes:
    return bytes([item]) * MEBIBYTE


def check(right: bool) -> None:
    if not right:
        sys.exit("wrong results")


def milliseconds(call: Call, expected: object) -> float:
    begin = time.perf_counter()
    results = call()
    elapsed = time.perf_counter() - begin
    check(results == expected)
    return elapsed * 1e3


def mean_milliseconds(call: Call, expected: object) -> float:
    """Of at least three calls and 100 ms."""
    times: List[float] = []
    while len(times) < 3 or sum(times) < 100:
        times.append(milliseconds(call, expected))
    return sum(times) / len(times)


# Processes ---------------------------------------------------------------------------------------------


def chunk_of(count: int) -> int:
    """What Pool.map chooses; the executor, left alone, sends one item at a time."""
    return -(-count // (4 * WORKERS))


def pool_map(function: Callable[[int], object], count: int, chunk: int) -> List[object]:
    with FORK.Pool(WORKERS) as pool:
        return pool.map(function, range(count), chunk)


def pool_imap(function: Callable[[int], object], count: int, chunk: int) -> List[object]:
    with FORK.Pool(WORKERS) as pool:
        return list(pool.imap(function, range(count), chunk))


def executor_map(function: Callable[[int], object], count: int, chunk: int) -> List[object]:
    with ProcessPoolExecutor(WORKERS, mp_context=FORK) as executor:
        return list(executor.map(function, range(count), chunksize=chunk))


Map = Callable[[Callable[[int], object], int, int], List[object]]


def trivial_items(map_: Map, count: int) -> float:
    return milliseconds(partial(map_, trivial, count, chunk_of(count)), [trivial(i) for i in range(count)])


def large_results(map_: Map) -> float:
    # One item a chunk: the default chunks halve the speed of large results.
    return milliseconds(partial(map_, make_large, 200, 1), [make_large(i) for i in range(200)])


def single_items(map_: Map) -> float:
    """ns per item."""
    count = 10_000
    return milliseconds(partial(map_, trivial, count, 1), [trivial(i) for i in range(count)]) * 1e6 / count


def pool_first_result() -> float:
    begin = time.perf_counter()
    with FORK.Pool(WORKERS) as pool:
        check(next(pool.imap_unordered(trivial, range(2))) in (1, 4))
        return (time.perf_counter() - begin) * 1e3


def executor_first_result() -> float:
    begin = time.perf_counter()
    with ProcessPoolExecutor(WORKERS, mp_context=FORK) as executor:
        check(next(executor.map(trivial, range(2))) == 1)
        return (time.perf_counter() - begin) * 1e3


# Threads -----------------------------------------------------------------------------------------------


def thread_map(executor: Executor, seconds: float, count: int) -> List[int]:
    return list(executor.map(partial(sleeping, seconds), range(count)))


def blocked_cold(seconds: float, count: int, workers: int) -> float:
    begin = time.perf_counter()
    with ThreadPoolExecutor(workers) as executor:
        results = thread_map(executor, seconds, count)
        elapsed = time.perf_counter() - begin
    check(results == [trivial(i) for i in range(count)])
    return elapsed * 1e3


def blocked_warm(seconds: float, count: int, workers: int) -> float:
    expected = [trivial(i) for i in range(count)]
    with ThreadPoolExecutor(workers) as executor:
        call = partial(thread_map, executor, seconds, count)
        milliseconds(call, expected)
        return mean_milliseconds(call, expected)


# The protocol ------------------------------------------------------------------------------------------


def entries() -> Iterator[Tuple[str, str, Measure]]:
    for variant, map_, pulled in ((POOL, pool_map, pool_imap), (EXECUTOR, executor_map, executor_map)):
        yield variant, "process_100k", partial(trivial_items, map_, 100_000)
        yield variant, "process_1MiB", partial(large_results, map_)
        yield variant, "process_single_pulled", partial(single_items, pulled)
    # The executor takes half a minute for them.
    yield POOL, "process_10M", partial(trivial_items, pool_map, 10_000_000)
    yield POOL, "process_first_result", pool_first_result
    yield EXECUTOR, "process_first_result", executor_first_result
    yield THREADS, "blocked_100_cold", partial(blocked_cold, 0.001, 1_000, 100)
    yield THREADS, "blocked_100_warm", partial(blocked_warm, 0.001, 1_000, 100)
    yield THREADS, "blocked_1000_cold", partial(blocked_cold, 0.01, 10_000, 1_000)
    yield THREADS, "blocked_1000_warm", partial(blocked_warm, 0.01, 10_000, 1_000)


def main(words: List[str]) -> int:
    known: Dict[Tuple[str, str], Measure] = {(variant, name): measure for variant, name, measure in entries()}
    if words == ["--list"]:
        for variant, name in known:
            print(f"{variant}\t{name}")
        return 0
    measure = known.get((words[0], words[1])) if len(words) == 2 else None
    if measure is None:
        print("usage: --list | VARIANT WORKLOAD", file=sys.stderr)
        return 2
    print(f"{measure():.6g}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
