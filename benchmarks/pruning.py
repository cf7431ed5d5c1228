"""What does skipping experts at run time cost? Policies at equal share, and the curves of MC-MoE's figures and tables.

    python benchmarks/pruning.py --study grid --bits 1.57,2.05,2.54 --skips 0.15,0.25 --out runs/pruning
    python benchmarks/pruning.py --study protection,drop,metric,threshold,sparsity,length --bits 2.05 --out runs/pruning

Every cell is a run of mcbench: its record and samples lie under --out, and samples that are there are not made again.
Differences are paired, item by item, with the same weights under the router alone. Bits 16 prune without compressing.
grid: each policy at each budget and share. protection, drop: figures 7 and 8. metric: table 11. threshold: table 12.
sparsity: the curve of trained heads. length: perplexity by window, on the packed model, as a reviewer asked.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

import mcbench
from mcbench.composition import compose
from mcbench.errors import BadInput
from mcbench.evaluation import LanguageModel
from mcbench.model import load_model
from mcbench.policy import fit
from mcbench.record import Record
from mcbench.text import calibration_data

TASKS = "mini-perplexity,mini-piqa,mini-arc-easy,mini-hellaswag,mini-winogrande,mini-gsm8k,mini-humaneval,mini-needle"
POLICIES = (
    "odp(skip={skip})",
    "odp-release(skip={skip})",
    "naee(skip={skip})",
    "token-statistic(skip={skip}, statistic=kurtosis)",
    "token-statistic(skip={skip}, statistic=variance)",
    "token-statistic(skip={skip}, statistic=mean)",
    "otp(skip={skip})",
    "random-skip(skip={skip})",
)
FIXED = ("odp", "otp", "topk(k=1)")  # at the share that they have by themselves
STATISTICS = ("kurtosis", "variance", "mean")
STUDIES = {
    "protection": [f"odp(protect={share})" for share in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)],
    "drop": [f"odp(drop_all={share})" for share in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)],
    "metric": [
        *(f"token-statistic(statistic={s}, direction={d}, skip=0.15)" for s in STATISTICS for d in ("low", "high")),
        "odp(skip=0.15)",
    ],
    "threshold": ["odp", *(f"odp(threshold={ratio})" for ratio in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7))],
    "sparsity": [f"otp(sparsity={weight})" for weight in (0.1, 0.3, 1.0, 3.0, 10.0)],
}
WINDOWS = (512, 1024, 2048, 4096)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--study", default="grid", help=f"of grid, length, {', '.join(STUDIES)}, by commas")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--weights", default="pmq", help="what is done to the weights; bits 16 leave them alone")
    parser.add_argument(
        "--bits", default="1.57,2.05,2.54", help="the papers' labels by commas, 16 among them if wanted"
    )
    parser.add_argument("--skips", default="0.15,0.25")
    parser.add_argument("--policies", default=";".join(POLICIES), help="with {skip}, by semicolons")
    parser.add_argument("--fixed", default=";".join(FIXED), help="policies of the grid that take no share")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--samples", type=int, default=None, help="calibration sequences")
    parser.add_argument("--texts", type=int, default=16, help="of the longest window, in the study of lengths")
    parser.add_argument("--out", type=Path, default=Path("runs/pruning"))
    options = parser.parse_args(arguments)
    for study in options.study.split(","):
        if study not in (*STUDIES, "grid", "length"):
            raise SystemExit(f"there is no study {study!r}")
        rows = list(by_length(options)) if study == "length" else list(cells(study, options))
        text = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
        print(f"\n## {study}\n\n{text}")  # noqa: T201 - a script
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{study}.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.out / f"{study}.md").write_text(text + "\n")
    return 0


def cells(study: str, options: Any) -> Iterator[dict[str, str]]:
    """A row for each budget and policy of a study."""
    for bits in map(float, options.bits.split(",")):
        if study == "grid":
            shares = options.skips.split(",")
            policies = [p.replace("{skip}", s) for s in shares for p in options.policies.split(";") if p]
            policies += [policy for policy in options.fixed.split(";") if policy]
        else:
            policies = STUDIES[study]
        for policy in policies:
            try:
                yield row(cell(bits, policy, options), bits)
            except BadInput as error:  # a share that this policy cannot meet is a result as well
                yield {"bits": f"{bits:g}", "policy": policy, "skipped": "cannot be met", "note": str(error)}


def cell(bits: float, policy: str, options: Any) -> Record:
    """The record of one run; what an earlier one calibrated, trained and answered is read from --out."""
    weights = "none" if bits == 16 else options.weights
    settings = {"model": options.model, "tasks": options.tasks, "limit": options.limit, "samples": options.samples}
    return mcbench.run(f"{weights}+{policy}", bits=None if bits == 16 else bits, out=options.out, **settings)


def row(record: Record, bits: float) -> dict[str, str]:
    """What a cell comes to: shares skipped, perplexity and mean of tasks, each with its paired difference."""
    routing = record.routing
    assert routing is not None
    phases = {"prefill": routing.prefill.share, "decode": routing.decode.share}
    shown = {
        "bits": f"{bits:g}",
        "policy": routing.policy,
        "skipped": "" if routing.share is None else f"{100 * (1 - routing.share):.1f}",
        **{f"in {name}": "" if share is None else f"{100 * (1 - share):.1f}" for name, share in phases.items()},
        "protected": str(sum(routing.prefill.protected) + sum(routing.decode.protected)),
    }
    shares, changes, errors = [], [], []
    for result, plain in zip(record.results, routing.unpruned, strict=True):
        if result.value is None or plain.difference is None:
            continue
        if not result.higher_is_better:
            shown["perplexity"] = f"{result.value:.3f}"
            shown["to router alone"] = f"{plain.difference:+.3f} ± {known(plain.difference_error):.3f}"
        else:
            shares.append(result.value)
            changes.append(plain.difference)
            errors.append(known(plain.difference_error))
    if shares:
        spread = math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)
        shown["mean %"] = f"{100 * math.fsum(shares) / len(shares):.1f}"
        shown["to router alone, points"] = f"{100 * math.fsum(changes) / len(changes):+.1f} ± {100 * spread:.1f}"
    return shown


def known(error: float | None) -> float:
    """A standard error, or not a number where there are too few items to have one."""
    return math.nan if error is None else error


def by_length(options: Any) -> Iterator[dict[str, str]]:
    """Perplexity of held-out text of the reference world cut into windows of each length, for some policies."""
    for bits in map(float, options.bits.split(",")):
        if bits == 16:
            model = load_model(options.model)
        else:
            folder = options.out / f"packed-{options.weights}-{bits:g}"
            if not folder.is_dir():
                asked = {"bits": bits, "model": options.model, "samples": options.samples, "limit": 1}
                mcbench.run(options.weights, tasks="mini-perplexity", out=options.out, save=folder, **asked)
            model = load_model(str(folder))
        data = calibration_data(model, samples=options.samples or 64)
        lm = LanguageModel(model.model, model.tokenizer, check=False)
        windows = [window for window in WINDOWS if window <= lm.window]
        # text of another seed than the calibration's, read back as text because windows are cut from tokens of it
        held_out = calibration_data(model, samples=options.texts, length=windows[-1], seed=1)
        texts = ["\n".join(str(model.tokenizer.decode(i, skip_special_tokens=True)) for i in held_out.input_ids)]
        for name in ("", "odp", "odp-release", "naee", "random-skip(skip=0.25)"):
            shown = {"bits": f"{bits:g}", "policy": name or "router alone"}
            for window in windows:
                shown[str(window)] = length_cell(model, lm, name, data, texts, window)
            yield shown


def length_cell(model: Any, lm: LanguageModel, name: str, data: Any, texts: Sequence[str], window: int) -> str:
    """Perplexity, and the share skipped in per cent."""

    def perplexity() -> float:
        losses = lm.perplexity(texts, window, "disjoint")
        return math.exp(math.fsum(loss.loss for loss in losses) / sum(loss.tokens for loss in losses))

    if not name:
        return f"{perplexity():.3f}"
    part = compose(f"none+{name}").policy
    assert part is not None
    with fit(str(part), part.method, model, data).applied(model) as counts:
        value = perplexity()
    return f"{value:.3f} ({100 * counts.skipped():.1f})"


if __name__ == "__main__":
    sys.exit(main())
