"""What a run prints when it is done: bits four ways, every task beside the uncompressed model, time and size."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from mcbench.datasets import SAMPLE, VERIFIED, Found
from mcbench.overlap import DETAIL
from mcbench.record import Record, Result, Routing
from mcbench.source import PLAIN
from mcbench.suites import SuiteScore, headline, suite_means
from mcbench.task import Scores
from mcbench.witness import ROW as WITNESS
from mcbench.witness import merged

COLUMNS = 100  # fits a terminal, and a page when printed
UNBROKEN = "\u00a0"  # a space at which no line is broken
FALLBACKS = 12  # remarks of a run that are shown; the record has each
SHOWN_LAYERS = 6  # a model of more MoE layers shows the sum alone; the record has each
CHANCE = "~"  # marks a difference that chance could explain
CHANCE_ERRORS = 1.96  # standard errors: 95 % of such differences come about without any cause


def table(record: Record) -> str:
    """The record as plain text of at most 100 columns, for a terminal or a file."""
    model = record.model
    experts = f"{model.layers} layers of {model.experts} experts, top-{model.top_k}" if model.layers else "dense"
    blocks = [f"{record.method} on {model.name} ({model.architecture}, {experts})", _bits(record)]
    if record.results:
        blocks.append(_results(record))
        blocks += [means] if (means := _means(record.results)) else []
    if record.routing is not None:
        blocks.append(_routing(record.routing, record.results))
    blocks += [notes] if (notes := _notes(record)) else []
    return "\n\n".join(blocks)


def data_table(served: Sequence[tuple[str, Sequence[Found]]]) -> str:
    """Which tasks a folder of published sets can serve, with the rows found beside the official ones and whether they
    are those that were published, where that can be told."""
    rows = [
        [
            task if at == 0 else "",
            found.split,
            "" if found.rows is None else str(found.rows),
            "any" if found.official is None else str(found.official),
            f"{found.source}: {found.content}" if found.source else found.problem,
        ]
        for task, looks in served
        for at, found in enumerate(looks)
    ]
    able = sum(all(found.rows is not None for found in looks) for _, looks in served)
    table = aligned(
        ["task", "split", "rows", "official", "found and its content, or what is needed"], rows, left=2, last_left=True
    )
    refused = {found.problem for _, looks in served for found in looks if found.refused}
    broken = f"; {len(refused)} set{'s' * (len(refused) > 1)} with files that cannot be used" if refused else ""
    return f"{table}\n\n{able} of {len(served)} tasks can run from this folder{broken}"


def score_line(scores: Scores) -> str:
    """One task's score, or why there is none."""
    result = Result.of(scores)
    if result.skipped:
        return f"{result.task}: skipped, {result.skipped}"
    return (
        f"{result.task}  {metric_name(result)} {with_error(result, result.value, result.standard_error)}  n {result.n}"
    )


def number(result: Result, value: float | None, *, sign: bool = False) -> str:
    """A value of this result's metric as it is shown: shares in per cent, the rest as it is, unknown as nothing."""
    if value is None or math.isnan(value):
        return ""
    plus = "+" if sign else ""
    if is_share(result):
        return f"{100 * value:{plus}.1f}"
    return f"{value:{plus}{_precision(value)}}"


def with_error(result: Result, value: float | None, error: float | None, *, sign: bool = False) -> str:
    """A value with its standard error, where that is known."""
    shown, spread = number(result, value, sign=sign), number(result, error)
    if value is not None and error is not None and spread and not is_share(result):
        spread = f"{error:{_precision(value)}}"  # a figure and its error have the same last digit
    return f"{shown} ± {spread}" if shown and spread else shown


def _precision(value: float) -> str:
    """How a figure that is no share is written: with three decimals, whole from a thousand on, then by its power."""
    return ".3f" if abs(value) < 1000 else ".0f" if abs(value) < 1e7 else ".3g"


def is_share(result: Result) -> bool:
    """Whether the metric is a share of the items; where lower is better it is a perplexity or a loss."""
    return result.higher_is_better


def metric_name(result: Result) -> str:
    """The metric with its unit."""
    return f"{result.metric} %" if is_share(result) else result.metric


def bit_figure(bits: float) -> str:
    """An average number of bits, with as many digits as tell two budgets of the papers apart."""
    return f"{bits:.3f}"


def _bits(record: Record) -> str:
    bits = record.bits
    figures = {
        "routed experts": bits.expert,
        "label": bits.label,
        "whole model": bits.whole_model,
        "stored": bits.stored,
    }
    shown = {head: bit_figure(figure) for head, figure in figures.items()}
    if bits.asked is not None:
        shown = {f"asked ({'label' if bits.asked_as == 'label' else 'experts'})": f"{bits.asked:g}", **shown}
    return aligned(["bits per weight", *shown], [["", *shown.values()]], left=1)


def _routing(routing: Routing, results: Sequence[Result]) -> str:
    """What ran of what the router chose, and each task beside the same weights under the router alone."""
    phases = {"prefill": routing.prefill, "decode": routing.decode, **routing.modalities}
    layers = range(len(routing.prefill.chosen))
    rows = [
        [name, str(pairs.tokens), _percent(pairs.share)]
        + [_percent(sum(pairs.protected) / (pairs.tokens * len(routing.layers))) if pairs.protected else ""]
        + [_percent(pairs.executed[n] / pairs.chosen[n]) for n in layers if len(layers) <= SHOWN_LAYERS]
        for name, pairs in phases.items()
        if pairs.tokens and all(pairs.chosen)
    ]
    each = [f"layer {n}" for n in layers if len(layers) <= SHOWN_LAYERS]
    tables = (
        [aligned(["pairs executed", "tokens", "all layers", "protected tokens", *each], rows, left=1)] if rows else []
    )
    by_task = {result.task: result for result in results}
    compared = [
        [
            plain.task,
            number(result, plain.value),
            number(result, result.value),
            with_error(result, plain.difference, plain.difference_error, sign=True),
            CHANCE if plain.difference is not None and _within_chance(plain.difference, plain.difference_error) else "",
        ]
        for plain in routing.unpruned
        if plain.value is not None and (result := by_task[plain.task]).value is not None
    ]
    if compared:
        heads = [f"under {routing.policy}", "router alone", "pruned", "difference ± s.e.", ""]
        tables.append(aligned(heads, compared, left=1))
    return "\n\n".join(tables)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def original_name(record: Record) -> str:
    """What the uncompressed model is called: 16 bits, or the precision of its files where that is another."""
    return PLAIN if record.model.source is None else record.model.source.precision


def _results(record: Record) -> str:
    results = record.results
    compared = any(result.baseline is not None for result in results)
    heads = ["task", "metric", "n", "chance", *([original_name(record)] if compared else []), "score ± s.e."]
    rows = [
        [
            result.task,
            metric_name(result),
            str(result.n) if result.n else "",
            number(result, result.chance),
            *([number(result, result.baseline)] if compared else []),
            with_error(result, result.value, result.standard_error) or "skipped",
            *(_difference(result) if compared else []),
        ]
        for result in results
    ]
    return aligned([*heads, *(["difference ± s.e.", ""] if compared else [])], rows, left=2)


def _means(results: Sequence[Result]) -> str:
    """The mean difference, and the mean of each suite all of whose tasks were asked, blank where one is incomplete."""
    lines = []
    if (found := headline(results)) is not None:
        told = f"{_points(found.value, found.standard_error)} over {len(found.tasks)} tasks of shares"
        if found.without is not None:
            _, value, error = found.without
            told += f"; {_points(value, error)} without {found.without.task}, which contributes most"
        lines.append(note("difference", told))
        lines += [note("no room", f"{task}, not in the mean difference: {why}") for task, why in found.left_out.items()]
    for mean in suite_means():
        if mean.asked(results):
            shown = suite_figure(mean.score(results)) or _blank(mean.why_blank(results))
            lines.append(note("mean", f"{mean.wording}: {shown}"))
            lines += [
                note("no room", f"{task}, counted in the {mean.suite} mean as papers do: {why}")
                for task, why in mean.without_room(results).items()
            ]
    return "\n".join(lines)


def _points(value: float, error: float) -> str:
    """A mean difference of shares in percentage points."""
    return f"{100 * value:+.1f} ± {100 * error:.1f} points"


def suite_figure(score: SuiteScore | None) -> str:
    """The mean of a suite in per cent with its standard error; nothing where it has none."""
    return f"{100 * score.value:.1f} ± {100 * score.standard_error:.1f}" if score else ""


def _blank(why: str) -> str:
    return f"blank, for {why}"


def _difference(result: Result) -> tuple[str, str]:
    shown = with_error(result, result.difference, result.difference_error, sign=True)
    return shown, CHANCE if shown and could_be_chance(result) else ""


def could_be_chance(result: Result) -> bool:
    """Whether the paired difference lies within 1.96 of its standard errors of nothing, or its error is unknown."""
    return _within_chance(result.difference, result.difference_error)


def _within_chance(difference: float | None, error: float | None) -> bool:
    return difference is None or error is None or abs(difference) <= CHANCE_ERRORS * error


def _notes(record: Record) -> str:
    return "\n".join(note(name, text) for name, text in [*_caveats(record), *_facts(record)])


def _caveats(record: Record) -> Iterator[tuple[str, str]]:
    """What a reader must know before believing the numbers."""
    if any(result.difference is not None and could_be_chance(result) for result in record.results):
        yield CHANCE, f"within {CHANCE_ERRORS} standard errors of no difference, so it may be chance"
    for result in record.results:
        if result.skipped:
            yield "skipped", f"{result.task}: {result.skipped}"
        if (share := asked_share(result)) is not None:
            yield "calibrated", f"on text that {result.task} asks: {100 * share:.0f} % of the calibration text"
        if result.truncated:
            yield "truncated", f"{result.task}: {result.truncated} samples lost tokens to the model's window"
    yield from _data_caveats(record.results)
    if record.routing is not None:
        yield from _routing_caveats(record.routing)
    if record.partial:
        yield "partial", "--limit left items out, so the leaderboard leaves this record out"
    for text in record.fallbacks[:FALLBACKS]:
        yield "fallback", text
    if (more := len(record.fallbacks) - FALLBACKS) > 0:
        yield "fallback", f"and {more} more, see the record"


def _data_caveats(results: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """Which tasks were asked on rows that are not known to be the published ones, by what is known of them."""
    found: dict[str, list[str]] = {}
    for result in results:
        for split, source in result.details.get("data", {}).items():
            content = source.get("content", VERIFIED)
            if content == SAMPLE:
                content = f"{SAMPLE} of {source['official']} rows" if source["official"] else SAMPLE
            if content != VERIFIED:
                found.setdefault(content, []).append(f"{result.task} ({split})")
    for content, tasks in found.items():
        yield "data", f"{', '.join(tasks)}: {content}"


def _routing_caveats(routing: Routing) -> Iterator[tuple[str, str]]:
    if not routing.causal:
        yield (
            "not causal",
            "the policy looks at later tokens: scores of whole texts see what generation would not have, and text that "
            "is generated follows the policy's rule for decoding",
        )
    if routing.uncounted:
        yield (
            "pairs",
            f"counted in part only, as samples of an interrupted run were kept: {', '.join(routing.uncounted)}",
        )


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    if record.model.layers:
        widths = record.allocation.histogram.items()
        yield "experts", ", ".join(f"{n} at {width} bit{'s' * (width > 1)}" for width, n in widths)
    if (source := record.model.source) is not None:
        parts = dict.fromkeys(source.components.values())
        files = f"{len(source.files)} file{'s' * (len(source.files) > 1)}"
        yield "source", f"{source.precision}, {_megabytes(source.total)} in {files}, stored in {', '.join(parts)}"
        yield from (("left out", text) for text in source.left_out)
    sizes = record.bits.bytes
    yield "weights", _sum(((name, _megabytes(size)) for name, size in sizes.items()), _megabytes(sum(sizes.values())))
    if (routing := record.routing) is not None and routing.active_bytes_per_token is not None:
        active, full = routing.active_bytes_per_token, routing.router_bytes_per_token or 0.0
        yield "active", f"{active / 1e6:.3f} MB of weights read per token, {full / 1e6:.3f} MB under the router alone"
    if record.stages:
        seconds = record.stages
        yield "time", _sum(((name, f"{t:.1f} s") for name, t in seconds.items()), f"{sum(seconds.values()):.1f} s")
    if found := merged(result.details.get(WITNESS, {}) for result in record.results):
        yield (
            "witness",
            f"{found['requests']} answers computed once more, alone and in the plain way: at most "
            f"{found['nats_per_token']:.1e} nats a token apart (tolerance {found['tolerance']:.0e})",
        )
    if record.isolation:
        yield "programs", f"run with {record.isolation}"


def _sum(parts: Iterable[tuple[str, str]], total: str) -> str:
    listed = ", ".join(f"{name} {amount}" for name, amount in parts)
    return f"{total}: {listed}".replace(" ", UNBROKEN).replace(f",{UNBROKEN}", ", ")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def asked_share(result: Result) -> float | None:
    """Which share of the calibration text the task asks; None where that is no more than set phrases, or unknown."""
    share = result.details.get(DETAIL)
    return share if isinstance(share, float) else None


def note(name: str, text: str) -> str:
    """A remark below a table: its name, then the text filled to the width of a page."""
    filled = textwrap.fill(text, COLUMNS, initial_indent=f"{name:<10} ", subsequent_indent=" " * 11)
    return filled.replace(UNBROKEN, " ")


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int, last_left: bool = False) -> str:
    """A table in plain text: the first `left` columns (and the last, if asked) to the left, the others to the right."""
    to_left = {*range(left), *([len(heads) - 1] if last_left else [])}
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width * bool(head) for head, width in zip(heads, widths, strict=True)], *rows]
    return "\n".join(
        "  ".join(f"{cell:{'<' if at in to_left else '>'}{widths[at]}}" for at, cell in enumerate(line)).rstrip()
        for line in lines
    )
