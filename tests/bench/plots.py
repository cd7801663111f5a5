"""The plots of the page, as plain SVG: no script, a background of their own, for light pages and dark ones."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from html import escape
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from workloads import SEQUENTIAL, Results, is_ours

Point = Tuple[float, float]
Stretch = Tuple[int, float, float]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, FAINT, GRID, PAPER = "#24292f", "#57606a", "#e4e7eb", "#ffffff"

# Okabe and Ito's colours, which people who are colour-blind can tell apart; yellow is too pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")

# More lines than colours can be told apart by nobody: these are shown, the first seven that were measured.
SHOWN = ("pyarallel", "TBB auto", "OpenMP guided", "OpenMP static", "OpenMP dynamic", "rayon", "std::execution",
         "Asio", "Taskflow", "BS::thread_pool", "std::thread")


def text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'


def document(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="{FONT}" font-size="13" fill="{INK}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{PAPER}"/>',
        text(24, 32, title, more='font-size="16" font-weight="600"'),
        *parts,
        "</svg>\n",
    ])


# Lines over two axes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """From values to places in the picture."""

    title: str
    ticks: Sequence[Tuple[float, str]]
    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float, begin: float, end: float) -> float:
        scale: Callable[[float], float] = math.log10 if self.logarithmic else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return begin + share * (end - begin)


@dataclass(frozen=True)
class Curve:
    name: str
    points: Sequence[Point]
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    left: float
    top: float
    right: float
    bottom: float
    across: Axis
    up: Axis

    def at(self, point: Point) -> Point:
        return self.across.place(point[0], self.left, self.right), self.up.place(point[1], self.bottom, self.top)

    def frame(self) -> List[str]:
        parts = [text(self.left, self.top - 14, self.up.title, more=f'fill="{FAINT}"')]
        for value, label in self.up.ticks:
            y = self.up.place(value, self.bottom, self.top)
            parts += [line(self.left, y, self.right, y, GRID),
                      text(self.left - 8, y + 4, label, "end", f'fill="{FAINT}"')]
        for value, label in self.across.ticks:
            x = self.across.place(value, self.left, self.right)
            parts += [line(x, self.bottom, x, self.bottom + 5, FAINT),
                      text(x, self.bottom + 20, label, "middle", f'fill="{FAINT}"')]
        middle = (self.left + self.right) / 2
        return parts + [line(self.left, self.bottom, self.right, self.bottom, FAINT),
                        text(middle, self.bottom + 42, self.across.title, "middle", f'fill="{FAINT}"')]

    def curve(self, curve: Curve) -> List[str]:
        places = [self.at(point) for point in curve.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        width = 3 if is_ours(curve.name) else 1.8
        dashes = 'stroke-dasharray="6 5"' if curve.dashed else ""
        parts = [f'<polyline points="{path}" fill="none" stroke="{curve.colour}" stroke-width="{width}" '
                 f'stroke-linejoin="round" {dashes}/>']
        if not curve.dashed:
            radius = 4.5 if is_ours(curve.name) else 3.2
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{curve.colour}" stroke="{PAPER}"/>'
                      for x, y in places]
        return parts

    def curves(self, curves: Sequence[Curve]) -> List[str]:
        """Ours is drawn last, above the others."""
        return [part for curve in sorted(curves, key=lambda one: is_ours(one.name)) for part in self.curve(curve)]


def legend(curves: Sequence[Curve], x: float, y: float) -> List[str]:
    parts: List[str] = []
    for row, curve in enumerate(curves):
        at = y + 22 * row
        more = 'font-weight="600"' if is_ours(curve.name) else ""
        dashes = 'stroke-dasharray="6 5"' if curve.dashed else ""
        parts.append(line(x, at - 4, x + 24, at - 4, curve.colour, f'stroke-width="3" {dashes}'))
        parts.append(text(x + 32, at, curve.name, more=more))
    return parts


def shown_variants(names: Iterable[str]) -> List[str]:
    """The first that fits of each name above; exactly that one, if it is there."""
    rest = list(names)
    found: List[str] = []
    for shown in SHOWN:
        fitting = [shown] if shown in rest else [name for name in rest if shown in name][:1]
        found += [name for name in fitting if name not in found]
    return found[: len(COLOURS)]


def medians(results: Results, names: Mapping[str, float]) -> Dict[str, List[Point]]:
    """For each variant: where the workloads are on the horizontal axis, and the medians."""
    found: Dict[str, List[Point]] = {}
    for name, x in names.items():
        for variant, samples in results.get(name, {}).items():
            found.setdefault(variant, []).append((x, statistics.median(samples)))
    return found


# Cost per item over grain ------------------------------------------------------------------------------

GRAINS = {"grain_62ns": 62.0, "grain_1us": 1e3, "grain_10us": 1e4, "grain_100us": 1e5}
TIMES = ((10.0, "10 ns"), (100.0, "100 ns"), (1e3, "1 us"), (1e4, "10 us"), (1e5, "100 us"))


def grain(results: Results) -> Optional[str]:
    loop = {name: statistics.median(results[name][SEQUENTIAL])
            for name in GRAINS if SEQUENTIAL in results.get(name, {})}
    costs = medians(results, GRAINS)
    variants = shown_variants(costs)
    if not variants or len(loop) < 2:
        return None
    ideal = Curve("ideal: half of the loop's", [(GRAINS[name], loop[name] / 2) for name in loop], FAINT, dashed=True)
    lines = [Curve(name, costs[name], colour) for name, colour in zip(variants, COLOURS)]
    alone = {GRAINS[name]: time for name, time in loop.items()}
    shares = [Curve(one.name, [(x, 50 * alone[x] / cost) for x, cost in one.points if x in alone], one.colour)
              for one in lines]
    across = Axis("size of an item", TIMES[1:], 40, 1.6e5, logarithmic=True)
    lowest = min(cost for one in (*lines, ideal) for _, cost in one.points)
    highest = max(cost for one in lines for _, cost in one.points)
    up = Axis("time per item", [tick for tick in TIMES if lowest / 2 < tick[0] < highest * 2], lowest / 1.5,
              highest * 1.5, logarithmic=True)
    top = max([104.0, *(share + 3 for one in shares for _, share in one.points)])  # a lucky one may be above 100
    percent = Axis("efficiency of two workers", [(share, f"{share} %") for share in range(0, int(top), 20)], 0, top)
    cost_panel, share_panel = Panel(84, 84, 400, 370, across, up), Panel(486, 84, 800, 370, across, percent)
    full = Curve(ideal.name, [(40, 100), (1.6e5, 100)], FAINT, dashed=True)
    return document(1030, 430, "Cost of an item over its size, two workers", [
        *cost_panel.frame(), *cost_panel.curves([ideal, *lines]),
        *share_panel.frame(), *share_panel.curves([full, *shares]),
        *legend([*lines, ideal], 828, 100),
    ])


# Speed-up over workers ---------------------------------------------------------------------------------

WORKERS = (1, 2, 4)


def workers(results: Results, cores: int) -> Optional[str]:
    times = medians(results, {f"workers_{count}": float(count) for count in WORKERS})
    loop = dict(times.get(SEQUENTIAL, []))  # measured beside each number of workers, it has none itself
    variants = shown_variants(times)
    if not loop or not variants:
        return None
    lines = [Curve(name, [(count, loop[count] / time) for count, time in times[name] if count in loop], colour)
             for name, colour in zip(variants, COLOURS)]
    ideal = Curve(f"ideal with {cores} cores", [(count, min(count, cores)) for count in (1, cores, max(4, cores))],
                  FAINT, dashed=True)
    top = max(y for one in (*lines, ideal) for _, y in one.points) * 1.12
    across = Axis("workers", [(count, str(count)) for count in WORKERS], 0.93, 4.3, logarithmic=True)
    step = 0.5 if top < 4 else 1.0
    ticks = [(step * tick, f"{step * tick:g} x") for tick in range(int(top / step) + 1)]
    panel = Panel(84, 84, 500, 370, across, Axis("speed-up over the sequential loop", ticks, 0, top))
    title = f"Speed-up over workers, items of 10 us, {cores} cores"
    return document(730, 430, title, [*panel.frame(), *panel.curves([ideal, *lines]),
                                      *legend([*lines, ideal], 530, 100)])


# A time line of workers --------------------------------------------------------------------------------

LANE, GAP = 30.0, 10.0
BEGIN, END = 150.0, 880.0


def timeline(traces: Mapping[str, Sequence[Stretch]]) -> Optional[str]:
    if not traces:
        return None
    last = max(end for stretches in traces.values() for _, _, end in stretches)
    across = Axis("", [], 0, last * 1.02)
    parts: List[str] = []
    y = 84.0
    for variant, stretches in sorted(traces.items(), key=lambda one: (not is_ours(one[0]), one[0])):
        drawn, y = _lanes(variant, stretches, across, y)
        parts += drawn
    parts += _time_axis(across, y)
    what = "A box is what a worker did in one go; the last hundredth of the items is half of the work."
    parts.append(text(24, 54, what, more=f'fill="{FAINT}"'))
    return document(960, y + 56, "Who worked when: 10,000 items with a heavy tail", parts)


def _lanes(variant: str, stretches: Sequence[Stretch], across: Axis, top: float) -> Tuple[List[str], float]:
    """One lane for each worker of a variant, and where the next may begin."""
    ids = sorted({worker for worker, _, _ in stretches})
    end = max(end for _, _, end in stretches)
    busy = sum(stop - start for _, start, stop in stretches) / (end * len(ids))
    colour = COLOURS[0] if is_ours(variant) else COLOURS[1]
    parts = [text(24, top + 4, variant, more='font-weight="600"'),
             text(END, top + 4, f"done after {end / 1000:.1f} ms, workers busy for {100 * busy:.0f} % of it", "end",
                  f'fill="{FAINT}"')]
    y = top + 16
    for worker in ids:
        parts.append(text(BEGIN - 12, y + LANE / 2 + 5, f"worker {worker}", "end"))
        parts.append(f'<rect x="{BEGIN}" y="{y:.1f}" width="{END - BEGIN}" height="{LANE}" fill="#f3f4f6"/>')
        parts += _boxes(worker, stretches, across, y, colour)
        y += LANE + GAP
    x = across.place(end, BEGIN, END)
    parts.append(line(x, top + 12, x, y - GAP + 4, INK, 'stroke-dasharray="3 3"'))
    return parts, y + 28


def _boxes(worker: int, stretches: Sequence[Stretch], across: Axis, y: float, colour: str) -> List[str]:
    parts = []
    mine = sorted((start, stop) for who, start, stop in stretches if who == worker)
    for shade, (start, stop) in enumerate(_merged(mine, across)):
        left, right = across.place(start, BEGIN, END), across.place(stop, BEGIN, END)
        opacity = 1 if shade % 2 == 0 else 0.6  # neighbours differ
        parts.append(f'<rect x="{left:.2f}" y="{y:.1f}" width="{max(right - left, 0.4):.2f}" height="{LANE}" '
                     f'fill="{colour}" fill-opacity="{opacity}"/>')
    return parts


def _merged(stretches: Sequence[Point], across: Axis) -> List[Point]:
    """Boxes narrower than nobody can see are drawn with the next."""
    visible = (across.high - across.low) / (END - BEGIN)  # a pixel
    merged: List[Point] = []
    for start, stop in stretches:
        if merged and merged[-1][1] - merged[-1][0] < visible and start - merged[-1][1] < visible / 2:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged


def _time_axis(across: Axis, y: float) -> List[str]:
    step = _round_step(across.high / 8)
    parts = [line(BEGIN, y - 16, END, y - 16, FAINT)]
    for tick in range(int(across.high / step) + 1):
        x = across.place(tick * step, BEGIN, END)
        parts += [line(x, y - 16, x, y - 11, FAINT),
                  text(x, y + 4, f"{tick * step / 1000:g}", "middle", f'fill="{FAINT}"')]
    return parts + [text((BEGIN + END) / 2, y + 26, "ms since the call began", "middle", f'fill="{FAINT}"')]


def _round_step(at_least: float) -> float:
    power = 10 ** math.floor(math.log10(at_least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least)
