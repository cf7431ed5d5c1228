"""What difference does it make whose inputs GPTQ sees: those of the model as it is, or of the already quantised one?

    python benchmarks/layerwise.py [--models NAMES] [--out FOLDER] [--results FILE]

Each method is run twice on each model, with `gptq` and with `gptq(inputs=quantized)`, at one budget. Differences are
paired, item by item: positive means that layer by layer scores higher (for perplexity: worse); p_holm corrects for the
tasks of one row. What a run has finished lies under --out and is not done again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import mcbench
from mcbench.record import Record
from mcbench.versus import compare

TASKS = "mini-perplexity,mini-gsm8k,mini-arc-challenge,mini-hellaswag"
METHODS = {"pmq": {"bits": 2.05}, "uniform": {"expert_bits": 2.0}}  # uniform has no other budget near the label 2.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", default="reference,reference-fine")
    parser.add_argument("--out", type=Path, default=Path("runs/layerwise"))
    parser.add_argument("--results", type=Path, default=None, help="write the figures to this file as JSON")
    options = parser.parse_args()
    rows = [measured(model, method, options.out / model) for model in options.models.split(",") for method in METHODS]
    text = json.dumps({"tasks": TASKS, "rows": rows}, indent=1)
    print(text)  # noqa: T201 - a script
    if options.results:
        options.results.write_text(text + "\n")


def measured(model: str, method: str, out: Path) -> dict[str, Any]:
    """Both modes of one method on one model, and their paired differences."""
    original, quantized = (run(model, method, inputs, out) for inputs in ("original", "quantized"))
    comparison = compare([folder(original, out), folder(quantized, out)])
    return {
        "model": model,
        "method": method,
        "label_bits": original.bits.label,
        "stored_bits": [original.bits.stored, quantized.bits.stored],
        "same_widths": original.allocation == quantized.allocation,
        "threads": original.environment.threads,
        "tasks": [
            {
                "task": contrast.task,
                "n": contrast.n,
                "original": contrast.reference,
                "quantized": contrast.value,
                "difference": contrast.difference,  # of perplexities: relative
                "interval": contrast.interval,
                "p": contrast.p,
                "p_holm": contrast.p_holm,
            }
            for contrast in comparison.others[0].contrasts
        ],
    }


def run(model: str, method: str, inputs: str, out: Path) -> Record:
    """The record of one run; what an earlier one calibrated and answered is read from `out`."""
    string = f"{method}+gptq(inputs={inputs})"
    return mcbench.run(string, model=model, tasks=TASKS, out=out, **METHODS[method])


def folder(record: Record, out: Path) -> Path:
    """Where a record lies under `out`."""
    return next(path.parent for path in out.glob("*/record.json") if Record.load(path).digest == record.digest)


if __name__ == "__main__":
    main()
