"""Which allocation does best on a model, at equal bits and with the same quantiser? Perplexity and task scores.

    python benchmarks/findings.py --bits 1.57,1.81,2.05,2.3,2.54 --seeds 0,1 --out benchmarks/results/findings.json

Every expert is quantised once per calibration seed; all allocations are composed from those codes. Differences are
paired, item by item, with uniform 2 bits where that is at the same budget and with PMQ as released otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mcbench.allocation import BitAllocation, BitBudget
from mcbench.calibration import calibrate
from mcbench.catalogue import select_tasks
from mcbench.comparison import difference
from mcbench.composition import compose
from mcbench.compression import compress
from mcbench.errors import BadInput
from mcbench.evaluation import LanguageModel
from mcbench.model import MoEModel, load_model
from mcbench.store import ExpertStore
from mcbench.task import Scores, Task
from mcbench.text import calibration_data

METHODS = (
    "uniform",
    "random",
    "frequency",
    "hessian",
    "fnorm",
    "pmq",
    "pmq(gamma=2)",
    "pmq(quantizer=final)",
    "pmq(quantizer=final, floor=0)",
    "pmq(error=kl, quantizer=final)",
    "output-kl",
    "output-kl(scope=layer)",
)
TASKS = "mini-perplexity,mini-piqa,mini-arc-easy,mini-hellaswag,mini-winogrande,mini-gsm8k,mini-humaneval,mini-needle"
WIDTHS = (1, 2, 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--methods", default=";".join(METHODS), help="method strings by semicolons")
    parser.add_argument("--bits", default="1.57,1.81,2.05,2.3,2.54", help="the papers' labels by commas")
    parser.add_argument("--seeds", default="0", help="of the calibration text, by commas")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON with every figure")
    options = parser.parse_args()
    model, tasks = load_model(options.model, dtype=options.dtype), select_tasks(options.tasks)
    base = answers(model, tasks, model.digest(), options.limit)
    rows = [{"method": "none", "bits": 16.0, **figures(base, None)}]
    for seed in map(int, options.seeds.split(",")):
        for row in compare(model, tasks, options, seed):
            rows.append(row)
            print(json.dumps({key: row[key] for key in ("method", "seed", "bits", "perplexity", "mean")}), flush=True)  # noqa: T201 - a script
    print(table(rows))  # noqa: T201
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"model": model.digest(), "rows": rows}, indent=1) + "\n")
    return 0


def compare(model: MoEModel, tasks: tuple[Task, ...], options: Any, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each method at each budget that it can reach."""
    data = calibration_data(model, seed=seed)
    compositions = [compose(text, seed=seed) for text in options.methods.split(";")]
    quantizer = compositions[0].owner("quantize")
    store = ExpertStore(model, data, quantizer.method, str(quantizer), WIDTHS)
    needs = sorted({need for composition in compositions for need in composition.allocator.needs})
    stats = calibrate(model, data, needs, store=store, widths=WIDTHS, activations=store.activations)
    known: dict[BitAllocation, dict[str, Scores]] = {}
    for bits in map(float, options.bits.split(",")):
        at_budget: dict[str, dict[str, Scores]] = {}
        for composition in compositions:
            budget = BitBudget.from_label(bits, model.weight_count(), WIDTHS)
            started = time.monotonic()
            try:
                allocation = composition.allocator.allocate(stats, budget)
            except BadInput:  # this method has no point at this budget
                continue
            if allocation not in known:
                with compress(model, allocation, store) as compressed:
                    known[allocation] = answers(model, tasks, compressed.digest(), options.limit)
            scores = at_budget[str(composition)] = known[allocation]
            reference = at_budget.get(str(compose("uniform"))) or at_budget.get(str(compose("pmq")))
            yield {
                "method": str(composition.owner("allocate")),
                "seed": seed,
                "bits": bits,
                "expert_bits": allocation.expert_average,
                "histogram": allocation.histogram,
                **figures(scores, reference),
                "seconds": time.monotonic() - started,
            }


def answers(model: MoEModel, tasks: tuple[Task, ...], identity: str, limit: int | None) -> dict[str, Scores]:
    """What the model as it is now makes of the tasks."""
    lm = LanguageModel(model.model, model.tokenizer, identity=identity)
    return {task.name: task.evaluate(lm, limit=limit) for task in tasks}


def figures(scores: dict[str, Scores], reference: dict[str, Scores] | None) -> dict[str, Any]:
    """Perplexity, every share, their mean, and the paired differences to another run at the same budget."""
    shares = {name: s.value for name, s in scores.items() if s.metric != "perplexity" and s.value is not None}
    found: dict[str, Any] = {
        "perplexity": next((s.value for s in scores.values() if s.metric == "perplexity"), None),
        "mean": sum(shares.values()) / len(shares) if shares else None,
        "shares": shares,
    }
    for name, score in scores.items() if reference else ():
        assert reference is not None
        if (delta := difference(score, reference[name])) is not None:
            found.setdefault("differences", {})[name] = [delta.value, delta.standard_error]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Perplexity and mean share by method and budget, averaged over seeds."""
    budgets = sorted({row["bits"] for row in rows})
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for bits in budgets:
            found = [row for row in rows if row["method"] == method and row["bits"] == bits]
            mean = {key: sum(row[key] for row in found) / len(found) for key in ("perplexity", "mean") if found}
            cells.append(f"{mean['perplexity']:.3f} / {100 * mean['mean']:.1f}" if mean else "")
        lines.append([method, *cells])
    return tabulate(lines, headers=["perplexity / mean %", *(f"{b:g}" for b in budgets)])


if __name__ == "__main__":
    sys.exit(main())
