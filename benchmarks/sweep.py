"""What does a grid of methods and budgets cost beside one PMQ configuration, and does it give the same models?

    python benchmarks/sweep.py [--repeats N] [--points N] [--out FILE]

The compression part alone: calibration, quantisation, allocation, packing and proof of coverage on the reference model.
Process start, model load and evaluation are not counted. Every repeat begins with an empty folder, the configuration
alone and the grid in turn, in one process after one configuration to warm up. The grid is measured without and with
`output-kl`, whose own measurement, the model's output for every expert at every width, no other method shares. Then
each method runs alone at the middle budget, and its model must be that of the grid, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mcbench.composition import compose
from mcbench.errors import BadInput
from mcbench.pipeline import Bench, Clock, Exam
from mcbench.progress import muted
from mcbench.sweep import numbers

METHODS = ("uniform", "random", "frequency", "routing-weight", "fnorm", "hessian", "bsp", "pmq")
DEAREST = "output-kl"
ALONE, MIDDLE, RANGE = "pmq", 2.055, "1.57:2.54"
WIDTHS = (1, 2, 3)
STAGES = ("calibrate", "allocate", "compress")

Cell = tuple[str, float]


def main() -> None:
    """Prints the ratio and the times behind it, and writes the same as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of the configuration and of the grid (default 3)")
    parser.add_argument("--points", type=int, default=9, help="budgets of the grid (default 9)")
    parser.add_argument("--out", type=Path, help="write the result to this JSON file as well")
    options = parser.parse_args()
    budgets = numbers(f"{RANGE}:{options.points}")
    middle = min(budgets, key=lambda bits: abs(bits - MIDDLE))
    grids = {"grid": grid(METHODS, budgets), "grid with output-kl": grid((*METHODS[1:], DEAREST), budgets)}
    seconds: dict[str, list[float]] = {"alone": [], **{name: [] for name in grids}}
    models: dict[Cell, str] = {}
    with muted():
        compressed([(ALONE, middle)])
        for _ in range(options.repeats):
            seconds["alone"].append(compressed([(ALONE, middle)])[0])
            for name, cells in grids.items():
                took, found = compressed(cells)
                seconds[name].append(took)
                models |= found
        checked = [cell for cell in models if cell[1] == middle]
        equal = sum(compressed([cell])[1][cell] == models[cell] for cell in checked)
    alone = statistics.median(seconds["alone"])
    result = {
        "cells": {name: len(cells) for name, cells in grids.items()},
        "of them in reach": {name: sum(cell in models for cell in cells) for name, cells in grids.items()},
        "seconds": seconds,
        "times one configuration": {name: statistics.median(seconds[name]) / alone for name in grids},
        "compared with a run alone": len(checked),
        "equal": equal,
    }
    print(json.dumps(result, indent=1))  # noqa: T201 - a script
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def grid(methods: Sequence[str], budgets: Sequence[float]) -> list[Cell]:
    """Every method at every budget."""
    return [(method, bits) for method in methods for bits in budgets]


def compressed(cells: Sequence[Cell]) -> tuple[float, dict[Cell, str]]:
    """Seconds for all the cells from an empty folder, and the fingerprint of every model that came out."""
    models: dict[Cell, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.load("reference", "auto", "cpu", Exam((), Path(folder), None, False))
        total = 0.0
        for method, bits in cells:
            composition = compose(method)
            try:
                budget = bench.budget(composition, bits, None, WIDTHS)
            except BadInput:
                continue
            record, _ = bench.run(composition, budget, bench.data(None, None, None, 0), Clock())
            total += sum(record.stages[stage] for stage in STAGES)
            models[method, bits] = record.fingerprint
        return total, models


if __name__ == "__main__":
    main()
