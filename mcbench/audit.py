"""What does not add up in the published figures: everything that follows from others of them is computed again.

A check holds a stated figure against what others give: means of rows, drops against a baseline, accuracies against the
k/n that a test set of n items allows, labels against the widths that can be mixed, sizes against parameters and bits,
changes against latencies, claims in running text against tables, and one cell against its repetitions. The tolerance is
what rounding may do: half a unit of the last digit of the stated figure and of those it follows from.

What fails a check is of one of four kinds. Only a contradiction is one between what was printed; the other kinds depend
on what we take a figure to mean, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mcbench.errors import UnknownName
from mcbench.published import SOURCES, Figure, figures
from mcbench.registry import suggest

MEAN = ("avg8_acc_as_printed", "lm_eval_avg8")
EIGHT = ("PIQA_acc", "ARC-e_acc", "ARC-c_acc", "BoolQ_acc", "HellaSwag_acc", "Winogrande_acc", "MathQA_acc", "MMLU_acc")
# items of the test sets as published; pass@10 of ten samples is right or wrong for each problem
ITEMS = {
    "PIQA_acc": 1838,
    "ARC-e_acc": 2376,
    "ARC-c_acc": 1172,
    "BoolQ_acc": 3270,
    "Winogrande_acc": 1267,
    "MathQA_acc": 2985,
    "GSM8K": 1319,
    "HumanEval_pass@10": 164,
}
Kind = Literal["contradiction", "rounding", "granularity", "unexplained"]
KINDS: dict[Kind, tuple[str, str]] = {
    "contradiction": (
        "Contradictions",
        "Printed figures that cannot all be right: a mean and its row, a drop and its scores, a claim and the table "
        "it is about, one cell printed with two values, a model and its configuration.",
    ),
    "rounding": (
        "Rounding",
        "Figures that are cut where others are rounded, rounded to fewer digits than are printed, or labels of one "
        "model used for another.",
    ),
    "granularity": (
        "Granularity",
        "Shares that no k of the n items of the published test set gives, rounded or cut. Another n would explain it: "
        "a part of the set, another split, several samples an item.",
    ),
    "unexplained": (
        "Not explained by our countings",
        "What was counted or measured is not printed, and none of the ways we tried gives the figure. That says "
        "nothing against it.",
    ),
}
TOTALS = range(12, 21)  # bits of the eight experts of a layer, 1.5 to 2.5 each, that the papers mix
KEPT_BITS = 4  # of attention beside mixed experts
GROUP_BITS = 32 / 128  # a scale and a zero of 16 bits for each group of 128 weights
THREE_BITS = 32 / 10  # what a three-bit code takes where ten share an integer of 32 bits, as the release packs them
GIB = 1024**3 / 1e9  # GB in a GiB
SLACK = 1e-9


@dataclass(frozen=True)
class Network:
    """A Mixtral by its configuration (mistralai/Mixtral-8x7B-v0.1 and 8x22B-v0.1), two experts of eight a token."""

    layers: int
    hidden: int
    intermediate: int
    keys: int
    vocabulary: int = 32000
    experts: int = 8

    @property
    def expert_weights(self) -> int:
        """Weights of all experts."""
        return self.layers * self.experts * 3 * self.hidden * self.intermediate

    @property
    def attention_weights(self) -> int:
        """Weights of queries, keys, values and output."""
        return self.layers * 2 * self.hidden * (self.hidden + self.keys)

    @property
    def embedding_weights(self) -> int:
        """Weights of the embedding and of the head."""
        return 2 * self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All weights, router and norms among them."""
        small = self.layers * self.hidden * (self.experts + 2) + self.hidden
        return self.expert_weights + self.attention_weights + self.embedding_weights + small

    @property
    def active_weights(self) -> float:
        """Weights that a token passes."""
        return self.weights - self.expert_weights * (1 - 2 / self.experts)

    def label(self, expert_bits: float) -> float:
        """Average over experts and attention, as the papers label a mixture."""
        weighted = self.expert_weights * expert_bits + self.attention_weights * KEPT_BITS
        return weighted / (self.expert_weights + self.attention_weights)


NETWORKS = {
    "Mixtral-8x7B": Network(layers=32, hidden=4096, intermediate=14336, keys=1024),
    "Mixtral-8x22B": Network(layers=56, hidden=6144, intermediate=16384, keys=1024),
}


@dataclass(frozen=True)
class Check:
    """A stated figure against what it was computed to be; `how` says from what."""

    table: str
    row: str
    what: str
    stated: float
    recomputed: float
    tolerance: float
    how: str
    figure: Figure
    kind: Kind = "contradiction"  # where it does not hold

    @property
    def difference(self) -> float:
        """Stated minus recomputed."""
        return self.stated - self.recomputed

    @property
    def holds(self) -> bool:
        """Whether rounding alone can explain the difference."""
        return abs(self.difference) <= self.tolerance + SLACK


@dataclass(frozen=True)
class Finding:
    """One distinct cell that does not add up: the checks of the gravest kind that it fails, and the tables it is in."""

    checks: tuple[Check, ...]
    tables: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        """What kind of checks they are."""
        return self.checks[0].kind


@dataclass(frozen=True)
class Audit:
    """Every check that could be made, and the figures of which none could be."""

    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that do not hold; a cell that several tables print fails once in each."""
        return tuple(check for check in self.checks if not check.holds)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What does not add up, each distinct cell once."""
        cells: dict[tuple[str, ...], list[Check]] = {}
        for check in self.failed:
            cells.setdefault(_distinct(check), []).append(check)
        found = []
        for checks in cells.values():
            gravest = next(kind for kind in KINDS if any(check.kind == kind for check in checks))
            alike = {f"{check.recomputed:.4g}": check for check in reversed(checks) if check.kind == gravest}
            tables = dict.fromkeys(check.table for check in checks)
            found.append(Finding(tuple(reversed(alike.values())), tuple(tables)))
        return tuple(found)

    @property
    def unchecked(self) -> tuple[Figure, ...]:
        """Figures that nothing else printed determines."""
        looked_at = {id(check.figure) for check in self.checks}
        return tuple(figure for figure in self.figures if figure.value and id(figure) not in looked_at)


def audit(table: str = "") -> Audit:
    """Every check of the published figures, or of one table; UnknownName where there is none of that name."""
    known = list(dict.fromkeys(figure.table for figure in figures()))
    if table and table not in known:
        raise UnknownName(f"no published table is called {table!r}; {suggest(table, known)}")
    checks = [check for kind in CHECKS for check in kind() if table in ("", check.table)]
    return Audit(tuple(checks), tuple(figure for figure in figures() if table in ("", figure.table)))


def report(audited: Audit) -> str:
    """The findings kind by kind, in Markdown; each distinct cell once."""
    found = audited.findings
    holding = len(audited.checks) - len(audited.failed)
    numbers = ", ".join(f"{sum(f.kind == kind for f in found)} {KINDS[kind][0].lower()}" for kind in KINDS)
    documents = dict.fromkeys((figure.table, SOURCES[figure.source]) for figure in audited.figures)
    blocks = [
        "# Audit of the published figures",
        f"{len(audited.checks)} checks of {len(audited.figures)} figures: {holding} hold. What does not add up are "
        f"{len(found)} distinct cells, some of them in several tables: {numbers}. {len(audited.unchecked)} figures "
        "follow from no other and could not be recomputed.\nA difference is stated minus recomputed; the tolerance is "
        "what rounding alone can do.",
    ]
    for kind, (title, meaning) in KINDS.items():
        blocks += [f"## {title}", meaning]
        cells = [finding for finding in found if finding.kind == kind]
        blocks.append(_markdown(cells) if cells else "None.")
    blocks += ["## Documents", "\n".join(f"- {table}: {source}" for table, source in documents)]
    return "\n\n".join(blocks)


def _markdown(findings: Sequence[Finding]) -> str:
    heads = ["table", "row", "figure", "stated", "recomputed", "difference", "tolerance", "from"]
    lines = []
    for finding in findings:
        c, *more = finding.checks
        how = "; ".join([c.how, *(f"also {other.recomputed:.4g}, {other.how}" for other in more)])
        numbers = [f"{c.stated:g}", f"{c.recomputed:.4g}", f"{c.difference:+.3g}", f"{c.tolerance:.2g}"]
        lines.append([", ".join(finding.tables), c.row, c.what, *numbers, how])
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])


def _distinct(check: Check) -> tuple[str, ...]:
    """What makes two failed checks be about one cell: its value, model, method, bits and measurement."""
    figure = check.figure
    if check.what == "bits":
        return "bits", figure.model, figure.bits
    apart = "".join(mark for mark in APART if mark in figure.setting)
    measured = REPEATED.get(figure.metric, figure.metric)
    # claims and shares of other settings have no other table that prints them
    setting = apart if figure.metric in (*REPEATED, *EIGHT) else figure.setting
    limit = check.row if check.what == "points lost, at most" else ""
    return figure.model, _method(figure), figure.bits, measured, setting, figure.value, limit


def _check(
    figure: Figure, recomputed: float, tolerance: float, how: str, what: str = "", kind: Kind = "contradiction"
) -> Check:
    if kind != "granularity" and _rounded_otherwise(figure.value, recomputed):
        kind = "rounding"
    allowed = tolerance + figure.rounding
    return Check(figure.table, figure.row, what or figure.metric, figure.number, recomputed, allowed, how, figure, kind)


def _rounded_otherwise(stated: str, recomputed: float) -> bool:
    """Whether the figure is the other one cut at its last digit, or rounded to a digit less and printed with a zero."""
    _, _, decimals = stated.partition(".")
    unit = 10.0 ** -len(decimals)
    cut = math.isclose(math.floor(recomputed / unit + SLACK) * unit, float(stated), abs_tol=SLACK)
    shorter = decimals.endswith("0") and round(recomputed, len(decimals) - 1) == float(stated)
    return cut or shorter


# -- one kind of check after another


def means() -> Iterator[Check]:
    """The mean of eight tasks, in the rows that print all eight, and where another table repeats it."""
    for printed in _filled(*MEAN):
        cells = _eight(printed)
        if len(cells) == len(EIGHT):
            recomputed = math.fsum(cell.number for cell in cells) / len(cells)
            yield _check(printed, recomputed, cells[0].rounding, f"mean of the eight scores of {cells[0].table}")


def _eight(printed: Figure) -> list[Figure]:
    """The eight scores behind a mean: those of its own row, else those of the row of table 2."""
    for home in dict.fromkeys((printed.table, "T2")):
        found = [
            figure
            for figure in figures()
            if figure.table == home
            and (figure.model, figure.bits) == (printed.model, printed.bits)
            and _method(figure) == _method(printed)
            and (home != printed.table or figure.setting == printed.setting)
            and figure.metric in EIGHT
        ]
        if found:
            return found
    return []


def grids() -> Iterator[Check]:
    """Accuracies against the nearest k/N; two decimals may have been rounded or cut."""
    for figure in _filled(*ITEMS):
        items = ITEMS[figure.metric]
        below = math.floor(figure.number * items / 100)
        shares = [100 * k / items for k in range(max(0, below - 1), min(items, below + 2) + 1)]
        unit = 2 * figure.rounding
        # rounded, the true share lies within half a unit; cut, up to a whole unit above
        fits = [s for s in shares if figure.number - unit / 2 - SLACK <= s < figure.number + unit]
        nearest = fits[0] if fits else min(shares, key=lambda share: abs(share - figure.number))
        allowed = max(0.0, abs(nearest - figure.number) - figure.rounding) if fits else 0.0
        how = f"nearest k/{items}" + (" (ten samples a problem)" if "pass@" in figure.metric else "")
        yield _check(figure, nearest, allowed, how, kind="granularity")


def labels() -> Iterator[Check]:
    """Labels of mixtures against the nearest that whole bits in eight experts can give, attention at four."""
    seen = set()
    for figure in figures():
        key = (figure.table, figure.model, figure.bits)
        if figure.model not in NETWORKS or key in seen or not figure.bits or float(figure.bits).is_integer():
            continue
        seen.add(key)
        reachable = {NETWORKS[figure.model].label(total / 8): total for total in TOTALS}
        stated = float(figure.bits)
        nearest = min(reachable, key=lambda label: abs(label - stated))
        how = f"experts at {reachable[nearest]}/8 bits, attention at {KEPT_BITS}"
        kind: Kind = "rounding" if _rounded_otherwise(figure.bits, nearest) else "unexplained"
        other = NETWORKS["Mixtral-8x7B"].label(reachable[nearest] / 8)
        if kind == "unexplained" and (f"{other:.2f}" == figure.bits or _rounded_otherwise(figure.bits, other)):
            kind, how = "rounding", f"{how}; the label that Mixtral-8x7B has at these widths"
        row = f"{figure.model} at {figure.bits}"
        yield Check(figure.table, row, "bits", stated, nearest, 0.005, how, figure, kind)


def drops() -> Iterator[Check]:
    """Drops against the baseline of their own table."""
    for figure in _filled("drop_as_printed"):
        mine = _one(figure.table, figure.method, figure.bits, "MMLU_acc")
        base = _one(figure.table, "FP16", "16.00", "MMLU_acc")
        how = f"{base.value} - {mine.value}"
        yield _check(figure, base.number - mine.number, base.rounding + mine.rounding, how)


def sizes() -> Iterator[Check]:
    """Numbers of parameters, and sizes in GB against the nearest of several ways to count them."""
    for figure in _filled("total_params", "activated_params_per_token", "decoder_blocks", "hidden_dim"):
        network = NETWORKS[figure.model]
        value = {
            "total_params": network.weights / 1e9,
            "activated_params_per_token": network.active_weights / 1e9,
            "decoder_blocks": network.layers,
            "hidden_dim": network.hidden,
        }[figure.metric]
        counted_so: Kind = "unexplained" if figure.metric == "activated_params_per_token" else "contradiction"
        yield _check(figure, value, 0.0, "the model's configuration", kind=counted_so)
    for figure in _filled("params", "act_params_per_token"):
        if figure.model not in NETWORKS:
            continue
        if figure.metric == "params":
            counted = _accountings(NETWORKS[figure.model], figure)
        elif figure.method == "FP16":
            counted = _in_both({"active parameters at 2 bytes": NETWORKS[figure.model].active_weights * 2 / 1e9})
        else:
            continue  # which experts a token meets is not printed
        how = min(counted, key=lambda name: abs(counted[name] - figure.number))
        # rounded or cut, the figure is what this counting gives
        fits = [name for name, size in counted.items() if _rounded_otherwise(figure.value, size)]
        how, cut = (fits[0], 2 * figure.rounding) if fits else (how, 0.0)
        told = f"{how}, nearest of {len(counted)} countings"
        yield _check(figure, counted[how], cut, told, kind="unexplained")


def _accountings(network: Network, figure: Figure) -> dict[str, float]:
    """Sizes by what is counted, each in GB and GiB.

    How many of the eight experts of a layer have three bits is not printed where widths are mixed: every number that
    gives the average, with a two-bit expert among them, is a counting of its own.
    """
    if figure.method == "FP16":
        return _in_both({"parameters at 2 bytes": network.weights * 2 / 1e9})
    bits = float(figure.bits)
    counted = network.expert_weights + network.attention_weights
    average = bits if bits.is_integer() else _nearest_label(network, bits)
    embeddings = network.embedding_weights * 2 / 1e9
    codes, scaled = (counted * each / 8e9 for each in (average, average + GROUP_BITS))
    whole = {"codes": codes, "codes, scales": scaled, "codes, scales, 16-bit embeddings": scaled + embeddings}
    for three in _three_bit_experts(network, bits):
        packed = three / 8 * network.expert_weights * (THREE_BITS - 3) / 8e9
        if bits == 3:
            packed += network.attention_weights * (THREE_BITS - 3) / 8e9  # all of it at three bits
        told = f"3-bit codes ten to an int32 ({three} of 8 experts)"
        whole[f"codes, scales, {told}"] = scaled + packed
        whole[f"codes, scales, 16-bit embeddings, {told}"] = scaled + embeddings + packed
    return _in_both(whole)


def _in_both(sizes: dict[str, float]) -> dict[str, float]:
    """Sizes in GB, and in GiB."""
    return {f"{name}, {unit}": size / by for unit, by in (("GB", 1.0), ("GiB", GIB)) for name, size in sizes.items()}


def _three_bit_experts(network: Network, bits: float) -> list[int]:
    """How many of the eight experts of a layer may have three bits, by the label."""
    if bits.is_integer():
        return [8] if bits == 3 else []
    (total,) = (t for t in TOTALS if network.label(t / 8) == _nearest_label(network, bits))
    # three, two and one bits: 3a + 2b + c = total of a + b + c = 8
    return [a for a in range(1, 9) if (c := a + 16 - total) >= 0 and 8 - a - c >= 1]


def _nearest_label(network: Network, bits: float) -> float:
    return min((network.label(total / 8) for total in TOTALS), key=lambda label: abs(label - bits))


def latencies() -> Iterator[Check]:
    """Reductions, ratios and tokens a second against latencies, whose few digits make tolerances wide.

    A reduction stands under the heading speed-up; it is held against what it is.
    """
    for figure in _filled("latency_reduction_as_printed"):
        slow, fast = _latencies(figure.setting)
        reduction = 100 * (1 - fast.number / slow.number)
        ends = [
            100 * (1 - (fast.number + a * fast.rounding) / (slow.number + b * slow.rounding))
            for a, b in ((-1, 1), (1, -1))
        ]
        tolerance = max(abs(end - reduction) for end in ends)
        how = f"1 - {fast.value}/{slow.value}"
        yield _check(figure, reduction, tolerance, how)
    slow, fast = _latencies("batch x input=1x2048")
    for figure in _filled("decode_speed"):
        latency = {"FP16": slow, "PMQ+ODP": fast}.get(figure.method)
        if latency is not None and "A100" in figure.setting:
            spread = 1 / (latency.number - latency.rounding) - 1 / latency.number
            yield _check(
                figure,
                1 / latency.number,
                spread,
                f"1/{latency.value} s of R-latency, 2048 tokens in",
                kind="unexplained",
            )
    for figure in _filled("speedup_vs_fp16"):
        if (figure.model, figure.method, figure.bits) == (fast.model, fast.method, fast.bits):
            ratio = slow.number / fast.number
            highest = (slow.number + slow.rounding) / (fast.number - fast.rounding)
            how = f"{slow.value}/{fast.value} of R-latency, 2048 tokens in"
            yield _check(figure, ratio, highest - ratio, how, kind="unexplained")


def _latencies(setting: str) -> tuple[Figure, Figure]:
    found = [f for f in figures() if f.metric == "latency_per_token" and f.setting.partition(";")[0] == setting]
    (slow,), (fast,) = ([f for f in found if (f.method == "FP16") == first] for first in (True, False))
    return slow, fast


def claims() -> Iterator[Check]:
    """Claims in running text against the tables that they are about."""
    network = NETWORKS["Mixtral-8x7B"]
    counted = network.expert_weights + network.attention_weights
    base, plain = _one("T4", "FP16", "16.00", "params"), _one("T4", "PMQ", "2.54", "params")
    smallest = _one("T4", "PMQ", "1.57", "params")
    derived: dict[tuple[str, str], tuple[float, str]] = {
        ("compression_of_model", ""): (100 * (1 - plain.number / base.number), "1 - 16-bit and 2.54-bit size of T4"),
        ("compression_ratio_low", ""): (100 * (1 - plain.number / base.number), "sizes of T4 at 2.54"),
        ("compression_ratio_high", ""): (100 * (1 - smallest.number / base.number), "sizes of T4 at 1.57"),
        ("avg_acc_loss", ""): (_mean("FP16", "16.00") - _mean("PMQ", "2.54"), "means recomputed from T2"),
        ("expert_to_attention_param_ratio", ""): (network.expert_weights / network.attention_weights, "configuration"),
        ("expert_weight_share", ""): (100 * network.expert_weights / network.weights, "configuration"),
        ("extra_avg_bits_from_4bit_nonexperts", ""): (
            network.attention_weights * (KEPT_BITS - min(TOTALS) / 8) / counted,
            "label less bits per expert at 1.5, where it is most",
        ),
        ("pmq_minus_hessian_avg8", "2.54"): (_mean("PMQ", "2.54") - _mean("Hessian", "2.54"), "means from T2"),
        ("pmq_minus_hessian_avg8", "1.57"): (_mean("PMQ", "1.57") - _mean("Hessian", "1.57"), "means from T2"),
        ("pmq169_minus_uni2_mmlu5", ""): (
            _one("T6", "PMQ", "1.69", "MMLU_acc").number - _one("T6", "Uniform-GPTQ", "2.00", "MMLU_acc").number,
            "accuracies of T6",
        ),
        ("mmlu_drop", ""): (
            _one("T2", "FP16", "16.00", "MMLU_acc").number - _one("T2", "PMQ", "2.54", "MMLU_acc").number,
            "zero-shot accuracies of T2, as the text says zero-shot",
        ),
        ("weight_reduction", ""): (16 / 2.57, "16 / 2.57 bits"),
    }
    for figure in figures():
        for key in ((figure.metric, figure.bits), (figure.metric, "")):
            if key in derived and figure.value:
                value, how = derived[key]
                counted_so: Kind = "unexplained" if figure.metric in COUNTED else "contradiction"
                yield _check(figure, value, 0.005, how, kind=counted_so)
                break
    (limit,) = _filled("odp_acc_drop_upper")
    for pruned in (f for f in figures() if (f.table, f.method, f.metric) == ("T4", "PMQ+ODP", "lm_eval_avg8")):
        whole = next(
            f
            for f in figures()
            if (f.table, f.model, f.method, f.bits, f.metric) == ("T4", pruned.model, "PMQ", pruned.bits, pruned.metric)
        )
        lost = whole.number - pruned.number
        # an upper limit: nothing is wrong where less was lost
        how = f"{whole.value} - {pruned.value} of T4"
        row, rounding = f"{pruned.model} PMQ+ODP {pruned.bits}", whole.rounding + pruned.rounding
        stated = max(limit.number, lost) if lost <= limit.number else limit.number
        recomputed = stated if lost <= limit.number else lost
        yield Check(limit.table, row, "points lost, at most", stated, recomputed, rounding, how, limit)


COUNTED = ("expert_to_attention_param_ratio", "expert_weight_share", "extra_avg_bits_from_4bit_nonexperts")


def shares() -> Iterator[Check]:
    """Shares of pruned experts against what the rule gives in every layer of a top-2 model."""
    for figure in _filled("avg_pruned_params"):
        if figure.setting == "threshold=0.3":
            yield _check(
                figure, 100 * 0.3 / 2, 0.0, "30 % of tokens lose one of two experts in every layer", kind="unexplained"
            )
        elif _method(figure) == "skip below the median":
            yield _check(
                figure, 100 * 0.5 / 2, 0.0, "below the median: half of the tokens, in every layer", kind="unexplained"
            )


def repetitions() -> Iterator[Check]:
    """A cell that is printed more than once against its first printing."""
    first: dict[tuple[str, ...], Figure] = {}
    for figure in figures():
        key = _cell(figure)
        if key is None or not figure.value:
            continue
        if (earlier := first.setdefault(key, figure)) is not figure:
            how = f"the same cell in {earlier.table}{'' if earlier.table != figure.table else ', earlier row'}"
            roundings = {figure.rounding, earlier.rounding}  # as many digits of one number are the same digits
            tolerance = max(roundings) if len(roundings) > 1 else 0.0
            what, stated, known = figure.metric, figure.number, earlier.number
            cut = _rounded_otherwise(figure.value, known) or _rounded_otherwise(earlier.value, stated)
            kind: Kind = "rounding" if cut else "contradiction"
            yield Check(figure.table, figure.row, what, stated, known, tolerance, how, figure, kind)


REPEATED = {
    "ppl": "perplexity",
    "ppl_wikitext2": "perplexity",
    "ppl_wikitext2_weight_only_pruning": "perplexity",
    "avg8_acc_as_printed": "mean of eight",
    "lm_eval_avg8": "mean of eight",
    "params": "size",
    "loading_memory": "size",
    "act_params_per_token": "active size",
    "avg_pruned_params": "pruned",
    "drop_as_printed": "drop",
    "MMLU_acc": "MMLU",
    "GSM8K": "GSM8K",
    "HumanEval_pass@10": "HumanEval",
}
APART = ("alpha=", "mu=0", "seqlen=512", "seqlen=1024", "seqlen=4096", "OmniQuant", "5-shot", "drop ")


def _cell(figure: Figure) -> tuple[str, ...] | None:
    """What makes two figures the same measurement; None for what is not repeated."""
    if figure.metric not in REPEATED:
        return None
    apart = [mark for mark in APART if mark in figure.setting]
    detail = figure.setting if apart and apart[0] in ("alpha=", "mu=0") else "".join(apart)
    return figure.model, _method(figure), figure.bits, REPEATED[figure.metric], detail


def _method(figure: Figure) -> str:
    """One name for one method, which the tables write in several ways."""
    name = figure.method
    if name.startswith("NAEE-skip"):
        return "skip by ratio" if "mu=0" in figure.setting else "skip below the median"
    if name == "ODP" or name.startswith("ODP("):
        return "PMQ+ODP"
    return {"Uniform-GPTQ": "Uniform", "Hessian(HAWQ-V2)": "Hessian"}.get(name, name)


def _filled(*metrics: str) -> list[Figure]:
    return [figure for figure in figures() if figure.metric in metrics and figure.value]


def _one(table: str, method: str, bits: str, metric: str) -> Figure:
    """A figure of Mixtral-8x7B."""
    model = "Mixtral-8x7B"
    key = (table, model, method, bits, metric)
    return next(f for f in figures() if (f.table, f.model, f.method, f.bits, f.metric) == key)


def _mean(method: str, bits: str) -> float:
    """The recomputed mean of a row of table 2."""
    cells = [f for f in figures() if f.table == "T2" and f.bits == bits and _method(f) == method and f.metric in EIGHT]
    return math.fsum(cell.number for cell in cells) / len(cells)


CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    means, grids, labels, drops, sizes, latencies, claims, shares, repetitions,
)  # fmt: skip
