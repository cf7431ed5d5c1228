"""Spending bits: what an average counts, how many whole bits a budget is, and the cheapest way to spend them on experts.

Numpy only. Letters in shapes: L MoE layers, E routed experts per layer, W candidate widths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mcbench.errors import BadInput

WIDTHS = (1, 2, 3, 4, 8, 16)  # 16 means kept as it is

Scope = Literal["layer", "global"]
Solver = Literal["dp", "ilp"]


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
        if not self.widths or any(w not in WIDTHS for w in self.widths):
            raise BadInput(f"widths must be some of {WIDTHS}, not {self.widths}")
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
        groups = 1 if scope == "layer" else self.count.layers
        totals = _reachable_totals(self.count.experts, groups, self.widths, tuple((floors or {}).items()))
        experts = groups * self.count.experts
        return round(self.nearest(totals / experts) * experts)

    def nearest(self, reachable: Sequence[float] | NDArray[np.float64]) -> float:
        """The value of `reachable`, averages in bits per routed expert, that is nearest to the one asked for.

        Of two equally near ones the smaller. Raises BadInput as `total` does.
        """
        values = np.unique(np.asarray(reachable, dtype=np.float64))
        distance = np.abs(values - self.expert_bits)
        best = int(np.argmax(distance <= distance.min() + 1e-9))
        if distance[best] > 0.5 / self.count.experts + 1e-9:
            raise BadInput(self._refusal(values))
        return float(values[best])

    def _refusal(self, reachable: NDArray[np.float64]) -> str:
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
        return f"{what} {self.asked:g} bits cannot be made from widths {self.widths}; reachable: {known}"


@dataclass(frozen=True, eq=False)
class BitAllocation:
    """The width of every routed expert [L, E], and of everything else; 16 means kept."""

    widths: NDArray[np.int64]
    attention: int = 4
    shared: int = 4
    router: int = 16

    def __post_init__(self) -> None:
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
        widths = np.array(data["widths"], dtype=np.int64)
        return cls(
            widths.reshape(len(data["widths"]), -1), int(data["attention"]), int(data["shared"]), int(data["router"])
        )


@lru_cache(maxsize=64)
def _reachable_totals(
    experts: int, groups: int, widths: tuple[int, ...], floors: tuple[tuple[int, int], ...]
) -> NDArray[np.int64]:
    """Every sum of bits that `groups` layers of `experts` can have, each layer keeping its `floors`, in rising order."""
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
