"""Spending bits: what an average counts, how many whole bits a budget is, and the cheapest way to spend them.

Numpy only. Letters in shapes: L MoE layers, E routed experts per layer, W candidate widths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mcbench.bounds import shown
from mcbench.errors import BadInput, CheckFailed
from mcbench.fallbacks import require_remarks

WIDTHS = (1, 2, 3, 4, 8, 16)  # 16 means kept as it is

Scope = Literal["layer", "global"]
Solver = Literal["dp", "ilp"]


def require_widths(widths: Sequence[int]) -> None:
    """Raises BadInput for candidate widths that no expert can have."""
    if not widths or any(w not in WIDTHS for w in widths):
        raise BadInput(f"widths must be some of {WIDTHS}, not {shown(tuple(widths))}")


@dataclass(frozen=True)
class WeightCount:
    """How many weights of each component a model has, which is all that a bit average needs to know.

    `per_expert` are the weights of one routed expert (gate, up and down; biases are `other`), `attention`, `shared` and
    `router` those of the whole model, `other` the rest: embeddings, head, norms, biases, dense MLPs of non-MoE layers.
    """

    layers: int
    experts: int
    per_expert: int
    attention: int
    shared: int
    router: int
    other: int

    @property
    def routed(self) -> int:
        """The weights of all routed experts."""
        return self.layers * self.experts * self.per_expert

    @property
    def parameters(self) -> int:
        return self.routed + self.attention + self.shared + self.router + self.other

    def label(self, expert_bits: float, attention_bits: float = 4.0, shared_bits: float = 4.0) -> float:
        """The papers' label: bits per weight over routed experts, shared experts and attention.

        Scales, zero points, embeddings, head and router are left out (MC-MoE prints 2.0 bits per expert of
        Mixtral-8x7B as 2.05; it is 2.0578).
        """
        counted = self.routed + self.attention + self.shared
        if not counted:
            raise BadInput("the model has neither experts nor attention weights, so its bits have no average")
        spent = self.routed * expert_bits + self.attention * attention_bits + self.shared * shared_bits
        return spent / counted

    def expert_bits(self, label: float, attention_bits: float = 4.0, shared_bits: float = 4.0) -> float:
        """The average width of the routed experts at which `label` is reached: the inverse of `label()`."""
        if not self.routed:
            raise BadInput("the model has no routed experts, so no bits can be given to them; use the method 'none'")
        counted = self.routed + self.attention + self.shared
        return (label * counted - self.attention * attention_bits - self.shared * shared_bits) / self.routed

    def whole_model(
        self,
        expert_bits: float,
        attention_bits: float = 4.0,
        shared_bits: float = 4.0,
        router_bits: float = 16.0,
    ) -> float:
        """Bits per weight over the whole model, everything that is `other` at 16; scales and zero points left out."""
        spent = (
            self.routed * expert_bits
            + self.attention * attention_bits
            + self.shared * shared_bits
            + self.router * router_bits
            + self.other * 16.0
        )
        return spent / self.parameters


@dataclass(frozen=True)
class BitBudget:
    """An average number of bits for the routed experts, and what was typed to ask for it."""

    expert_bits: float
    count: WeightCount
    widths: tuple[int, ...] = (1, 2, 3)
    asked: float = math.nan
    asked_as: Literal["label", "expert"] = "expert"

    def __post_init__(self) -> None:
        require_widths(self.widths)
        if list(self.widths) != sorted(set(self.widths)):
            raise BadInput(f"widths must be given in rising order and once each, not {self.widths}")
        if not math.isfinite(self.expert_bits):
            raise BadInput(f"a budget must be a number of bits, not {self.expert_bits}")
        if math.isnan(self.asked):
            object.__setattr__(self, "asked", self.expert_bits)

    @classmethod
    def from_label(cls, label: float, count: WeightCount, widths: Iterable[int] = (1, 2, 3)) -> BitBudget:
        """The budget at which the papers' label, attention and shared experts at 4 bits, is `label`."""
        return cls(count.expert_bits(label), count, tuple(widths), label, "label")

    @classmethod
    def from_expert_bits(cls, bits: float, count: WeightCount, widths: Iterable[int] = (1, 2, 3)) -> BitBudget:
        """The budget of `bits` in plain average over the routed experts."""
        if not count.routed:
            raise BadInput("the model has no routed experts, so no bits can be given to them; use the method 'none'")
        return cls(bits, count, tuple(widths), bits, "expert")

    def total(self, scope: Scope = "layer", floors: Mapping[int, int] | None = None) -> int:
        """The whole number of bits to spend: over the E experts of each layer, or over all L * E of them.

        It is the nearest total that E (or L * E) experts of these widths can make, `floors` experts of each layer
        being bound to a width; of two equally near ones the smaller. Raises BadInput where that is further than half
        a step of the papers' grid, 1 / (2 E) bits per expert, from what was asked.
        """
        floors = {width: n for width, n in (floors or {}).items() if n}
        groups = 1 if scope == "layer" else self.count.layers
        totals = _reachable_totals(self.count.experts, groups, self.widths, tuple(floors.items()))
        experts = groups * self.count.experts
        source = f"widths {self.widths}"
        if floors:
            source += " with at least " + " and ".join(f"{n} of {w} bits" for w, n in floors.items()) + " in each layer"
        return round(self.nearest(totals / experts, source) * experts)

    def nearest(self, reachable: Sequence[float] | NDArray[np.float64], source: str = "") -> float:
        """The value of `reachable`, averages in bits per routed expert, that is nearest to the one asked for.

        Of two equally near ones the smaller. Raises BadInput as `total` does; `source` says there what the values
        are made from.
        """
        values = np.unique(np.asarray(reachable, dtype=np.float64))
        distance = np.abs(values - self.expert_bits)
        best = int(np.argmax(distance <= distance.min() + 1e-9))
        if distance[best] > 0.5 / self.count.experts + 1e-9:
            raise BadInput(self._refusal(values, source or f"widths {self.widths}"))
        return float(values[best])

    def _refusal(self, reachable: NDArray[np.float64], source: str) -> str:
        def shown(bits: float) -> str:
            written = self.count.label(bits) if self.asked_as == "label" else bits
            return f"{written:.4f}".rstrip("0").rstrip(".")

        if len(reachable) <= 6:
            known = ", ".join(shown(b) for b in reachable)
        else:
            known = f"{shown(reachable[0])} to {shown(reachable[-1])}"
            if reachable[0] < self.expert_bits < reachable[-1]:
                after = int(np.searchsorted(reachable, self.expert_bits))
                known += f", nearest {shown(reachable[after - 1])} and {shown(reachable[after])}"
        what = "an average of" if self.asked_as == "expert" else "a label of"
        return f"{what} {self.asked:g} bits cannot be made from {source}; reachable: {known}"


@dataclass(frozen=True, eq=False)
class BitAllocation:
    """The width of every routed expert [L, E], and of everything else; 16 means kept.

    notes: what the allocator did otherwise than asked, in words, for the record of a run; no part of its value.
    """

    widths: NDArray[np.int64]
    attention: int = 4
    shared: int = 4
    router: int = 16
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", require_remarks(self.notes, "an allocation"))
        widths = np.array(self.widths, dtype=np.int64)
        if widths.ndim != 2:
            raise BadInput(f"an allocation is a table of layers by experts, not of shape {widths.shape}")
        strange = {int(w) for w in np.unique(widths)} | {self.attention, self.shared, self.router}
        if strange := strange - set(WIDTHS):
            raise BadInput(f"widths must be some of {WIDTHS}, not {sorted(strange)}")
        widths.flags.writeable = False
        object.__setattr__(self, "widths", widths)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BitAllocation) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.widths.tobytes(), self.attention, self.shared, self.router))

    @property
    def expert_average(self) -> float:
        """Bits per routed expert in plain average; 16 where there are none, a dense model being kept."""
        return float(self.widths.mean()) if self.widths.size else 16.0

    @property
    def histogram(self) -> dict[int, int]:
        """How many routed experts have each width."""
        widths, counts = np.unique(self.widths, return_counts=True)
        return {int(w): int(n) for w, n in zip(widths, counts, strict=True)}

    def label(self, count: WeightCount) -> float:
        """The papers' label of this allocation, see `WeightCount.label`."""
        return count.label(self.expert_average, self.attention, self.shared)

    def whole_model(self, count: WeightCount) -> float:
        """Bits per weight of the whole model, see `WeightCount.whole_model`."""
        return count.whole_model(self.expert_average, self.attention, self.shared, self.router)

    def to_json(self) -> dict[str, Any]:
        return {
            "widths": self.widths.tolist(),
            "attention": self.attention,
            "shared": self.shared,
            "router": self.router,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BitAllocation:
        widths = np.array(data["widths"], dtype=np.int64).reshape(len(data["widths"]), -1 if data["widths"] else 0)
        return cls(widths, int(data["attention"]), int(data["shared"]), int(data["router"]))


def cheapest(
    cost: NDArray[np.floating[Any]],
    budget: BitBudget,
    *,
    scope: Scope = "layer",
    at_least: Mapping[int, float] | None = None,
    solver: Solver = "dp",
) -> BitAllocation:
    """The allocation of least total cost that spends exactly the budget: eq. 4 of MC-MoE, solved exactly.

    `cost` [L, E, W] is what giving expert e of layer l the width `budget.widths[w]` costs. `scope` says whether each
    layer spends the same total or all layers share one. `at_least` maps a width to the least number of experts of
    each layer that must have it: a whole number is a count, a float a share of the layer's experts, rounded up.
    `solver` is dynamic programming ("dp") or the same integer programme in pulp with HiGHS ("ilp").

    The budget is an equality. The released solver of MC-MoE writes <=, which is the same wherever cost falls with
    bits; a measured cost need not, and methods compare only if they spend the same.

    Of equally cheap allocations "dp" takes the one in which earlier layers have fewer bits in all and, within a
    layer, earlier experts have fewer bits; "ilp" takes the one that HiGHS finds, the same on every call.
    At 60 layers of 256 experts "dp" takes a tenth of a second with budgets per layer and up to half a second with a
    global one; floors of dozens of experts that bind in every layer make it seconds.

    Raises BadInput for a cost that is negative or not finite, floors that cannot be met or a budget out of reach.
    """
    costs = np.asarray(cost, dtype=np.float64)  # [L, E, W]
    expected = (budget.count.layers, budget.count.experts, len(budget.widths))
    if costs.shape != expected:
        raise BadInput(f"costs must be layers x experts x widths = {expected}, not {costs.shape}")
    if wrong := np.argwhere(~(np.isfinite(costs) & (costs >= 0))).tolist():
        layer, expert, width = wrong[0]
        raise BadInput(
            f"the cost of expert {expert} of layer {layer} at {budget.widths[width]} bits is "
            f"{costs[layer, expert, width]}; costs must be finite and not negative"
        )
    floors = _counts(at_least or {}, budget)
    total = budget.total(scope, dict(zip(budget.widths, floors, strict=True)))
    if solver == "ilp":
        groups = [costs] if scope == "global" else [layer[None] for layer in costs]
        chosen = np.concatenate([_integer_programme(group, budget.widths, total, floors) for group in groups])
    else:
        steps = tuple(w - budget.widths[0] for w in budget.widths)
        experts = budget.count.experts * (budget.count.layers if scope == "global" else 1)
        above = total - experts * budget.widths[0]
        chosen = _dynamic_programme(costs, steps, above, floors, scope)
    return BitAllocation(np.array(budget.widths)[chosen])


def share(values: NDArray[Any]) -> NDArray[np.float64]:
    """Each layer's values [L, E] divided by their sum, so that a layer's shares add up to one.

    A zero, the mark of an expert that no calibration token chose, counts like the least value of its layer: never
    seen is not never used, and an expert that costs nothing would lose its bits first.
    """
    seen = seen_values(values)
    shares: NDArray[np.float64] = seen / seen.sum(axis=1, keepdims=True)
    return shares


def seen_values(values: NDArray[Any]) -> NDArray[np.float64]:
    """`values` [L, E, ...]; an expert that has nothing but zeros gets the least that its layer's other experts have.

    Where a layer has no other experts all its values become one. Values below zero, from rounding, become zero.
    """
    known = np.asarray(values, dtype=np.float64).clip(min=0)
    unseen = ~known.reshape(*known.shape[:2], -1).any(axis=2)  # [L, E]
    unseen = unseen.reshape(*known.shape[:2], *[1] * (known.ndim - 2))
    least = np.where(unseen, np.inf, known).min(axis=1, keepdims=True)
    return np.where(unseen, np.where(np.isfinite(least), least, 1.0), known)


def _counts(at_least: Mapping[int, float], budget: BitBudget) -> tuple[int, ...]:
    """The floors as one whole number for each candidate width."""
    for width, floor in at_least.items():
        if width not in budget.widths:
            raise BadInput(f"a floor asks for experts of {width} bits, but the widths are {budget.widths}")
        if math.isnan(floor) or floor < 0 or (isinstance(floor, float) and floor > 1):
            raise BadInput(f"a floor is a count of experts or a share from 0.0 to 1.0, not {floor}")
    experts = budget.count.experts
    shares = [at_least.get(width, 0) for width in budget.widths]
    counts = tuple(math.ceil(n * experts - 1e-9) if isinstance(n, float) else n for n in shares)
    if sum(counts) > experts:
        wanted = ", ".join(f"{n} of {w} bits" for w, n in zip(budget.widths, counts, strict=True) if n)
        raise BadInput(f"the floors ask for more experts ({wanted}) than the {experts} of a layer")
    return counts


def _dynamic_programme(
    costs: NDArray[np.float64], steps: tuple[int, ...], above: int, floors: tuple[int, ...], scope: Scope
) -> NDArray[np.int64]:
    """The cheapest choices [L, E]: each layer, or all together, spend `above` bits more than the least possible.

    A floor enters the programme of a layer once it binds there: what is cheapest without it and happens to meet it is
    cheapest with it.
    """
    layers = len(costs)
    most = min(above, steps[-1] * costs.shape[1])
    spent = np.full(layers, above)  # [L], known from the start where each layer has its own total
    values = np.empty((layers, most + 1))  # [L, bits]
    chosen = np.empty(costs.shape[:2], dtype=np.int64)
    binding = np.zeros((layers, len(steps)), dtype=np.int64)  # [L, W]
    todo = np.arange(layers)
    while len(todo):
        if scope == "global":
            for part, needed in _batches(todo, binding, most):
                values[part] = _layer_programme(costs[part], steps, most, needed, trace=False)[0]
            before, spent = spent, _divide(values, above)
            todo = np.union1d(todo, np.flatnonzero(spent != before))
        for part, needed in _batches(todo, binding, int(spent[todo].max())):
            _, choices = _layer_programme(costs[part], steps, int(spent[part].max()), needed)
            chosen[part] = _trace(choices, steps, spent[part], needed)
        used = (chosen[:, :, None] == np.arange(len(steps))).sum(axis=1)  # [L, W]
        binding = np.where(used < floors, floors, binding)
        todo = np.flatnonzero((used < floors).any(axis=1))
    return chosen


def _batches(
    layers: NDArray[np.int64], binding: NDArray[np.int64], most: int
) -> Iterator[tuple[NDArray[np.int64], tuple[int, ...]]]:
    """Layers in which the same floors bind, few enough at a time for their programmes to stay in cache."""
    for needed in np.unique(binding[layers], axis=0):
        alike = layers[(binding[layers] == needed).all(axis=1)]
        states = (most + 1) * int(np.prod(needed + 1))
        for part in np.array_split(alike, math.ceil(len(alike) * states / _CACHED)):
            if len(part):
                yield part, tuple(needed.tolist())


_CACHED = 1 << 15  # states of a programme that are worked on together: 256 KiB, so that they stay in cache


def _layer_programme(
    costs: NDArray[np.float64], steps: tuple[int, ...], most: int, floors: tuple[int, ...], trace: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Multiple-choice knapsack by dynamic programming, all layers of `costs` [L, E, W] at once.

    Returns the least cost [L, most + 1] of spending b bits above the least possible, floors met (inf: impossible),
    and the choices [E, L, floor ..., most + 1] that lead there. The state before expert e is how many of each floor
    are still wanted from the experts e, e + 1, ... and how many bits they spend.
    """
    layers, experts, _ = costs.shape
    wanted = [n + 1 for n in floors]  # one axis for each width; of length 1 where there is no floor
    least = np.full((layers, *wanted, most + 1), np.inf)
    least.reshape(layers, -1)[:, 0] = 0.0  # after the last expert: nothing wanted, nothing spent
    choices = np.zeros((experts if trace else 0, *least.shape), dtype=np.uint8)
    for expert in reversed(range(experts)):
        after, least = least, np.full_like(least, np.inf)
        for j, step in enumerate(steps):
            if step > most:
                break
            spent = after[..., : most + 1 - step]
            if floors[j]:
                spent = spent.take(np.maximum(np.arange(wanted[j]) - 1, 0), axis=1 + j)
            spent = spent + costs[:, expert, j].reshape(layers, *[1] * (len(floors) + 1))
            reached = least[..., step:]
            if trace:
                np.copyto(choices[expert][..., step:], j, where=spent < reached)
            np.minimum(reached, spent, out=reached)
    return least.reshape(layers, -1, most + 1)[:, -1], choices  # before the first: all floors wanted


def _trace(
    choices: NDArray[np.uint8], steps: tuple[int, ...], above: NDArray[np.int64], floors: tuple[int, ...]
) -> NDArray[np.int64]:
    """The choices [L, E] that led to spending `above` [L], from those of `_layer_programme`."""
    experts, layers = choices.shape[:2]
    chosen = np.empty((layers, experts), dtype=np.int64)
    left = above.copy()
    wanted = [np.full(layers, n) for n in floors]
    for expert in range(experts):
        chosen[:, expert] = choices[(expert, np.arange(layers), *wanted, left)]
        left -= np.array(steps)[chosen[:, expert]]
        wanted = [np.maximum(n - (chosen[:, expert] == j), 0) for j, n in enumerate(wanted)]
    return chosen


def _divide(values: NDArray[np.float64], above: int) -> NDArray[np.int64]:
    """How many of the `above` bits each layer spends, where spending b bits in layer l costs `values[l, b]`.

    Min-plus convolution in a balanced tree. The root is wanted at one total only, and walking down from it each
    node is split by trying all splits of one number, so no choices are stored.
    """
    rows = [(int(kept[0]), row[kept[0] : kept[-1] + 1]) for row, kept in _promising(values, above)]
    levels = [rows]  # each node: the least number of bits it can spend, and the costs from there on
    while len(levels[-1]) > 2:
        nodes = levels[-1]
        levels.append([_merge(nodes[i : i + 2]) for i in range(0, len(nodes), 2)])
    spent = [above]
    if len(levels[-1]) == 1:
        return np.array(spent)
    spent = _split(levels[-1], above)
    for nodes in reversed(levels[:-1]):
        spent = [b for i, total in enumerate(spent) for b in _split(nodes[2 * i : 2 * i + 2], total)]
    return np.array(spent)


_Node = tuple[int, NDArray[np.float64]]


def _merge(nodes: Sequence[_Node]) -> _Node:
    """Min-plus convolution: the least cost of spending each total over two nodes (a node without a pair stays)."""
    if len(nodes) == 1:
        return nodes[0]
    (a, short), (b, long) = sorted(nodes, key=lambda node: len(node[1]))
    least = np.full(len(short) + len(long) - 1, np.inf)
    for i, cost in enumerate(short):
        reached = least[i : i + len(long)]
        np.minimum(reached, long + cost, out=reached)
    return a + b, least


def _split(nodes: Sequence[_Node], total: int) -> list[int]:
    """The cheapest division of a total over two nodes, the first getting the fewest bits of those equally cheap."""
    if len(nodes) == 1:
        return [total]
    (a, left), (b, right) = nodes
    first = max(0, total - a - b - len(right) + 1)
    last = min(len(left) - 1, total - a - b)
    sums = left[first : last + 1] + right[total - a - b - last : total - a - b - first + 1][::-1]
    mine = a + first + int(np.argmin(sums))
    return [mine, total - mine]


def _promising(values: NDArray[np.float64], above: int) -> list[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """For each layer the spendings that an optimal division can contain; the others are left out, without loss.

    For a price per bit every division costs at least the sum of the layers' least (cost + price * bits), less
    price * total. A spending that exceeds its layer's least by more than the distance of this bound to a division
    already in hand cannot be part of anything better.
    """
    bits = np.arange(values.shape[1])
    finite = np.where(np.isfinite(values), values, 0.0)
    low, high = -finite.max() - 1.0, finite.max() + 1.0
    for _ in range(80):
        price = (low + high) / 2
        if (values + price * bits).argmin(axis=1).sum() > above:
            low = price
        else:
            high = price
    priced = values + high * bits
    chosen = priced.argmin(axis=1)
    rows = np.arange(len(values))
    missing = above - int(chosen.sum())
    able = np.flatnonzero(chosen + missing < len(bits))
    if missing < 0 or not len(able):
        gap = np.inf
    else:  # the division in hand: one layer takes all that is missing
        gap = float((priced[able, chosen[able] + missing] - priced[able, chosen[able]]).min())
    slack = 1e-9 * float(finite.max() + abs(high) * len(bits))  # far above the rounding of the sums
    kept = (priced - priced[rows, chosen][:, None] <= gap + slack) & np.isfinite(values)
    return [(np.where(k, row, np.inf), np.flatnonzero(k)) for row, k in zip(values, kept, strict=True)]


def _integer_programme(
    costs: NDArray[np.float64], widths: tuple[int, ...], total: int, floors: tuple[int, ...]
) -> NDArray[np.int64]:
    """Eq. 4 of MC-MoE over `costs` [L, E, W] with one total, as written there: one binary per expert and width."""
    import pulp  # half a second to import, and only this solver needs it

    layers, experts, candidates = costs.shape
    # HiGHS works to absolute tolerances, and called an answer optimal that was 1e-4 worse when given raw costs.
    # Each expert takes exactly one width, so what is common to its widths can go; the rest is brought to order one.
    scaled = costs - costs.min(axis=2, keepdims=True)
    scaled = scaled / (np.median(scaled.max(axis=2)) or scaled.max() or 1.0)
    programme = pulp.LpProblem("allocation", pulp.LpMinimize)
    x = np.array(programme.add_variable_matrix("x", range(costs.size), cat="Binary"), dtype=object)
    x = x.reshape(costs.shape)
    programme += pulp.LpAffineExpression(zip(x.ravel(), scaled.ravel().tolist(), strict=True))
    bits = np.broadcast_to(np.array(widths), costs.shape).ravel().tolist()
    programme += pulp.LpAffineExpression(zip(x.ravel(), bits, strict=True)) == total
    for layer in range(layers):
        for expert in range(experts):
            programme += pulp.lpSum(x[layer, expert]) == 1
        for j in range(candidates):
            if floors[j]:
                programme += pulp.lpSum(x[layer, :, j]) >= floors[j]
    kinds = ("primal_feasibility", "dual_feasibility", "mip_feasibility")
    tolerances = {f"{kind}_tolerance": 1e-10 for kind in kinds}  # the least that HiGHS accepts
    status = programme.solve(pulp.HiGHS(msg=False, gapRel=0.0, gapAbs=0.0, threads=1, **tolerances))
    if pulp.LpStatus[status] != "Optimal":
        raise CheckFailed(f"HiGHS ended with {pulp.LpStatus[status]!r} on a programme that has a solution")
    taken = np.array([variable.value() for variable in x.ravel()], dtype=np.float64).reshape(costs.shape)
    chosen: NDArray[np.int64] = taken.argmax(axis=2)
    return chosen


@lru_cache(maxsize=64)
def _reachable_totals(
    experts: int, groups: int, widths: tuple[int, ...], floors: tuple[tuple[int, int], ...]
) -> NDArray[np.int64]:
    """Every sum of bits that `groups` layers of `experts` can have, `floors` kept in each, in rising order."""
    free = groups * (experts - sum(n for _, n in floors))
    sums = 1  # the set of sums above the least, as the bits of one whole number
    for _ in range(free):
        grown = sums
        for width in widths[1:]:
            grown |= sums << (width - widths[0])
        sums = grown
    bits = np.frombuffer(sums.to_bytes(sums.bit_length() // 8 + 1, "little"), dtype=np.uint8)
    above = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    return above + free * widths[0] + groups * sum(w * n for w, n in floors)
