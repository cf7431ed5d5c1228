"""Do the papers' allocations beat plain ones on the reference models, and why or why not? Perplexity and task scores.

    python benchmarks/findings.py run --model reference --seeds 0,1 --out benchmarks/results/findings-reference.json
    python benchmarks/findings.py tell benchmarks/results/findings-*.json --out leaderboards/findings

`run` makes four studies. "allocation": every allocation at several budgets, with the same quantiser. "quantiser":
uniform 2 bits by different quantisers and settings. "domain": calibration on one kind of text instead of the mixture.
"why": how well what an allocation looks at ranks the experts by the damage that quantising each alone does to the
model's output. Each is repeated with other calibration text (`--seeds`); differences are paired item by item. Answers
are kept under --runs, so that an interrupted run goes on. `tell` writes the tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mcbench.allocation import BitAllocation, BitBudget, share
from mcbench.calibration import calibrate
from mcbench.catalogue import select_tasks
from mcbench.comparison import difference
from mcbench.composition import compose
from mcbench.compression import compress
from mcbench.errors import BadInput, UnknownName
from mcbench.evaluation import LanguageModel
from mcbench.files import write_whole
from mcbench.leaderboard import pipe_table
from mcbench.model import MoEModel, load_model
from mcbench.stats import CalibrationStats
from mcbench.store import ExpertStore
from mcbench.task import Scores, Task
from mcbench.text import SAMPLES, CalibrationData, calibration_data

METHODS = (
    "uniform",
    "random",
    "frequency",
    "routing-weight",
    "hessian",
    "fnorm",
    "pmq",
    "pmq(gamma=2)",
    "pmq(quantizer=final)",
    "pmq(quantizer=final, floor=0)",
    "pmq(quantizer=final, floor=0, scope=global)",
    "pmq(error=kl, quantizer=final)",
    "output-kl(scope=layer)",
    "output-kl",
)
BITS = "1.57,1.81,2.05,2.3,2.54"
QUANTIZERS = (
    "gptq",
    "gptq(act_order=False)",
    "gptq(rounds=1, refit=0)",
    "gptq(variant=mcmoe)",
    "gptq(group_size=64)",
    "gptq(group_size=32)",
    "hqq",
    "rtn",
)
ALLOCATED = ("uniform", "pmq", "output-kl")  # of the study of calibration text
MIXTURE = "mixture"
DOMAINS = {  # a calibration text by the writers of the reference world that it is made of
    "knowledge": ("biographies", "facts", "nature"),
    "events": ("stories", "passages", "comparison"),
    "sums": ("reasoning", "quick sums", "drills"),
    "programs": ("functions",),
}
DOCUMENTS = 4000  # of a domain, more than calibration reads
AT = 2.05  # bits of the studies of quantiser and text
WIDTHS = (1, 2, 3)
BASES = ("uniform", "fnorm", "pmq")  # what differences of allocations are taken to
TASKS = (
    "mini-perplexity,mini-piqa,mini-arc-easy,mini-arc-challenge,mini-hellaswag,mini-winogrande,mini-mathqa,"
    "mini-gsm8k,mini-humaneval"
)
STUDIES = ("allocation", "quantiser", "domain", "why")


@dataclass(frozen=True)
class Case:
    """One compressed model of a study; `text` is what calibrates it."""

    study: str
    method: str
    bits: float
    text: str = MIXTURE

    @property
    def name(self) -> str:
        """What distinguishes it within its study."""
        return {"domain": f"{self.method}, {self.text}"}.get(self.study, self.method)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or tells; returns 0 when done, 2 on wrong input."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.step(options))
    except (BadInput, UnknownName) as error:
        print(f"findings: {error}", file=sys.stderr)  # noqa: T201 - a script
        return 2


# -- measuring


def run(options: argparse.Namespace) -> int:
    """Measures what was asked for and writes it as JSON."""
    model, tasks = load_model(options.model), select_tasks(options.tasks)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    budgets = [float(bits) for bits in options.bits.split(",")]
    studies = options.studies.split(",")
    if unknown := [name for name in studies if name not in STUDIES]:
        raise UnknownName(f"no study is called {unknown[0]!r} (known: {', '.join(STUDIES)})")
    exam = Exam(model, tasks, options.limit, options.runs)
    plain = exam.take(model.digest())
    found: dict[str, Any] = {
        "model": Path(options.model).name,
        "weights": model.digest(),
        "tasks": {task.name: task.protocol for task in tasks},
        "limit": options.limit,
        "seeds": seeds,
        "samples": options.samples,
        "uncompressed": figures([plain]),
    }
    rows: list[dict[str, Any]] = []
    scores: dict[tuple[Case, int], dict[str, Scores]] = {}
    for seed in seeds:
        for case, row, answers in measured(model, exam, cases(studies, budgets), seed, options.samples):
            scores[case, seed] = answers
            rows.append({"study": case.study, "name": case.name, "bits": case.bits, "seed": seed, **row})
            short = figures([answers])
            print(f"{seed} {case.study} {case.bits:g} {case.name}: {short['perplexity']:.4f}", flush=True)  # noqa: T201
        if "why" in studies:
            found.setdefault("why", []).append(why(model, seed, options.samples))
    found["rows"] = rows
    found["summary"] = list(summaries(scores, seeds))
    write_whole(options.out, (json.dumps(found, indent=1) + "\n").encode())
    return 0


def cases(studies: Sequence[str], budgets: Sequence[float]) -> list[Case]:
    """Every compressed model of the studies."""
    found = [Case("allocation", method, bits) for bits in budgets for method in METHODS]
    found += [Case("quantiser", f"uniform+{quantizer}", AT) for quantizer in QUANTIZERS]
    found += [Case("domain", method, AT, text) for text in (MIXTURE, *DOMAINS) for method in ALLOCATED]
    return [case for case in found if case.study in studies]


@dataclass(frozen=True)
class Exam:
    """The tasks, and the folder in which answers are kept."""

    model: MoEModel
    tasks: tuple[Task, ...]
    limit: int | None
    folder: Path

    def take(self, identity: str) -> dict[str, Scores]:
        """What the model, as it is now, makes of the tasks."""
        lm = LanguageModel(self.model.model, self.model.tokenizer, identity=identity)
        kept = self.folder / f"{lm.fingerprint[:16]}-{self.limit}"
        return {
            task.name: task.evaluate(lm, limit=self.limit, sink=kept / f"{task.protocol}.jsonl") for task in self.tasks
        }


def measured(
    model: MoEModel, exam: Exam, wanted: Sequence[Case], seed: int, samples: int = SAMPLES
) -> Iterator[tuple[Case, dict[str, Any], dict[str, Scores]]]:
    """Every case that has a point at its budget, with its sizes and its answers."""
    shared: dict[tuple[str, str], list[Case]] = {}
    for case in wanted:
        shared.setdefault((str(compose(case.method).owner("quantize")), case.text), []).append(case)
    for (_, text), members in shared.items():
        data = calibration_text(model, text, seed, samples)
        composed = {case: compose(case.method, seed=seed) for case in members}
        quantizer = composed[members[0]].owner("quantize")
        store = ExpertStore(model, data, quantizer.method, str(quantizer), WIDTHS)
        needs = sorted({need for each in composed.values() for need in each.allocator.needs})
        stats = calibrate(model, data, needs, store=store, widths=WIDTHS, activations=store.activations)
        for case, composition in composed.items():
            budget = BitBudget.from_label(case.bits, model.weight_count(), WIDTHS)
            try:
                allocation = composition.allocator.allocate(stats, budget)
            except BadInput:  # this method has no point at this budget
                continue
            with compress(model, allocation, store) as compressed:
                sizes = compressed.sizes
                answers = exam.take(compressed.digest())
            yield case, _row(allocation, sizes.label, sizes.stored, answers), answers


def _row(allocation: BitAllocation, label: float, stored: float, answers: Mapping[str, Scores]) -> dict[str, Any]:
    return {
        "expert_bits": allocation.expert_average,
        "label": label,
        "stored": stored,
        "histogram": allocation.histogram,
        **figures([answers]),
    }


def calibration_text(model: MoEModel, text: str, seed: int, samples: int = SAMPLES) -> CalibrationData:
    """The mixture, or text of one domain alone."""
    if text == MIXTURE:
        return calibration_data(model, samples=samples, seed=seed)
    import random

    from mcbench.reference import world as told
    from mcbench.reference.curriculum import mixture_of
    from mcbench.reference.families import reference_world

    mixture = mixture_of(dict.fromkeys(DOMAINS[text], 1.0))
    documents = told.documents(reference_world(), random.Random(f"{text} {seed}"), mixture, count=DOCUMENTS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{text}.jsonl"
        path.write_text("".join(json.dumps({"text": each.text}) + "\n" for each in documents))
        return replace(calibration_data(model, path, samples=samples, seed=seed), source=text)


def why(model: MoEModel, seed: int, samples: int = SAMPLES) -> dict[str, float]:
    """Rank correlation over experts, within their layer, of a cost with the damage that 2 bits do to the output.

    The damage is the KL divergence of the model's output when that expert alone has 2 bits by the final quantiser.
    """
    data = calibration_data(model, samples=samples, seed=seed)
    quantizer = compose("gptq+uniform").owner("quantize")
    store = ExpertStore(model, data, quantizer.method, str(quantizer), WIDTHS)
    needs = (
        "token_count",
        "routing_weight",
        "hessian_trace",
        "quantization_error:minmax",
        "quantization_error:final",
        "output_divergence:kl:final",
        "weight_error:final",
    )
    stats = calibrate(model, data, needs, store=store, widths=WIDTHS, activations=store.activations)
    damage = stats.output_divergence("kl", "final", (2,))[..., 0]  # [L, E]
    return {
        name: float(np.mean([rank_correlation(*pair) for pair in zip(cost, damage, strict=True)]))
        for name, cost in looked_at(stats).items()
    }


def looked_at(stats: CalibrationStats) -> dict[str, Any]:
    """[L, E] what allocations look at, each as a cost of 2 bits."""
    minmax, final = (stats.quantization_error(kind, (2,))[..., 0] for kind in ("minmax", "final"))
    use = share(stats.token_count) * share(stats.routing_weight) ** 1.5
    return {
        "activation frequency": stats.token_count,
        "routing weight": stats.routing_weight,
        "Hessian trace": stats.hessian_trace,
        "weight error (final quantiser)": stats.weight_error("final", (2,))[..., 0],
        "block error (min-max)": minmax,
        "block error (final quantiser)": final,
        "PMQ's product, as released": use * minmax,
        "PMQ's product, final quantiser": use * final,
    }


def rank_correlation(one: Any, other: Any) -> float:
    """Spearman's, ties by their mean rank."""
    a, b = (_ranks(np.asarray(values, float)) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else 0.0


def _ranks(values: Any) -> Any:
    return np.array([((values < v).sum() + (values <= v).sum() - 1) / 2 for v in values])


# -- what came out


class Change(NamedTuple):
    """A paired difference, its standard error over items, and its standard deviation over calibration texts."""

    value: float
    error: float | None
    spread: float | None


def figures(answers: Sequence[Mapping[str, Scores]]) -> dict[str, Any]:
    """Perplexity, every share and their mean, over several answers to the same tasks (perplexity: geometric mean)."""
    merged = {name: merge([each[name] for each in answers]) for name in answers[0]}
    shares = {name: s.value for name, s in merged.items() if s.metric != "perplexity" and s.value is not None}
    losses = [math.log(s.value) for s in merged.values() if s.metric == "perplexity" and s.value]
    return {
        "perplexity": math.exp(losses[0]) if losses else None,
        "mean": statistics.fmean(shares.values()) if shares else None,
        "shares": shares,
    }


def merge(scores: Sequence[Scores]) -> Scores:
    """Answers of several models to the same items, averaged item by item: rightness, or the loss of a window."""
    first = scores[0]
    if len(scores) == 1 or first.value is None:
        return first
    key = "loss" if "loss" in first.samples[0] else "correct"
    columns = zip(*(each.samples for each in scores), strict=True)
    samples = tuple({**rows[0], key: statistics.fmean(float(row[key]) for row in rows)} for rows in columns)
    if key == "correct":
        value = statistics.fmean(row[key] for row in samples)
    else:
        value = math.exp(math.fsum(row["loss"] for row in samples) / sum(row["tokens"] for row in samples))
    return replace(first, value=value, samples=samples)


def summaries(scores: Mapping[tuple[Case, int], dict[str, Scores]], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each case that every seed has: its figures, and differences to the baselines of its study."""
    complete = [
        case for case in dict.fromkeys(case for case, _ in scores) if all((case, seed) in scores for seed in seeds)
    ]
    for case in complete:
        mine = [scores[case, seed] for seed in seeds]
        row: dict[str, Any] = {"study": case.study, "name": case.name, "bits": case.bits, **figures(mine)}
        for base in baselines(case):
            if base in complete and base != case:
                row.setdefault("differences", {})[base.name] = changes(mine, [scores[base, seed] for seed in seeds])
        yield row


def baselines(case: Case) -> list[Case]:
    """What a case is compared with."""
    if case.study == "quantiser":
        return [replace(case, method=f"uniform+{QUANTIZERS[0]}")]
    if case.study == "domain":
        return [replace(case, text=MIXTURE)]
    return [replace(case, method=method) for method in BASES]


def changes(mine: Sequence[Mapping[str, Scores]], theirs: Sequence[Mapping[str, Scores]]) -> dict[str, Change]:
    """The difference of perplexity and of every share, and that of the mean share, averaged over calibration texts."""
    found: dict[str, Change] = {}
    for name in mine[0]:
        pooled = difference(merge([each[name] for each in mine]), merge([each[name] for each in theirs]))
        if pooled is None:
            continue
        single = [difference(a[name], b[name]) for a, b in zip(mine, theirs, strict=True)]
        values = [each.value for each in single if each is not None]
        found[name] = Change(pooled.value, pooled.standard_error, _spread(values))
    shares = [name for name in found if mine[0][name].metric != "perplexity"]
    if shares:
        errors = [found[name].error or 0.0 for name in shares]
        means = [
            statistics.fmean(d.value for name in shares if (d := difference(a[name], b[name])) is not None)
            for a, b in zip(mine, theirs, strict=True)
        ]
        middle = statistics.fmean(found[name].value for name in shares)
        found["mean"] = Change(middle, math.sqrt(math.fsum(e * e for e in errors)) / len(shares), _spread(means))
    return found


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


# -- telling


def tell(options: argparse.Namespace) -> int:
    """Writes one Markdown file for each file of figures, or prints them."""
    for path in options.figures:
        try:
            found = json.loads(path.read_text())
            text = page(found)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{str(path)!r} does not hold what `findings.py run` writes: {error!r}") from None
        if options.out is None:
            print(text, end="")  # noqa: T201
        else:
            write_whole(options.out / f"{found['model']}.md", text.encode())
    return 0


def page(found: Mapping[str, Any]) -> str:
    """Every study of one model as tables."""
    plain, seeds = found["uncompressed"], found["seeds"]
    shares = ", ".join(f"{name.removeprefix('mini-')} {100 * value:.1f}" for name, value in plain["shares"].items())
    parts = [
        f"# Findings on {found['model']}, the figures",
        "Made by `python benchmarks/findings.py tell`; do not edit. What they mean: [findings.md](../findings.md)."
        f"\nWeights {found['weights'][:12]}, {len(seeds)} calibration texts (seeds {', '.join(map(str, seeds))}), same "
        "items throughout.",
        f"In 16 bits: perplexity {plain['perplexity']:.3f}; {shares}; their mean {100 * plain['mean']:.1f} %.",
    ]
    rows = found["summary"]
    if allocation := [row for row in rows if row["study"] == "allocation"]:
        parts += _allocation(allocation, found["rows"])
    for study, title in (
        ("quantiser", f"Uniform 2 bits by quantiser; differences to {QUANTIZERS[0]}"),
        ("domain", f"Calibration text at {AT:g}; differences to the mixture"),
    ):
        if chosen := [row for row in rows if row["study"] == study]:
            parts += [f"## {title}", NOTE, _against(chosen, found["rows"])]
    if found.get("why"):
        parts += _why(found["why"])
    return "\n\n".join(parts) + "\n"


NOTE = (
    "A difference is paired item by item and averaged over the calibration texts; behind ± stands its standard error "
    "over items, in\nbrackets its standard deviation over calibration texts. An asterisk marks what lies beyond two "
    "standard errors."
)


def _allocation(rows: Sequence[Mapping[str, Any]], single: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    budgets = sorted({row["bits"] for row in rows})
    names = list(dict.fromkeys(row["name"] for row in rows))
    at = {(row["name"], row["bits"]): row for row in rows}
    yield "## Allocations at equal bits"
    yield "Perplexity (geometric mean over calibration texts) / mean of the tasks in %, by label asked for."
    yield pipe_table(
        ["allocation", *(f"{bits:g}" for bits in budgets)],
        [[name, *(_both(at[name, bits]) if (name, bits) in at else "" for bits in budgets)] for name in names],
    )
    yield NOTE
    for base in BASES:
        yield f"### Against {base}: perplexity"
        yield _grid(at, names, budgets, base, _perplexity_name(rows))
        yield f"### Against {base}: mean of the tasks, in points"
        yield _grid(at, names, budgets, base, "mean")
    yield "### Stored bits and widths, first calibration text"
    first = {(row["name"], row["bits"]): row for row in reversed(single) if row["study"] == "allocation"}
    yield pipe_table(
        ["allocation", *(f"{bits:g}" for bits in budgets)],
        [[name, *(_sizes(first.get((name, bits))) for bits in budgets)] for name in names],
    )


def _sizes(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    widths = "/".join(str(row["histogram"].get(str(w), row["histogram"].get(w, 0))) for w in WIDTHS)
    return f"{row['expert_bits']:.3f}, {row['stored']:.3f} stored, {widths}"


def _perplexity_name(rows: Sequence[Mapping[str, Any]]) -> str:
    known = [name for row in rows for base in row.get("differences", {}).values() for name in base]
    return next((name for name in known if "perplexity" in name), "mini-perplexity")


def _grid(
    at: Mapping[tuple[str, float], Mapping[str, Any]],
    names: Sequence[str],
    budgets: Sequence[float],
    base: str,
    what: str,
) -> str:
    lines = []
    for name in names:
        cells = []
        for bits in budgets:
            changed = at.get((name, bits), {}).get("differences", {}).get(base)
            cells.append(_change(changed.get(what), 1 if "perplexity" in what else 100) if changed else "")
        if any(cells):
            lines.append([name, *cells])
    return pipe_table(["allocation", *(f"{bits:g}" for bits in budgets)], lines)


def _both(row: Mapping[str, Any]) -> str:
    return f"{row['perplexity']:.3f} / {100 * row['mean']:.1f}"


def _change(change: Sequence[float | None] | None, scale: float) -> str:
    if not change or change[0] is None:
        return ""
    value, error, spread = change
    digits = 3 if scale == 1 else 1
    text = f"{scale * value:+.{digits}f}"
    if error is not None:
        text += f" ± {scale * error:.{digits}f}"
    if spread is not None:
        text += f" ({scale * spread:.{digits}f})"
    return text + "*" * (error is not None and abs(value) > 2 * error)


def _against(rows: Sequence[Mapping[str, Any]], single: Sequence[Mapping[str, Any]]) -> str:
    stored = {(row["study"], row["name"]): row["stored"] for row in reversed(single)}
    lines = []
    for row in rows:
        (changed,) = row.get("differences", {"": {}}).values()
        lines.append(
            [
                row["name"],
                f"{stored[row['study'], row['name']]:.3f}",
                f"{row['perplexity']:.3f}",
                _change(changed.get(_perplexity_name(rows)), 1),
                f"{100 * row['mean']:.1f}",
                _change(changed.get("mean"), 100),
                *(_change(changed.get(name), 100) for name in row["shares"]),
            ]
        )
    tasks = [name.removeprefix("mini-") for name in rows[0]["shares"]]
    return pipe_table(["", "stored bits", "perplexity", "difference", "mean %", "difference", *tasks], lines)


def _why(found: Sequence[Mapping[str, float]]) -> Iterable[str]:
    yield "## What ranks the experts by the damage they do"
    yield (
        "Spearman's rank correlation, within a layer and averaged over layers, of what an allocation looks at with the "
        "KL\ndivergence of the model's output when that expert alone has 2 bits. Mean and range over calibration texts."
    )
    lines = [
        [name, f"{statistics.fmean(values):+.2f}", f"{min(values):+.2f} to {max(values):+.2f}"]
        for name in found[0]
        if (values := [each[name] for each in found])
    ]
    yield pipe_table(["", "mean", "range"], lines)


# -- the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    steps = parser.add_subparsers(metavar="step", required=True)
    runs = steps.add_parser("run", help="measure", allow_abbrev=False)
    runs.add_argument("--model", default="reference", help="a name or folder")
    runs.add_argument("--studies", default=",".join(STUDIES), help="by commas")
    runs.add_argument("--bits", default=BITS, help="the papers' labels by commas, of the study of allocations")
    runs.add_argument("--seeds", default="0,1,2", help="of the calibration text, by commas")
    runs.add_argument("--samples", type=int, default=SAMPLES, help="sequences of calibration text")
    runs.add_argument("--tasks", default=TASKS)
    runs.add_argument("--limit", type=int, default=None, help="items a task")
    runs.add_argument("--runs", type=Path, default=Path("runs/findings"), help="where answers are kept")
    runs.add_argument("--out", type=Path, required=True, help="JSON with every figure")
    runs.set_defaults(step=run)
    tells = steps.add_parser("tell", help="write the tables", allow_abbrev=False)
    tells.add_argument("figures", nargs="+", type=Path, help="what `run` wrote")
    tells.add_argument("--out", type=Path, help="a folder for one page a model; printed where not given")
    tells.set_defaults(step=tell)
    return parser


if __name__ == "__main__":
    sys.exit(main())
