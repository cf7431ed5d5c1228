"""How fast is the exact allocation, and does the integer programme in pulp with HiGHS find the same?

    python benchmarks/allocation.py [--out FILE]

Both solve the same programme in the same process, floors of eq. 4 included (at least one expert of 2 and of 3 bits in
each layer). Costs are random, of the shape that calibration gives: they fall with bits, convex for some experts and not
for others, and differ between experts by orders of magnitude. Median of up to seven runs after one to warm up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tabulate import tabulate

from mcbench.allocation import BitAllocation, BitBudget, Scope, WeightCount, cheapest

SIZES = {"Mixtral, 32 layers x 8 experts": (32, 8), "60 layers x 256 experts": (60, 256)}
WIDTHS = (1, 2, 3)
FLOORS = {3: 1, 2: 1}


def main() -> None:
    """Prints one row for each size and scope, and writes the same as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file as well")
    parser.add_argument("--bits", type=float, default=2.05, help="average bits per expert (default 2.05)")
    options = parser.parse_args()
    rows = [
        row(size, layers, experts, scope, options.bits)
        for size, (layers, experts) in SIZES.items()
        for scope in get_args(Scope)
    ]
    print(tabulate(rows, headers="keys", floatfmt=".4g"))  # noqa: T201 - a script
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def row(size: str, layers: int, experts: int, scope: Scope, bits: float) -> dict[str, Any]:
    """Times and costs of both solvers on one random programme."""
    rng = np.random.default_rng(0)
    error = np.sort(rng.random((layers, experts, len(WIDTHS))), axis=2)[..., ::-1]  # [L, E, W]
    cost = error * rng.lognormal(0, 1.5, (layers, experts, 1))
    budget = BitBudget.from_expert_bits(bits, WeightCount(layers, experts, 1, 0, 0, 0, 0), WIDTHS)

    ours, found = timed(lambda: cheapest(cost, budget, scope=scope, at_least=FLOORS))
    theirs, wanted = timed(lambda: cheapest(cost, budget, scope=scope, at_least=FLOORS, solver="ilp"))
    spent = [np.take_along_axis(cost, a.widths[..., None] - WIDTHS[0], axis=2).sum() for a in (found, wanted)]
    return {
        "size": size,
        "budget": scope,
        "dynamic programming (ms)": ours * 1e3,
        "pulp with HiGHS (ms)": theirs * 1e3,
        "times faster": theirs / ours,
        "cost, relative difference": float(spent[1] / spent[0] - 1),
        "same allocation": found == wanted,
    }


def timed(solve: Callable[[], BitAllocation]) -> tuple[float, BitAllocation]:
    """Median time in seconds of seven runs, or of as many as fit into ten seconds, and the result."""
    result = solve()
    seconds: list[float] = []
    while len(seconds) < 7 and sum(seconds) < 10:
        start = time.perf_counter()
        solve()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


if __name__ == "__main__":
    main()
