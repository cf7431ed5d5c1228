"""How often do the intervals of a comparison hold, and how often does the gate err where the loss is its margin?

    python benchmarks/coverage.py --runs 4000 --out benchmarks/results/coverage.md

Two tables, simulated, or with every outcome counted. Perplexity on one long text: windows whose differences follow an
autoregression, each depending on the one before it. The gate: runs whose true loss is exactly the margin, so that
either answer is an error. The functions are those of `mcbench compare` and its gate.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from mcbench import uncertainty
from mcbench.files import write_whole
from mcbench.gate import judge
from mcbench.uncertainty import Evidence
from mcbench.versus import Comparison, Contrast, Versus

Numbers = NDArray[np.float64]
Draw = Callable[[np.random.Generator], list[Evidence]]
DEPENDENCE = (-0.6, -0.3, 0.0, 0.3, 0.6, 0.8)
SHOCKS = ("normal", "t of 3", "lopsided")
WINDOWS = (40, 160)
MARGIN = 0.05  # of the gate, relative for perplexities
BOOTSTRAPS = 2000  # fewer than `mcbench compare` draws, for there are many intervals
RARE = 1e-7  # outcomes less likely than this are not counted


class Errors(NamedTuple):
    """How often the gate passed and failed where the loss is the margin; runs is 0 where all outcomes were counted."""

    passed: float
    failed: float
    runs: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000, help="simulated comparisons of each kind")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the tables to")
    options = parser.parse_args()
    uncertainty.REPEATS = BOOTSTRAPS
    text = "\n\n".join(["# Coverage of intervals, and errors of the gate", *report(options.runs)]) + "\n"
    sys.stdout.write(text)
    if options.out:
        write_whole(options.out, text.encode())
    return 0


def report(runs: int) -> Iterator[str]:
    """The two tables in Markdown, with a sentence on each."""
    yield (
        f"Made by `python benchmarks/coverage.py --runs {runs}`. Perplexity on one long text: how often, in per cent, "
        f"the 95 % interval of the difference held over {runs} simulated comparisons, by dependence of each window on "
        f"the one before it (standard error {100 * math.sqrt(0.05 * 0.95 / runs):.1f}); `width` is relative to the "
        "interval for independent windows whose spread is known."
    )
    heads = ["windows", "shocks", *(f"rho {rho:g}" for rho in DEPENDENCE), "width"]
    rows = []
    for windows in WINDOWS:
        for shocks in SHOCKS:
            found = [coverage(rho, windows, shocks, runs) for rho in DEPENDENCE]
            width = found[DEPENDENCE.index(0.0)][1]
            rows.append([windows, shocks, *(f"{100 * held:.1f}" for held, _ in found), f"{width:.2f}"])
    yield str(tabulate(rows, heads, tablefmt="pipe", disable_numparse=True))
    yield (
        "The gate at 95 % confidence, on runs whose true loss is exactly the margin: how often it passed and how often "
        "it failed, each at most 5 % as stated. `exact`: every outcome counted; otherwise simulated, with twice the "
        "standard error of the simulation behind ±."
    )
    yield str(tabulate(list(_gate_rows(runs)), ["runs of", "passed", "failed", "how"], tablefmt="pipe"))


def _gate_rows(runs: int) -> Iterator[list[str]]:
    for items, margin, gained in exact_settings():
        told = "losses only" if not gained else f"{100 * gained:g} % gained"
        yield _shown(f"{items} items, margin {100 * margin:g} %, {told}", counted(items, margin, gained))
    for name, draw, margin, each in simulated_settings():
        yield _shown(name, simulated(draw, margin, runs // 4 if "texts" in name or "passages" in name else runs, each))


def _shown(name: str, found: Errors) -> list[str]:
    if not found.runs:
        return [name, f"{100 * found.passed:.2f} %", f"{100 * found.failed:.2f} %", "exact"]
    spread = 200 * math.sqrt(0.05 * 0.95 / found.runs)
    return [name, *(f"{100 * p:.1f} ± {spread:.1f} %" for p in found[:2]), f"{found.runs} runs"]


# -- perplexity on one long text


def row(rho: float, windows: int, shocks: str, generator: np.random.Generator) -> Numbers:
    """[windows] differences of mean zero, each `rho` times the one before plus a shock."""
    before = 60
    drawn = {
        "normal": lambda n: generator.normal(size=n),
        "t of 3": lambda n: generator.standard_t(3, size=n),
        "lopsided": lambda n: generator.exponential(size=n) - 1,
    }[shocks](windows + before)
    values = np.zeros(windows + before)
    for at in range(1, windows + before):
        values[at] = rho * values[at - 1] + drawn[at]
    return values[before:]


def coverage(rho: float, windows: int, shocks: str, runs: int) -> tuple[float, float]:
    """How often the 95 % interval held, and how wide it was beside that of a known spread of independent windows."""
    generator, held, width = np.random.default_rng(0), 0, 0.0
    for _ in range(runs):
        found = Evidence(row(rho, windows, shocks, generator), np.ones(windows), bounded=False, row=True).interval(0.95)
        assert found is not None
        held += found.low <= 0 <= found.high
        width += found.high - found.low
    spread = {"normal": 1.0, "t of 3": math.sqrt(3), "lopsided": 1.0}[shocks]
    return held / runs, width / runs / (2 * 1.96 * spread / math.sqrt(windows))


# -- the gate


def outcome(evidence: Sequence[Evidence], margin: float, *, each: bool = False) -> str:
    """The verdict of the gate on one run, from what is known of the difference in each task."""
    run: Any = SimpleNamespace(name="run")
    tasks = tuple(
        Contrast(
            f"task {at}", (), "", found.bounded, 0, 0, 0.0, 0.0,
            found.difference if found.bounded else math.expm1(found.difference),
            None, None, None, 1.0, 1.0, None, None, False, found,
        )
        for at, found in enumerate(evidence)
    )  # fmt: skip
    comparison = Comparison(run, (Versus(run, tasks, None, {}),), 0.95, len(tasks))
    return judge(comparison, margin=100 * margin, perplexity_margin=100 * margin, each=each).outcome


def exact_settings() -> Iterator[tuple[int, float, float]]:
    """Items, margin and share gained; the share lost is larger by the margin."""
    for items in (50, 100, 150):
        for margin in (0.01, 0.03, 0.05):
            for gained in (0.0, 0.01, 0.05):
                yield items, margin, gained
    yield 300, 0.01, 0.0
    yield 300, 0.05, 0.02


def counted(items: int, margin: float, gained: float) -> Errors:
    """The chance of either error on one task of right and wrong answers, every outcome counted."""
    lost = gained + margin
    logs = [math.log(p) if p > 0 else -math.inf for p in (lost, gained, 1 - lost - gained)]
    total = {"passed": 0.0, "failed": 0.0, "cannot tell": 0.0}
    for b in range(items + 1):
        for c in range(items + 1 - b if gained else 1):
            numbers = (b, c, items - b - c)
            log = math.lgamma(items + 1) + sum(n * p for n, p in zip(numbers, logs, strict=True) if n)
            chance = math.exp(log - sum(math.lgamma(n + 1) for n in numbers))
            if chance > RARE:
                total[outcome([answers(items, b, c)], margin)] += chance
    return Errors(total["passed"], total["failed"], 0)


def answers(items: int, lost: int, gained: int) -> Evidence:
    """One task of right and wrong answers."""
    parts = np.repeat([-1.0, 1.0, 0.0], [lost, gained, items - lost - gained])
    return Evidence(parts, np.ones(items), (lost, gained))


def simulated_settings() -> Iterator[tuple[str, Draw, float, bool]]:
    """Name, one draw of every task, margin, and whether each task counts by itself."""
    for gained, told in ((0.0, "losses only"), (0.02, "2 % gained")):
        for each in (False, True):
            yield f"6 tasks of 300 items, {told}, {'each' if each else 'mean'}", _tasks(gained), MARGIN, each
    yield "95 passages of 3 items, lost whole", _passages(95, 3, MARGIN, 1.0), MARGIN, False
    yield "25 passages of 10 items, half lost in one of ten", _passages(25, 10, 0.1, 0.5), MARGIN, False
    loss = math.log1p(MARGIN)
    for windows in WINDOWS:
        for rho in (-0.3, 0.0, 0.3, 0.6):
            for shocks in ("normal", "lopsided"):
                name = f"perplexity, {windows} windows, rho {rho:g}, {shocks}"
                yield name, _windows(rho, windows, shocks, loss), MARGIN, False
    for texts in (40, 300):
        for shocks in SHOCKS:
            yield f"perplexity, {texts} texts, {shocks}", _texts(texts, shocks, loss), MARGIN, False


def simulated(draw: Draw, margin: float, runs: int, each: bool = False) -> Errors:
    """How often the gate passed and failed over so many draws."""
    generator = np.random.default_rng(1)
    found = [outcome(draw(generator), margin, each=each) for _ in range(runs)]
    return Errors(found.count("passed") / runs, found.count("failed") / runs, runs)


def _tasks(gained: float) -> Draw:
    shares = [gained + MARGIN, gained, 1 - 2 * gained - MARGIN]

    def draw(generator: np.random.Generator) -> list[Evidence]:
        return [answers(300, int(b), int(c)) for b, c, _ in generator.multinomial(300, shares, size=6)]

    return draw


def _passages(passages: int, items: int, hit: float, lost: float) -> Draw:
    def draw(generator: np.random.Generator) -> list[Evidence]:
        parts = generator.binomial(items, np.where(generator.random(passages) < hit, lost, 0.0)).astype(float)
        return [Evidence(-parts, np.full(passages, float(items)))]

    return draw


def _windows(rho: float, windows: int, shocks: str, loss: float) -> Draw:
    def draw(generator: np.random.Generator) -> list[Evidence]:
        sizes = np.ones(windows)
        return [Evidence(loss + 0.1 * row(rho, windows, shocks, generator), sizes, bounded=False, row=True)]

    return draw


def _texts(texts: int, shocks: str, loss: float) -> Draw:
    def draw(generator: np.random.Generator) -> list[Evidence]:
        sizes = generator.integers(50, 400, size=texts).astype(float)
        return [Evidence(sizes * (loss + 0.1 * row(0.0, texts, shocks, generator)), sizes, bounded=False)]

    return draw


if __name__ == "__main__":
    raise SystemExit(main())
