"""What every allocation method promises, found by the registry and tried on statistics without a model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mcbench.allocation import BitBudget, WeightCount, share
from mcbench.composition import METHODS
from mcbench.errors import BadInput
from mcbench.method import Method, decisions
from mcbench.stats import Array, CalibrationStats

ALLOCATORS = [name for name in METHODS.names() if "allocate" in decisions(METHODS.get(name))]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ALLOCATORS if name != "none"),
    ("pmq", {"gamma": 2.0, "quantizer": "final", "floor": 0}),
    ("pmq", {"error": "kl", "scope": "global"}),
    ("pmq", {"error": "fnorm", "quantizer": "final"}),
    ("pmq", {"error": "batch-sum", "renormalize": True}),
    ("pmq", {"scope": "global", "floor": 0.125}),
    ("hessian", {"trace": "hutchinson", "tokens": "sum", "scope": "global"}),
    ("bsp", {"score": "exact", "important": "high"}),
    ("bsp", {"low": 1, "high": 3}),
    ("fnorm", {"quantizer": "final"}),
    ("routing-weight", {"renormalize": True}),
    ("output-kl", {"scope": "layer", "quantizer": "minmax"}),
]
LAYERS, EXPERTS, WIDTHS = 4, 8, (1, 2, 3)
COUNT = WeightCount(LAYERS, EXPERTS, 3 * 64 * 32, 4 * 64 * 64, 0, LAYERS * EXPERTS * 64, 10_000)

every_variant = pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=lambda v: v if isinstance(v, str) else str(v))


def method(name: str, **fields: Any) -> Method:
    return METHODS.get(name)(**fields)


def statistics(needs: tuple[str, ...], *, seed: int = 0, unseen: tuple[tuple[int, int], ...] = ()) -> CalibrationStats:
    """Plausible statistics, only those that are needed: skewed routing, errors that fall with bits."""
    rng = np.random.default_rng(seed)
    share_of = rng.dirichlet(np.full(EXPERTS, 2.0), LAYERS)
    for layer, expert in unseen:
        share_of[layer, expert] = 0.0
    tokens = np.round(share_of * 8192).astype(np.int64)  # [L, E]
    error = (
        np.sqrt(tokens.clip(1))[..., None] * rng.lognormal(0, 0.5, (LAYERS, EXPERTS, 1)) * [3.0, 1.4, 0.6]
    )  # [L, E, W]
    divergence = np.where(tokens[..., None] > 0, error**2 * 1e-6, 0.0)
    tables: dict[str, Array] = {
        "token_count": tokens,
        "routing_weight": tokens * rng.uniform(0.2, 0.5, tokens.shape),
        "renormalized_weight": tokens * rng.uniform(0.4, 0.6, tokens.shape),
        "block_cosine": rng.uniform(-0.2, 0.2, LAYERS),
        "predicted_cosine": rng.uniform(-0.2, 0.2, LAYERS),
        "hessian_trace": rng.lognormal(0, 1, tokens.shape),
        "hessian_trace:hutchinson": rng.lognormal(0, 1, tokens.shape),
    }
    for quantizer in ("minmax", "final"):
        tables |= {
            f"quantization_error:{quantizer}": error,
            f"quantization_error:{quantizer}:batch-sum": error * 4,
            f"weight_error:{quantizer}": rng.lognormal(0, 0.2, (LAYERS, EXPERTS, 1)) * [9.0, 2.0, 0.4],
            f"output_divergence:kl:{quantizer}": divergence,
            f"output_divergence:fnorm:{quantizer}": np.sqrt(divergence),
        }
    return CalibrationStats(COUNT, WIDTHS, 4096, 2, {name: tables[name] for name in needs})


def budgets(made: Method) -> list[BitBudget]:
    """A few budgets the method can meet."""
    points = made.reachable(COUNT, WIDTHS) or (1.5, 1.75, 2.0, 2.06, 2.25, 2.5)
    return [BitBudget.from_expert_bits(bits, COUNT, WIDTHS) for bits in points]


def test_the_methods_of_the_contract_are_there() -> None:
    assert {
        *("none", "uniform", "random", "frequency", "routing-weight"),
        *("fnorm", "hessian", "bsp", "pmq", "output-kl"),
    } <= set(ALLOCATORS)


@every_variant
def test_what_a_method_needs_is_something_that_calibration_knows(name: str, fields: dict[str, Any]) -> None:
    from mcbench.calibration import known_needs

    assert set(method(name, **fields).needs) <= set(known_needs())


@every_variant
def test_allocation_stays_within_half_a_step_of_the_budget(name: str, fields: dict[str, Any]) -> None:
    made = method(name, **fields)
    for budget in budgets(made):
        allocation = made.allocate(statistics(made.needs), budget)
        assert allocation.widths.shape == (LAYERS, EXPERTS)
        assert set(allocation.histogram) <= set(WIDTHS)
        assert abs(allocation.expert_average - budget.expert_bits) <= 0.5 / EXPERTS
        assert abs(allocation.label(COUNT) - COUNT.label(budget.expert_bits)) <= 0.5 / EXPERTS


@every_variant
def test_everything_but_the_experts_has_the_same_widths_in_every_method(name: str, fields: dict[str, Any]) -> None:
    made = method(name, **fields)
    allocation = made.allocate(statistics(made.needs), budgets(made)[-1])
    assert (allocation.attention, allocation.shared, allocation.router) == (4, 4, 16)


@every_variant
def test_the_same_statistics_give_the_same_allocation(name: str, fields: dict[str, Any]) -> None:
    budget = budgets(method(name, **fields))[1]
    once, again = (made.allocate(statistics(made.needs), budget) for made in (method(name, **fields) for _ in range(2)))
    assert once == again


@every_variant
def test_a_budget_out_of_reach_is_refused(name: str, fields: dict[str, Any]) -> None:
    made = method(name, **fields)
    with pytest.raises(BadInput, match=r"an average of 3\.5 bits cannot be made from .*reachable: "):
        made.allocate(statistics(made.needs), BitBudget.from_expert_bits(3.5, COUNT, WIDTHS))


@every_variant
def test_never_seen_experts_are_no_trouble(name: str, fields: dict[str, Any]) -> None:
    made = method(name, **fields)
    for budget in budgets(made):
        allocation = made.allocate(statistics(made.needs, unseen=((0, 3), (2, 0), (2, 1))), budget)
        assert abs(allocation.expert_average - budget.expert_bits) <= 0.5 / EXPERTS


@pytest.mark.parametrize(
    ("name", "fields"),
    [("pmq", {}), ("pmq", {"error": "kl"}), ("frequency", {}), ("routing-weight", {}), ("output-kl", {})],
)
def test_a_never_seen_expert_counts_like_the_least_seen_and_not_for_nothing(name: str, fields: dict[str, Any]) -> None:
    made = method(name, **fields)
    stats = statistics(made.needs)
    never, least = ({key: table.copy() for key, table in stats.tables.items()} for _ in range(2))
    for key in stats.tables:
        measured_anyway = key.startswith("quantization_error")  # on the layer's average token
        never[key][:, 0] = stats.tables[key].min(axis=1) if measured_anyway else 0
        least[key][:, 0] = stats.tables[key][:, 1:].min(axis=1)
        if measured_anyway:
            least[key] = never[key]
    for budget in budgets(made):
        unseen, seen = (made.allocate(dataclasses.replace(stats, tables=t), budget) for t in (never, least))
        assert unseen == seen


@pytest.mark.parametrize("name", [n for n in ALLOCATORS if n not in ("none", "uniform", "random", "bsp")])
def test_equal_experts_get_equal_widths_where_the_budget_allows_it(name: str) -> None:
    """With errors that a bit quarters, equal experts and no floors, two bits on average are two bits each."""
    fields = {"floor": 0} if name != "output-kl" else {}
    made = method(name, **fields)
    stats = statistics(made.needs)
    equal = {
        key: np.broadcast_to(4.0 ** -np.array(WIDTHS), table.shape) if table.ndim == 3 else np.full(table.shape, 100)
        for key, table in stats.tables.items()
    }
    allocation = made.allocate(dataclasses.replace(stats, tables=equal), BitBudget.from_expert_bits(2, COUNT, WIDTHS))
    assert allocation.histogram == {2: LAYERS * EXPERTS}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rival", ["frequency", "routing-weight", "fnorm", "hessian", "random"])
def test_pmq_is_cheaper_by_its_own_objective_than_any_one_factor(rival: str, seed: int) -> None:
    pmq, other = method("pmq", floor=0), method(rival, **({"seed": seed} if rival == "random" else {"floor": 0}))
    stats = statistics((*pmq.needs, *other.needs), seed=seed)
    cost = (share(stats.token_count) * share(stats.routing_weight) ** 1.5)[..., None] * stats.quantization_error(
        "minmax"
    )
    for budget in budgets(pmq):
        ours, theirs = (
            np.take_along_axis(cost, made.allocate(stats, budget).widths[..., None] - 1, axis=2).sum()
            for made in (pmq, other)
        )
        assert ours <= theirs * (1 + 1e-12)


def test_floors_put_one_expert_of_each_layer_at_two_and_at_three_bits() -> None:
    made = method("pmq")
    widths = made.allocate(statistics(made.needs), BitBudget.from_expert_bits(1.5, COUNT, WIDTHS)).widths
    assert ((widths == 2).sum(axis=1) >= 1).all()
    assert ((widths == 3).sum(axis=1) >= 1).all()


def test_none_keeps_everything_even_of_a_dense_model() -> None:
    made = method("none")
    kept = made.allocate(statistics(()), BitBudget(16.0, COUNT, (16,)))
    assert kept.histogram == {16: LAYERS * EXPERTS}
    assert kept.whole_model(COUNT) == 16
    dense = WeightCount(0, 0, 0, 100, 0, 0, 50)
    empty = CalibrationStats(dense, (16,), 0, 0, {})
    assert made.allocate(empty, BitBudget(16.0, dense, (16,))).whole_model(dense) == 16


def test_uniform_has_only_whole_widths() -> None:
    with pytest.raises(
        BadInput, match="an average of 2.25 bits cannot be made from one width for all experts; reachable: 1, 2, 3"
    ):
        method("uniform").allocate(statistics(()), BitBudget.from_expert_bits(2.25, COUNT, WIDTHS))


def test_random_draws_every_allocation_of_a_layer_equally_often() -> None:
    """Three experts at 1, 2 or 3 bits, 6 in all: 7 allocations; chi-squared over 7000 draws."""
    count = WeightCount(7000, 3, 1, 1, 0, 1, 1)
    drawn = method("random", seed=1).allocate(statistics(()), BitBudget.from_expert_bits(2, count, WIDTHS)).widths
    kinds, seen = np.unique(drawn, axis=0, return_counts=True)
    assert len(kinds) == 7
    assert (drawn.sum(axis=1) == 6).all()
    assert ((seen - 1000) ** 2 / 1000).sum() < 22.5  # 99.9 % point at 6 degrees of freedom
    other = method("random", seed=2).allocate(statistics(()), BitBudget.from_expert_bits(2, count, WIDTHS))
    assert (other.widths != drawn).any()


def test_bsp_gives_the_higher_width_to_whole_blocks_of_low_similarity() -> None:
    stats = statistics(("block_cosine", "predicted_cosine"))
    order = np.argsort(stats.block_cosine)
    budget = BitBudget.from_expert_bits(2.25, COUNT, WIDTHS)
    widths = method("bsp", score="exact").allocate(stats, budget).widths
    assert (widths[order[0]] == 3).all()
    assert (widths[order[1:]] == 2).all()
    widths = method("bsp", score="exact", important="high").allocate(stats, budget).widths
    assert (widths[order[-1]] == 3).all()


def test_bsp_as_the_paper_has_it_is_a_quarter_of_the_blocks_at_4_bits() -> None:
    made = method("bsp", low=2, high=4)
    assert made.reachable(COUNT, (2, 4)) == (2.0, 2.5, 3.0, 3.5, 4.0)
    allocation = made.allocate(statistics(made.needs), BitBudget.from_expert_bits(2.5, COUNT, (2, 4)))
    assert allocation.histogram == {2: 24, 4: 8}
    with pytest.raises(BadInput, match="reachable: 2, 2.5, 3, 3.5, 4"):
        made.allocate(statistics(made.needs), BitBudget.from_expert_bits(2.25, COUNT, (2, 4)))
    with pytest.raises(BadInput, match="bsp mixes 2 and 4 bits, but the widths are"):
        made.allocate(statistics(made.needs), BitBudget.from_expert_bits(2.5, COUNT, WIDTHS))


@pytest.mark.parametrize("fields", [{"low": 2}, {"high": 3}, {"low": 3, "high": 2}])
def test_bsp_wants_two_widths_in_order(fields: dict[str, int]) -> None:
    with pytest.raises(BadInput):
        method("bsp", **fields)


def test_output_kl_spends_more_on_layers_where_the_model_is_sensitive() -> None:
    made = method("output-kl")
    stats = statistics(made.needs)
    scale = np.array([1.0, 1.0, 1.0, 100.0])[:, None, None]
    raised = {name: table * scale for name, table in stats.tables.items()}
    widths = made.allocate(
        dataclasses.replace(stats, tables=raised), BitBudget.from_expert_bits(2, COUNT, WIDTHS)
    ).widths
    assert widths[3].mean() > widths[:3].mean() + 0.5
