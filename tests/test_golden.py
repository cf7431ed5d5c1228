"""The allocations that MC-MoE published come out of its published statistics, layer by layer."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcbench.allocation import BitBudget, Solver, WeightCount, cheapest
from mcbench.composition import METHODS
from mcbench.method import Method
from mcbench.stats import Array, CalibrationStats

RELEASE = Path(__file__).parent / "fixtures" / "mcmoe-release"
COLLECTED = Path(__file__).parents[2] / "shared" / "published" / "mcmoe_release"
MIXTRAL = WeightCount(32, 8, 3 * 4096 * 14336, 1_342_177_280, 0, 32 * 8 * 4096, 262_410_240)


@pytest.fixture(scope="module")
def stats() -> CalibrationStats:
    rows = list(csv.DictReader((RELEASE / "statistics.csv").open()))

    def column(name: str) -> Array:
        return np.array([float(row[name]) for row in rows]).reshape(32, 8)  # [L, E]

    tables = {
        "token_count": column("token_count").astype(np.int64),
        "routing_weight": column("routing_weight"),
        "quantization_error:minmax": np.stack(
            [column(name) for name in ("error_1_bit", "error_2_bits", "error_3_bits")], axis=2
        ),
    }
    return CalibrationStats(MIXTRAL, (1, 2, 3), tokens=262_144, top_k=2, tables=tables)


@pytest.fixture(scope="module")
def published() -> dict[int, Array]:
    """[L, E] widths by the total of a layer."""
    layers: dict[int, list[list[int]]] = {}
    for row in csv.DictReader((RELEASE / "allocations.csv").open()):
        layers.setdefault(int(row["layer_total"]), []).append([int(width) for width in row["widths"]])
    return {total: np.array(widths) for total, widths in layers.items()}


def test_what_was_published_spends_its_totals_and_routes_every_token_twice(
    stats: CalibrationStats, published: dict[int, Array]
) -> None:
    assert (stats.token_count.sum(axis=1) == 2 * 262_144).all()
    assert {total: set(widths.sum(axis=1)) for total, widths in published.items()} == {
        total: {total} for total in (12, 14, 16, 17, 18, 20)
    }


def test_the_figures_are_those_that_were_collected(stats: CalibrationStats, published: dict[int, Array]) -> None:
    if not COLLECTED.is_dir():
        pytest.skip("compares the shipped figures with a copy read from MC-MoE's release, in ../shared/published")
    rows = list(csv.DictReader((COLLECTED / "expert_stats.csv").open()))
    assert [float(row["act_count"]) for row in rows] == list(stats.token_count.ravel())
    assert [float(row["act_weight_sum"]) for row in rows] == list(stats.routing_weight.ravel())
    errors = [[float(row[f"eps_{bits}bit"]) for bits in (1, 2, 3)] for row in rows]
    assert errors == stats.quantization_error("minmax").reshape(256, 3).tolist()
    for row in csv.DictReader((COLLECTED / "bit_allocations.csv").open()):
        widths = published[int(row["total_bits_per_layer"])][int(row["layer"])]
        assert [int(row[f"e{expert}"]) for expert in range(8)] == list(widths)


def same_layers(method: Method, stats: CalibrationStats, published: dict[int, Array]) -> dict[int, int]:
    found = {
        total: method.allocate(stats, BitBudget.from_expert_bits(total / 8, MIXTRAL)).widths for total in published
    }
    return {total: int((found[total] == widths).all(axis=1).sum()) for total, widths in published.items()}


@pytest.mark.parametrize("solver", ["dp", "ilp"])
def test_pmq_with_gamma_1_gives_every_published_allocation(
    solver: Solver, stats: CalibrationStats, published: dict[int, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(solver, monkeypatch)
    assert sum(len(widths) for widths in published.values()) == 192
    assert same_layers(pmq(gamma=1.0), stats, published) == dict.fromkeys(published, 32)


@pytest.mark.parametrize("solver", ["dp", "ilp"])
def test_pmq_with_the_papers_gamma_2_gives_138_of_192(
    solver: Solver, stats: CalibrationStats, published: dict[int, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(solver, monkeypatch)
    assert same_layers(pmq(gamma=2.0), stats, published) == {12: 25, 14: 24, 16: 18, 17: 21, 18: 26, 20: 24}


def test_the_default_of_pmq_is_what_was_published(stats: CalibrationStats, published: dict[int, Array]) -> None:
    assert same_layers(pmq(), stats, published) == dict.fromkeys(published, 32)


def test_without_the_floors_of_eq_4_even_totals_come_out_differently(
    stats: CalibrationStats, published: dict[int, Array]
) -> None:
    same = same_layers(pmq(floor=0), stats, published)
    assert same[17] == 32
    assert all(layers < 32 for total, layers in same.items() if total % 2 == 0)


@pytest.mark.parametrize(
    ("total", "mixture"),
    [
        (12, {1: 160, 2: 64, 3: 32}),
        (14, {1: 126, 2: 68, 3: 62}),
        (16, {1: 94, 2: 68, 3: 94}),
        (18, {1: 62, 2: 68, 3: 126}),
        (20, {1: 30, 2: 68, 3: 158}),
    ],
)
def test_the_mixture_of_widths_is_the_published_one(
    total: int, mixture: dict[int, int], stats: CalibrationStats
) -> None:
    assert pmq().allocate(stats, BitBudget.from_expert_bits(total / 8, MIXTRAL)).histogram == mixture


def test_pmq_lowers_its_objective_to_three_quarters_of_uniform_2_bits(stats: CalibrationStats) -> None:
    chosen = pmq().allocate(stats, BitBudget.from_label(2.05, MIXTRAL)).widths - 1
    count, weight = (stats.token_count / stats.token_count.sum(1)[:, None]), stats.routing_weight
    weight = weight / weight.sum(1)[:, None]
    cost = (count * weight**1.5)[..., None] * stats.quantization_error("minmax")  # [L, E, W]
    spent = np.take_along_axis(cost, chosen[..., None], axis=2).sum(axis=(1, 2))  # [L]
    assert spent.sum() / cost[..., 1].sum() == pytest.approx(0.757, abs=0.001)
    assert (spent / cost[..., 1].sum(axis=1)).mean() == pytest.approx(0.769, abs=0.001)


def test_under_a_global_budget_raw_block_errors_would_starve_the_first_layers(stats: CalibrationStats) -> None:
    """Why `pmq` takes them as shares of their layer there: they grow a hundredfold with depth."""
    budget = BitBudget.from_expert_bits(2, MIXTRAL)
    raw = cheapest(stats.quantization_error("minmax"), budget, scope="global").widths.mean(axis=1)  # [L]
    assert raw[0] == 1
    assert raw[-1] == 3
    shares = pmq(scope="global").allocate(stats, budget).widths.mean(axis=1)
    assert np.abs(shares - 2).max() < 0.7


def pmq(**settings: Any) -> Method:
    return METHODS.get("pmq")(**settings)


def use(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `pmq` solve its programme with `solver`."""
    monkeypatch.setattr(
        "mcbench.methods.pmq.cheapest", lambda *args, **kwargs: cheapest(*args, **kwargs, solver=solver)
    )
