"""Spending bits: averages mean what they say, and the cheapest allocation is the cheapest one."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcbench.allocation import (
    BitAllocation,
    BitBudget,
    Scope,
    Solver,
    WeightCount,
    cheapest,
    seen_values,
    share,
)
from mcbench.errors import BadInput
from mcbench.stats import Array

MODELS = {
    "Mixtral-8x7B": WeightCount(32, 8, 3 * 4096 * 14336, 32 * 2 * 4096 * (4096 + 1024), 0, 32 * 8 * 4096, 262_410_240),
    "Mixtral-8x22B": WeightCount(56, 8, 3 * 6144 * 16384, 56 * 2 * 6144 * (6144 + 1024), 0, 56 * 8 * 6144, 404_000_000),
}
MIXTRAL = MODELS["Mixtral-8x7B"]
SCOPES: tuple[Scope, ...] = ("layer", "global")


# ---- what an average counts


# by hand: (routed x bits + attention x 4) / (routed + attention), for totals of a layer's eight experts
LABELS = {
    "Mixtral-8x7B": (1.5723, 1.6936, 1.8150, 1.9364, 2.0578, 2.1792, 2.3006, 2.4220, 2.5434),
    "Mixtral-8x22B": (1.5879, None, None, None, 2.0704, None, None, None, 2.5528),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_those_behind_the_papers_tables(name: str) -> None:
    for total, label in enumerate(LABELS[name], start=12):
        assert label is None or MODELS[name].label(total / 8) == pytest.approx(label, abs=5e-5)


def test_two_bits_per_expert_of_mixtral_is_the_label_2_0578() -> None:
    assert MIXTRAL.label(2.0) == pytest.approx(2.0578, abs=5e-5)
    assert MIXTRAL.whole_model(2.0) == pytest.approx(
        (45.097 * 2 + 1.342 * 4 + 0.262 * 16 + 0.001 * 16) / 46.703, abs=1e-3
    )


def test_every_label_that_the_paper_prints_leads_to_its_own_total() -> None:
    printed = {1.57: 12, 1.69: 13, 1.81: 14, 1.94: 15, 2.05: 16, 2.20: 17, 2.30: 18, 2.42: 19, 2.54: 20}
    assert {label: BitBudget.from_label(label, MIXTRAL).total() for label in printed} == printed


@given(st.floats(1, 16), st.floats(1, 16), st.integers(0, 10**9))
def test_expert_bits_is_the_inverse_of_label(bits: float, attention: float, shared: int) -> None:
    count = WeightCount(4, 8, 1000, 5000, shared, 10, 10)
    assert count.expert_bits(count.label(bits, attention), attention) == pytest.approx(bits, rel=1e-6)


def test_a_model_that_is_one_width_everywhere_has_that_average() -> None:
    assert MIXTRAL.label(3, 3, 3) == 3
    assert MIXTRAL.whole_model(16, 16, 16) == 16


def test_a_dense_model_has_no_bits_to_give_to_experts() -> None:
    dense = WeightCount(0, 0, 0, 100, 0, 0, 50)
    with pytest.raises(BadInput, match="use the method 'none'"):
        BitBudget.from_label(2.05, dense)
    kept = BitAllocation(np.empty((0, 0), dtype=np.int64), attention=16, shared=16)
    assert kept.expert_average == kept.label(dense) == kept.whole_model(dense) == 16


# ---- how many whole bits a budget is


def count(layers: int, experts: int) -> WeightCount:
    return WeightCount(layers, experts, 100, 10 * layers, 0, layers, 5)


def test_the_nearest_total_is_taken_and_of_two_the_smaller() -> None:
    assert BitBudget.from_expert_bits(2.06, count(3, 8)).total() == 16
    assert BitBudget.from_expert_bits(2.07, count(3, 8)).total() == 17
    assert BitBudget.from_expert_bits(2.0625, count(3, 8)).total() == 16
    assert BitBudget.from_expert_bits(2.0625, count(3, 8)).total("global") == 49


@pytest.mark.parametrize(
    ("bits", "widths", "message"),
    [
        (3.5, (1, 2, 3), "an average of 3.5 bits cannot be made from widths (1, 2, 3); reachable: 1 to 3"),
        (0.5, (1, 2, 3), "an average of 0.5 bits cannot be made from widths (1, 2, 3); reachable: 1 to 3"),
        (2.4, (2,), "an average of 2.4 bits cannot be made from widths (2,); reachable: 2"),
        (2.125, (2, 4), "cannot be made from widths (2, 4); reachable: 2 to 4, nearest 2 and 2.25"),
    ],
)
def test_a_budget_out_of_reach_is_refused_with_what_can_be_reached(
    bits: float, widths: tuple[int, ...], message: str
) -> None:
    with pytest.raises(BadInput) as error:
        BitBudget.from_expert_bits(bits, count(2, 8), widths).total()
    assert message in str(error.value)


def test_a_refused_label_is_answered_in_labels() -> None:
    with pytest.raises(BadInput, match=r"a label of 3.5 bits .* reachable: 1.0867 to 3.0289"):
        BitBudget.from_label(3.5, MIXTRAL).total()


@given(st.sets(st.sampled_from([1, 2, 3, 4, 8, 16]), min_size=1), st.integers(1, 5), st.integers(1, 3))
def test_reachable_totals_are_all_sums_of_widths(widths: set[int], experts: int, layers: int) -> None:
    candidates = tuple(sorted(widths))
    sums = {sum(choice) for choice in itertools.combinations_with_replacement(candidates, experts * layers)}
    for total in range(experts * layers * 16 + 1):
        budget = BitBudget.from_expert_bits(total / (experts * layers), count(layers, experts), candidates)
        if total in sums:
            assert budget.total("global") == total
        else:
            assert not_reached(budget) or budget.total("global") in sums


def not_reached(budget: BitBudget) -> bool:
    try:
        budget.total("global")
    except BadInput:
        return True
    return False


@pytest.mark.parametrize("widths", [(), (5,), (2, 1), (1, 1, 2)])
def test_strange_widths_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="widths must be"):
        BitBudget.from_expert_bits(2, count(1, 8), widths)


def test_an_allocation_survives_json() -> None:
    allocation = BitAllocation(np.array([[1, 2], [3, 16]]), attention=8)
    copy = BitAllocation.from_json(json.loads(json.dumps(allocation.to_json())))
    assert copy == allocation
    assert hash(copy) == hash(allocation)
    assert copy != BitAllocation(allocation.widths)
    assert allocation.histogram == {1: 1, 2: 1, 3: 1, 16: 1}
    assert allocation.expert_average == 5.5
    assert not allocation.widths.flags.writeable


def test_an_allocation_knows_only_widths_that_exist() -> None:
    with pytest.raises(BadInput, match=r"not \[5\]"):
        BitAllocation(np.array([[5, 2]]))


# ---- the cheapest way to spend them


def total_cost(cost: Array, allocation: BitAllocation, widths: tuple[int, ...]) -> float:
    chosen = np.searchsorted(widths, allocation.widths)
    return float(np.take_along_axis(cost, chosen[..., None], axis=2).sum())


def brute_force(
    cost: Array, widths: tuple[int, ...], total: int, floors: dict[int, int], scope: Scope
) -> tuple[float, Array]:
    """The least cost, and of the allocations that have it the one with fewer bits in earlier layers, then experts."""
    if scope == "layer":
        parts = [brute_force(layer[None], widths, total, floors, "global") for layer in cost]
        return sum(p[0] for p in parts), np.concatenate([p[1] for p in parts])
    found = []
    for choice in itertools.product(range(len(widths)), repeat=cost.shape[0] * cost.shape[1]):
        chosen = np.array(choice).reshape(cost.shape[:2])
        bits = np.array(widths)[chosen]
        if bits.sum() == total and all((bits == w).sum(1).min() >= n for w, n in floors.items()):
            value = np.take_along_axis(cost, chosen[..., None], axis=2).sum()
            found.append((float(value), bits.sum(1).tolist(), bits.ravel().tolist()))
    best = min(found)
    return best[0], np.array(best[2]).reshape(cost.shape[:2])


@st.composite
def programmes(draw: st.DrawFn) -> tuple[Array, BitBudget, Scope, dict[int, int]]:
    """A small allocation with a solution; costs are small whole numbers (so ties are many and sums exact)."""
    layers, experts = draw(st.sampled_from([(1, 2), (1, 5), (2, 3), (3, 2), (2, 4)]))
    widths = tuple(sorted(draw(st.sets(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=3))))
    scope = draw(st.sampled_from(SCOPES))
    floors: dict[int, int] = {}
    for width in widths:
        floors[width] = draw(st.integers(0, experts - sum(floors.values())))
    layer = [w for w, n in floors.items() for _ in range(n)]
    free = experts - len(layer)
    groups = 1 if scope == "layer" else layers
    extra = draw(st.lists(st.sampled_from(widths), min_size=free * groups, max_size=free * groups))
    total = groups * sum(layer) + sum(extra)
    cost = draw(
        st.lists(st.integers(0, 9), min_size=layers * experts * len(widths), max_size=layers * experts * len(widths))
    )
    table = np.array(cost, dtype=np.float64).reshape(layers, experts, len(widths))
    return table, BitBudget.from_expert_bits(total / (groups * experts), count(layers, experts), widths), scope, floors


@settings(max_examples=200, deadline=None)
@given(programmes())
def test_dynamic_programming_equals_brute_force_down_to_the_ties(
    programme: tuple[Array, BitBudget, Scope, dict[int, int]],
) -> None:
    cost, budget, scope, floors = programme
    best, widths = brute_force(cost, budget.widths, budget.total(scope), floors, scope)
    found = cheapest(cost, budget, scope=scope, at_least=floors)
    assert total_cost(cost, found, budget.widths) == best
    assert (found.widths == widths).all()


@settings(max_examples=50, deadline=None)
@given(programmes(), st.integers(0, 2**32 - 1), st.floats(0.1, 6))
def test_the_integer_programme_equals_dynamic_programming(
    programme: tuple[Array, BitBudget, Scope, dict[int, int]], seed: int, spread: float
) -> None:
    """With costs over many orders of magnitude, where the optimum is unique: the same allocation."""
    cost, budget, scope, floors = programme
    cost = np.random.default_rng(seed).lognormal(0, spread, cost.shape)
    ours = cheapest(cost, budget, scope=scope, at_least=floors)
    theirs = cheapest(cost, budget, scope=scope, at_least=floors, solver="ilp")
    best = total_cost(cost, ours, budget.widths)
    assert best <= total_cost(cost, theirs, budget.widths) <= best * (1 + 1e-9)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("widths", "bits"), [((1, 2, 3), 2.05), ((1, 2, 3), 1.57), ((2, 3, 4, 8), 3.4)])
@pytest.mark.parametrize("floor", [0, 1, 0.1])
def test_both_solvers_agree_on_256_experts(scope: Scope, widths: tuple[int, ...], bits: float, floor: float) -> None:
    rng = np.random.default_rng(7)
    cost = falling_costs(rng, 2, 256, len(widths)) * rng.lognormal(0, 2, (2, 256, 1))
    budget = BitBudget.from_expert_bits(bits, count(2, 256), widths)
    floors = dict.fromkeys(widths[1:], floor)
    ours, theirs = (cheapest(cost, budget, scope=scope, at_least=floors, solver=s) for s in ("dp", "ilp"))
    assert ours.widths.sum() == theirs.widths.sum()
    assert total_cost(cost, ours, widths) == pytest.approx(total_cost(cost, theirs, widths), rel=1e-9)
    assert (ours.widths == theirs.widths).all()  # random real costs: no ties


def falling_costs(rng: np.random.Generator, layers: int, experts: int, widths: int) -> Array:
    """[L, E, W] costs that fall with bits, convex for some experts and not for others."""
    return np.sort(rng.random((layers, experts, widths)), axis=2)[..., ::-1]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("floors", [{}, {3: 1, 2: 1}])
def test_sixty_layers_of_256_experts_take_less_than_a_second(scope: Scope, floors: dict[int, int]) -> None:
    cost = falling_costs(np.random.default_rng(0), 60, 256, 3)
    budget = BitBudget.from_expert_bits(2.05, count(60, 256))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        cheapest(cost, budget, scope=scope, at_least=floors)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


@pytest.mark.parametrize("scope", SCOPES)
def test_equal_experts_are_no_trouble(scope: Scope) -> None:
    """All allocations with the same histogram tie: nothing can be ruled out in advance, and the rule decides."""
    cost = np.broadcast_to(np.array([4.0, 1.0, 0.0]), (20, 64, 3))
    found = cheapest(cost, BitBudget.from_expert_bits(2.25, count(20, 64)), scope=scope)
    assert found.histogram == {2: 20 * 48, 3: 20 * 16}
    assert (np.diff(found.widths, axis=1) >= 0).all()
    assert (np.diff(found.widths.sum(axis=1)) >= 0).all()


def test_a_global_budget_is_never_worse_than_one_per_layer() -> None:
    cost = falling_costs(np.random.default_rng(3), 6, 16, 3)
    budget = BitBudget.from_expert_bits(2, count(6, 16))
    per_layer, together = (total_cost(cost, cheapest(cost, budget, scope=s), budget.widths) for s in SCOPES)
    assert together <= per_layer


def test_the_budget_is_spent_even_where_bits_do_harm() -> None:
    cost = np.broadcast_to(np.array([0.0, 1.0, 2.0]), (2, 4, 3))
    assert cheapest(cost, BitBudget.from_expert_bits(2.5, count(2, 4))).expert_average == 2.5


def test_a_share_of_experts_is_rounded_up() -> None:
    cost = np.broadcast_to(np.array([1.0, 1.0, 0.0]), (1, 11, 3))
    found = cheapest(cost, BitBudget.from_expert_bits(2, count(1, 11)), at_least={2: 0.25})
    assert found.histogram == {1: 4, 2: 3, 3: 4}


@pytest.mark.parametrize("solver", ["dp", "ilp"])
def test_the_same_costs_give_the_same_allocation(solver: Solver) -> None:
    cost = np.random.default_rng(1).integers(0, 3, (3, 8, 3)).astype(np.float64)
    budget = BitBudget.from_expert_bits(2, count(3, 8))
    assert cheapest(cost, budget, solver=solver) == cheapest(cost, budget, solver=solver)


def test_wrong_costs_and_floors_are_refused() -> None:
    budget = BitBudget.from_expert_bits(2, count(2, 8))
    good = np.ones((2, 8, 3))
    for wrong in (np.nan, np.inf, -1.0):
        bad = good.copy()
        bad[1, 5, 2] = wrong
        with pytest.raises(BadInput, match="the cost of expert 5 of layer 1 at 3 bits is"):
            cheapest(bad, budget)
    with pytest.raises(BadInput, match=r"layers x experts x widths = \(2, 8, 3\), not \(2, 8, 2\)"):
        cheapest(good[..., :2], budget)
    with pytest.raises(BadInput, match="a floor asks for experts of 4 bits"):
        cheapest(good, budget, at_least={4: 1})
    with pytest.raises(BadInput, match=r"more experts \(5 of 2 bits, 4 of 3 bits\) than the 8 of a layer"):
        cheapest(good, budget, at_least={2: 5, 3: 0.5})
    with pytest.raises(BadInput, match="a count of experts or a share"):
        cheapest(good, budget, at_least={2: 1.5})
    with pytest.raises(
        BadInput, match="with at least 1 of 2 bits and 1 of 3 bits in each layer; reachable: 1.375 to 2.875"
    ):
        cheapest(good, BitBudget.from_expert_bits(1, count(2, 8)), at_least={2: 1, 3: 1})


# ---- factors


def test_shares_of_a_layer_sum_to_one_and_a_never_seen_expert_counts_like_the_least_seen() -> None:
    counts = np.array([[6, 0, 3, 3], [0, 0, 0, 0]])
    assert share(counts)[0] == pytest.approx(np.array([6, 3, 3, 3]) / 15)
    assert share(counts)[1] == pytest.approx(np.full(4, 0.25))


def test_an_error_that_is_zero_at_16_bits_stays_zero() -> None:
    """Only an expert without any error was never reached."""
    errors = np.array([[[0.0, 0.0, 0.0], [4.0, 2.0, 0.0], [3.0, 2.5, -1e-18]]])  # [L, E, W]
    assert (seen_values(errors) == [[[3.0, 2.0, 0.0], [4.0, 2.0, 0.0], [3.0, 2.5, 0.0]]]).all()
