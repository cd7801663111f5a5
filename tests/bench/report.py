"""Measures pyarallel beside its peers, and writes the tables and plots of docs/benchmarks.md.

See run, which builds the programs first. Needs nothing but Python 3.9.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import machine
import plots
from bars import BARS
from measuring import CpuTimes, Measured, Peers, Stretch, disturbance, find_peers, measure, traces
from workloads import (SECTIONS, SEQUENTIAL, WORKLOADS, ByVariant, Results, Section, Workload, best_of, is_ours,
                       ours_of, peers_of, readable)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"
ALL = tuple(WORKLOADS.values())

# Peers that a full run has: the program, and what to do where it is missing.
EXPECTED = {
    "asio": ("Boost.Asio", "install libboost-dev"),
    # Debian's libthread-pool-dev is another library.
    "bs_thread_pool": ("BS::thread_pool", "set PYARALLEL_BS_THREAD_POOL to its include folder"),
    "execution": ("std::execution::par", "install libtbb-dev"),
    "fork_union": ("fork_union", "set PYARALLEL_FORK_UNION to its include folder"),
    "libfork": ("libfork", "set PYARALLEL_LIBFORK to its include folder"),
    "openmp": ("OpenMP", "use a compiler that has it"),
    "python_pools": ("Python's pools", "use a Python that has os.fork"),
    "rayon": ("rayon", "install cargo and librust-rayon-dev"),
    "sqlite": ("SQLite", "install libsqlite3-dev"),
    "taskflow": ("Taskflow", "set PYARALLEL_TASKFLOW to its include folder"),
    "tbb": ("oneTBB", "install libtbb-dev"),
}


@dataclass
class Report:
    """All that the page is made from; kept in a file, so that a later run may measure a part of it again."""

    measured: Dict[str, Measured] = field(default_factory=dict)
    traces: Dict[str, List[Stretch]] = field(default_factory=dict)
    missing: Dict[str, str] = field(default_factory=dict)
    machine: Dict[str, str] = field(default_factory=dict)

    def results(self) -> Results:
        return {name: measured.by_variant for name, measured in self.measured.items()}

    def save(self, path: Path) -> None:
        measured = {name: vars(one) for name, one in self.measured.items()}
        path.write_text(json.dumps({**vars(self), "measured": measured}, indent=1))

    @staticmethod
    def load(path: Path) -> Report:
        if not path.exists():
            return Report()
        kept = json.loads(path.read_text())
        kept["measured"] = {name: Measured(**one) for name, one in kept["measured"].items()}
        return Report(**kept)


# Tables ------------------------------------------------------------------------------------------------

Row = List[str]


@dataclass
class Table:
    head: Row
    rows: List[Row]

    def text(self, aligned: bool = False) -> str:
        """As Markdown; aligned for people who see it in a terminal."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        if aligned:
            lines = [[cell.replace("<br>", ", ").replace("**", "") for cell in line] for line in lines]
            widths = [max(map(len, column)) for column in zip(*lines)]
            lines = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in lines]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(workload: Workload, samples: Sequence[float]) -> str:
    middle, least, most = (workload.scale() * f(samples) for f in (statistics.median, min, max))
    return f"{readable(middle)} [{readable(least)}..{readable(most)}]"


def efficiency(by_variant: ByVariant, variant: str) -> str:
    loop = by_variant.get(SEQUENTIAL)
    if loop is None or variant == SEQUENTIAL:
        return ""
    return f"{50 * statistics.median(loop) / statistics.median(by_variant[variant]):.0f} %, "


def cell(workload: Workload, measured: Optional[Measured], variant: str) -> str:
    if measured is None:
        return ""
    if variant in measured.failed:
        return "failed"
    if variant not in measured.by_variant:
        return ""
    text = spread(workload, measured.by_variant[variant])
    if workload.efficiency:
        text = efficiency(measured.by_variant, variant) + text
    best = best_of(workload, measured.by_variant, peers_of(measured.by_variant))
    return f"**{text}**" if variant == best else text


def to_best(workload: Workload, by_variant: ByVariant, variant: Optional[str]) -> str:
    """The ratio of the medians of a variant and of the best peer."""
    best = best_of(workload, by_variant, peers_of(by_variant))
    if best is None or variant not in by_variant:
        return ""
    return f"{statistics.median(by_variant[variant]) / statistics.median(by_variant[best]):.2f}"


def variants_of(section: Section, report: Report) -> List[str]:
    """Ours first, then the peers by name, then the yardsticks."""
    names = {name for workload in section.workloads if workload.name in report.measured
             for name in (*report.measured[workload.name].by_variant, *report.measured[workload.name].failed)}
    peers = set(peers_of({name: [] for name in names}))
    return sorted(names, key=lambda name: (not is_ours(name), name not in peers, name.lower()))


def head_of(workload: Workload) -> str:
    share = "efficiency, " if workload.efficiency else ""
    return f"{workload.title}<br>{share}{workload.measure()}"


def wide_table(section: Section, report: Report) -> Table:
    workloads = [workload for workload in section.workloads if workload.name in report.measured]
    rows = [
        [variant, *(cell(workload, report.measured[workload.name], variant) for workload in workloads)]
        for variant in variants_of(section, report)
    ]
    ratios = [to_best(workload, by, ours_of(by)) for workload in workloads
              for by in [report.measured[workload.name].by_variant]]
    if any(ratios):
        rows.append(["pyarallel / best peer", *ratios])
    return Table(["", *map(head_of, workloads)], rows)


def long_table(section: Section, report: Report) -> Table:
    rows: List[Row] = []
    for workload in section.workloads:
        measured = report.measured.get(workload.name)
        if measured is None:
            continue
        title = f"{workload.title}, {workload.measure()}"
        for variant in variants_of(Section("", "", (workload,)), report):
            rows.append([title, variant, cell(workload, measured, variant),
                         to_best(workload, measured.by_variant, variant)])
            title = ""  # once is enough
    return Table(["workload", "peer", "measured", "x best peer"], rows)


def section_table(section: Section, report: Report) -> Table:
    return wide_table(section, report) if section.wide else long_table(section, report)


def bars_table(report: Report, workloads: Sequence[Workload]) -> Table:
    results = report.results()
    rows = []
    for bar in BARS:
        if WORKLOADS[bar.workload] not in workloads:
            continue
        verdict = bar.judge(results)
        outcome = "not measured" if verdict is None else "met" if verdict.met else "**missed**"
        rows.append([bar.number, bar.what, bar.limit, verdict.measured if verdict else "", outcome])
    return Table(["", "workload", "bar", "measured", ""], rows)


def machine_table(report: Report) -> Table:
    return Table(["", ""], [[name, value] for name, value in report.machine.items()])


def peers_text(report: Report) -> str:
    lines = [f"- Missing: {name} ({why})." for name, why in report.missing.items()]
    lines += [
        f"- Failed: {variant} at `{name}` ({why})."
        for name, measured in report.measured.items()
        for variant, why in measured.failed.items()
    ]
    return "\n".join(lines) or "No peer is missing, and none failed."


# The page ----------------------------------------------------------------------------------------------


def replace_between_markers(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        print(f"{PAGE.name} has no place for '{name}'")
    return pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", page)


def write_page(report: Report) -> None:
    page = PAGE.read_text()
    for section in SECTIONS:
        if any(workload.name in report.measured for workload in section.workloads):
            page = replace_between_markers(page, section.name, section_table(section, report).text())
    page = replace_between_markers(page, "bars", bars_table(report, ALL).text())
    page = replace_between_markers(page, "machine", machine_table(report).text())
    page = replace_between_markers(page, "peers", peers_text(report))
    PAGE.write_text(page)
    print(f"wrote {PAGE.relative_to(ROOT)}")


def write_plots(report: Report) -> None:
    PLOTS.mkdir(exist_ok=True)
    drawn = {
        "grain.svg": plots.grain(report.results()),
        "workers.svg": plots.workers(report.results(), machine.cores()),
        "timeline.svg": plots.timeline(report.traces),
    }
    for name, svg in drawn.items():
        if svg is None:
            print(f"not measured, so not drawn: {name}")
            continue
        (PLOTS / name).write_text(svg)
        print(f"wrote {(PLOTS / name).relative_to(ROOT)}")


# Measuring ---------------------------------------------------------------------------------------------


def missing_peers(peers: Peers) -> Dict[str, str]:
    missing = {title: hint for program, (title, hint) in EXPECTED.items() if program not in peers.programs}
    for program, why in peers.broken.items():
        missing[EXPECTED.get(program, (program, ""))[0]] = why
    return missing


def measure_all(workloads: Sequence[Workload], peers: Peers, repetitions: Optional[int]) -> Dict[str, Measured]:
    begin = time.monotonic()
    all_measured: Dict[str, Measured] = {}
    for at, workload in enumerate(workloads, 1):
        known = len(peers.at(workload.asked_as or workload.name))
        print(f"{time.monotonic() - begin:5.0f} s  {at}/{len(workloads)} {workload.name}, {known} peers", flush=True)
        measured = measure(workload, peers, repetitions)
        for variant, why in measured.failed.items():
            print(f"         failed: {variant}: {why}", flush=True)
        if measured.by_variant or measured.failed:
            all_measured[workload.name] = measured
    print(f"{time.monotonic() - begin:5.0f} s  done", flush=True)
    return all_measured


def print_report(report: Report, workloads: Sequence[Workload]) -> None:
    for section in SECTIONS:
        asked = tuple(workload for workload in section.workloads if workload in workloads)
        table = section_table(Section(section.name, section.title, asked, section.wide), report)
        if table.rows:
            print(f"\n== {section.title}\n{table.text(aligned=True)}")
    print(f"\n== Bars\n{bars_table(report, workloads).text(aligned=True)}\n\n{peers_text(report)}\n")


# The command -------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", description="Measures pyarallel beside its peers. A run of everything rewrites the "
        "page; a run of some workloads or peers prints its tables.", epilog="workloads: " + " ".join(WORKLOADS))
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD")
    parser.add_argument("--repetitions", type=int, metavar="N", help="5 by default, or 3 of slow workloads")
    parser.add_argument("--write", action="store_true", help="put new figures of some workloads into the page")
    parser.add_argument("--peers", default="", metavar="PATTERN", help="only peers whose name has this pattern")
    parser.add_argument("--folder", type=Path, required=True, help=argparse.SUPPRESS)  # of the build, from run
    parser.add_argument("--kept", action="store_true", help="measure nothing: write the page from the last results")
    given = parser.parse_args()
    unknown = [name for name in given.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"no such workload: {' '.join(unknown)} ({parser.epilog})")
    return given


def selected_peers(folder: Path, pattern: str) -> Peers:
    peers = find_peers([folder / "tests" / "bench" / "peers", HERE / "peers"])
    peers.commands = {key: command for key, command in peers.commands.items() if re.search(pattern, key[0])}
    return peers


def renew(report: Report, workloads: Sequence[Workload], peers: Peers, given: argparse.Namespace) -> None:
    """Puts new figures in the place of old ones of the same workloads."""
    before = CpuTimes.now()
    report.measured.update(measure_all(workloads, peers, given.repetitions))
    disturbed = disturbance(before, CpuTimes.now())
    report.machine = machine.describe(given.folder)
    if disturbed:
        report.machine["meanwhile"] = machine.quietness(*disturbed)
    report.missing = missing_peers(peers)
    if WORKLOADS["shape_tail"] in workloads:
        report.traces = traces(peers) or report.traces


def main() -> int:
    given = arguments()
    store = given.folder / "benchmarks.json"
    workloads = tuple(WORKLOADS[name] for name in given.workloads) or ALL
    writing = (not given.workloads or given.write or given.kept) and not given.peers
    report = Report.load(store) if given.kept or (writing and given.workloads) else Report()
    if not given.kept:
        renew(report, workloads, selected_peers(given.folder, given.peers), given)
    print_report(report, workloads)
    if writing:
        report.save(store)
        write_page(report)
        write_plots(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
