"""What the papers print of size, memory and time, beside what a profile measured of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mcbench.leaderboard import pipe_table
from mcbench.published import Figure
from mcbench.speed import DEQUANTISED, HEADLINE, Cell, Profile, within


class Cost(NamedTuple):
    """One number of a profile and the published metric that it stands beside, if any; an exact one has no noise."""

    metric: str
    head: str
    of: Callable[[Profile], float | None]
    digits: int = 2
    exact: bool = False


def costs() -> tuple[Cost, ...]:
    """The columns of size, memory and speed: bytes in MB, times those of the first cell of the profile."""
    return (
        Cost("params", "file MB", lambda p: _mega(sum(p.stored_bytes.values())), exact=True),
        Cost("act_params_per_token", "stored MB read per token", lambda p: _mega(p.active_stored_bytes), 3, True),
        Cost("loading_memory", "MB held when loaded", lambda p: _mega(p.load.held_bytes)),
        Cost("", "MB of weights when run", lambda p: _mega(p.weight_bytes)),
        Cost("peak_gpu_memory", "peak MB of decode", lambda p: _mega(_cell(p).phase("subject", "decode").peak_bytes)),
        Cost("decode_speed", "decode tokens/s", lambda p: _cell(p).phase("subject", "decode").tokens_per_second, 0),
        Cost("speedup_vs_fp16", "decode ÷ eager uncompressed", lambda p: _cell(p).ratio("decode", "eager")),
        Cost("", "decode A/A %", lambda p: _percent(_cell(p).noise("decode")), 1),
    )


def _mega(size: float | None) -> float | None:
    return None if size is None else size / 1e6


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _cell(profile: Profile) -> Cell:
    """The papers' cell, or the first there is."""
    return profile.cell(HEADLINE) or profile.cells[0]


def cell_by_cell(figures: Sequence[Figure], profile: Profile) -> str:
    """Latencies of a table whose settings are cells, batch x input, beside those of the profile, in Markdown.

    A latency is the time of one decode step over the sequences of the batch; the reduction is 1 less its quotient.
    """
    printed: dict[tuple[int, int], dict[str, str]] = {}
    columns: list[str] = []
    for figure in figures:
        if found := re.search(r"=(\d+)x(\d+)", figure.setting):
            name = f"{figure.method} {figure.bits}: {figure.metric} {figure.unit}"
            printed.setdefault((int(found[1]), int(found[2])), {})[name] = figure.value
            columns = list(dict.fromkeys([*columns, name]))
    heads = ["batch x input + output", *(f"published, {name}" for name in columns)]
    heads += [f"measured, ms per token: {name}" for name in ("eager uncompressed", "best uncompressed", profile.method)]
    heads += ["reduction of eager %", "of best %", "A/A %"]
    body, reasons = [], []
    counts = {"holds": 0, "contradicted": 0, "cannot tell": 0}
    for cell in profile.cells:
        beside = printed.get((cell.batch, cell.prompt), {})
        phases = {arm: cell.phase(arm, "decode") for arm in ("eager", "best", "subject")}
        times = [None if not (speed := phase.tokens_per_second) else 1000 / speed for phase in phases.values()]
        ratios = [cell.ratio("decode", "eager"), cell.ratio("decode", "best")]
        noise = cell.noise("decode")
        body.append(
            [
                str(cell.shape),
                *(beside.get(name, "") for name in columns),
                *("" if t is None else f"{t:.3f}" for t in times),
                *("" if r is None else f"{100 * (1 - 1 / r):.1f}" for r in ratios),
                "" if noise is None else f"{100 * noise:.1f}",
            ]
        )
        reasons += [f"- {arm} at {cell.shape}: {phase.reason}" for arm, phase in phases.items() if phase.reason]
        if beside and (ratio := ratios[0]) is not None:
            clear = noise is not None and not within(ratio, noise)
            counts["cannot tell" if not clear else "holds" if ratio > 1 else "contradicted"] += 1
    said = ", ".join(f"{name} in {n}" for name, n in counts.items())
    return "\n\n".join(
        [
            f"Measured: {profile.method} on {profile.machine}; median of {profile.repeats} after {profile.warmup}.",
            pipe_table(heads, body),
            *(["\n".join(reasons)] if reasons else []),
            "## Does the order hold?",
            "In every published cell the compressed model is the faster. Beside the uncompressed model through eager\n"
            f"experts, beyond what the same model was from itself (A/A), that {said} of the cells that ran.",
            f"Note: {DEQUANTISED}.",
        ]
    )
