"""What does not add up in the published figures: everything that follows from others of them is computed again.

A check holds a stated figure against what others give: means of rows, drops against a baseline, accuracies against the
k/N that a test set of N allows, labels against the widths that can be mixed, sizes against parameters and bits, changes
and speed-ups against latencies, claims in running text against tables, and one cell against its repetitions. The
tolerance is what rounding may do: half a unit of the last digit of the stated figure and of those it follows from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
TOTALS = range(12, 21)  # bits of the eight experts of a layer, 1.5 to 2.5 each, that the papers mix
KEPT_BITS = 4  # of attention beside mixed experts
GROUP_BITS = 32 / 128  # a scale and a zero of 16 bits for each group of 128 weights
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

    @property
    def difference(self) -> float:
        """Stated minus recomputed."""
        return self.stated - self.recomputed

    @property
    def holds(self) -> bool:
        """Whether rounding alone can explain the difference."""
        return abs(self.difference) <= self.tolerance + SLACK


@dataclass(frozen=True)
class Audit:
    """Every check that could be made, and the figures of which none could be."""

    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]

    @property
    def findings(self) -> tuple[Check, ...]:
        """What does not add up."""
        return tuple(check for check in self.checks if not check.holds)

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
    """The findings table by table, in Markdown."""
    holding = len(audited.checks) - len(audited.findings)
    blocks = [
        "# Audit of the published figures",
        f"{len(audited.checks)} checks of {len(audited.figures)} figures: {holding} hold, {len(audited.findings)} do "
        f"not; {len(audited.unchecked)} figures follow from no other and could not be recomputed.\nA difference is "
        "stated minus recomputed; the tolerance is what rounding alone can do.",
    ]
    for name in dict.fromkeys(figure.table for figure in audited.figures):
        checks = [check for check in audited.checks if check.table == name]
        found = [check for check in checks if not check.holds]
        source = SOURCES[next(figure.source for figure in audited.figures if figure.table == name)]
        alone = sum(figure.table == name for figure in audited.unchecked)
        blocks.append(f"## {name} ({source})")
        blocks.append(
            f"Checks: {len(checks)}. Do not add up: {len(found)}. Figures that could not be recomputed: {alone}."
        )
        blocks += [_markdown(found)] if found else []
    return "\n\n".join(blocks)


def _markdown(checks: Sequence[Check]) -> str:
    heads = ["row", "figure", "stated", "recomputed", "difference", "tolerance", "from"]
    lines = [
        [c.row, c.what, f"{c.stated:g}", f"{c.recomputed:.4g}", f"{c.difference:+.3g}", f"{c.tolerance:.2g}", c.how]
        for c in checks
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])


def _check(figure: Figure, recomputed: float, tolerance: float, how: str, what: str = "") -> Check:
    what = what or figure.metric
    return Check(figure.table, figure.row, what, figure.number, recomputed, tolerance + figure.rounding, how, figure)


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
        yield _check(figure, nearest, allowed, how)


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
        row = f"{figure.model} at {figure.bits}"
        yield Check(figure.table, row, "bits", stated, nearest, 0.005, how, figure)


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
        yield _check(figure, value, 0.0, "the model's configuration")
    for figure in _filled("params", "act_params_per_token"):
        if figure.model not in NETWORKS:
            continue
        if figure.metric == "params":
            counted = _accountings(NETWORKS[figure.model], figure)
        elif figure.method == "FP16":
            counted = {"active parameters at 2 bytes": NETWORKS[figure.model].active_weights * 2 / 1e9}
        else:
            continue  # which experts a token meets is not printed
        how = min(counted, key=lambda name: abs(counted[name] - figure.number))
        more = f", nearest of {len(counted)} countings" if len(counted) > 1 else ""
        yield _check(figure, counted[how], 0.0, f"{how}{more}")


def _accountings(network: Network, figure: Figure) -> dict[str, float]:
    """Gigabytes by what is counted; the true size of three-bit codes depends on the packing and is left out."""
    if figure.method == "FP16":
        return {"parameters at 2 bytes": network.weights * 2 / 1e9}
    bits = float(figure.bits)
    counted = network.expert_weights + network.attention_weights
    average = bits if bits.is_integer() else _nearest_label(network, bits)
    embeddings = network.embedding_weights * 2 / 1e9
    codes, scaled = (counted * each / 8e9 for each in (average, average + GROUP_BITS))
    whole = {"codes": codes, "codes, scales": scaled, "codes, scales, 16-bit embeddings": scaled + embeddings}
    return {f"{name}, {unit}": size / by for unit, by in (("GB", 1.0), ("GiB", GIB)) for name, size in whole.items()}


def _nearest_label(network: Network, bits: float) -> float:
    return min((network.label(total / 8) for total in TOTALS), key=lambda label: abs(label - bits))


def latencies() -> Iterator[Check]:
    """Reductions, speed-ups and tokens a second against latencies, whose few digits make tolerances wide."""
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
        faster = 100 * (slow.number / fast.number - 1)
        lowest = 100 * ((slow.number - slow.rounding) / (fast.number + fast.rounding) - 1)
        how = f"{slow.value}/{fast.value} - 1, as the heading says speed-up"
        yield _check(figure, faster, faster - lowest, how, "speed-up in %")
    slow, fast = _latencies("batch x input=1x2048")
    for figure in _filled("decode_speed"):
        latency = {"FP16": slow, "PMQ+ODP": fast}.get(figure.method)
        if latency is not None and "A100" in figure.setting:
            spread = 1 / (latency.number - latency.rounding) - 1 / latency.number
            yield _check(figure, 1 / latency.number, spread, f"1/{latency.value} s of R-latency, 2048 tokens in")
    for figure in _filled("speedup_vs_fp16"):
        if (figure.model, figure.method, figure.bits) == (fast.model, fast.method, fast.bits):
            ratio = slow.number / fast.number
            highest = (slow.number + slow.rounding) / (fast.number - fast.rounding)
            how = f"{slow.value}/{fast.value} of R-latency, 2048 tokens in"
            yield _check(figure, ratio, highest - ratio, how)


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
                yield _check(figure, *_between(derived[key]))
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


def _between(derived: tuple[float, str]) -> tuple[float, float, str]:
    value, how = derived
    return value, 0.005, how


def shares() -> Iterator[Check]:
    """Shares of pruned experts against what the rule gives in every layer of a top-2 model."""
    for figure in _filled("avg_pruned_params"):
        if figure.setting == "threshold=0.3":
            yield _check(figure, 100 * 0.3 / 2, 0.0, "30 % of tokens lose one of two experts in every layer")
        elif _method(figure) == "skip below the median":
            yield _check(figure, 100 * 0.5 / 2, 0.0, "below the median: half of the tokens, in every layer")


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
            yield Check(figure.table, figure.row, what, stated, known, tolerance, how, figure)


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
