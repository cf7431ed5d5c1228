"""What calibration learnt about a model: one frozen value that every allocation method reads and nothing else.

It needs neither the model nor torch: loading it and allocating from it is a matter of milliseconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mcbench.allocation import WeightCount
from mcbench.errors import BadInput
from mcbench.sealed import Damaged, content_digest, read_json, read_tensors, write_json, write_tensors

KIND = "calibration statistics 2"  # what its files say that they are; another number is another layout
TABLES, DESCRIPTION = "stats.safetensors", "stats.json"
Array = NDArray[Any]

ROUNDING = 1e-9  # by which a divergence may lie below 0
PER_EXPERT = ("token_count", "routing_weight", "renormalized_weight", "hessian_trace", "hessian_trace:hutchinson")
PER_WIDTH = ("quantization_error:", "output_divergence:", "weight_error:")  # how the names of such tables begin


@dataclass(frozen=True, eq=False)
class CalibrationStats:
    """Statistics of L MoE layers with E routed experts each, by the name under which a method `needs` them.

    count: how many weights of each kind the model has (what bit figures average over).
    widths: the candidate bit-widths W, the last axis of every table that has one.
    tokens: calibration tokens, padding not counted.
    top_k: experts chosen for a token.
    tables: the statistics. Only what was asked for is there; reading another one raises BadInput that says so.
    starved_below: an expert with fewer tokens than this counts as starved (a quarter of its widest input).
    provenance: digests of model and data, the quantiser and the settings behind the numbers.
    """

    count: WeightCount
    widths: tuple[int, ...]
    tokens: int
    top_k: int
    tables: Mapping[str, Array]
    starved_below: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """L, the number of MoE layers."""
        return self.count.layers

    @property
    def experts(self) -> int:
        """E, the number of routed experts of a layer."""
        return self.count.experts

    @property
    def token_count(self) -> Array:
        """[L, E] tokens that chose the expert; each row sums to `tokens` x `top_k`."""
        return self.table("token_count")

    @property
    def frequency(self) -> Array:
        """[L, E] share of the tokens that chose the expert (phi of MC-MoE, with N in tokens); rows sum to `top_k`."""
        return self.token_count / max(self.tokens, 1)

    @property
    def routing_weight(self) -> Array:
        """[L, E] sum over the tokens that chose the expert of the router's probability before top-k renormalisation.

        As MC-MoE's release computes it (its rows sum to about 0.6 per token on Mixtral); the paper does not say.
        """
        return self.table("routing_weight")

    @property
    def renormalized_weight(self) -> Array:
        """[L, E] the same sum after dividing by the token's top-k sum: each row sums to `tokens`."""
        return self.table("renormalized_weight")

    @property
    def weight_ratio(self) -> Array:
        """[L, K-1] median over tokens of (weight of the r-th chosen expert) / (weight of the first), r = 1..K-1."""
        return self.table("weight_ratio")

    @property
    def block_cosine(self) -> Array:
        """[L] mean over tokens of the cosine between the input and the output of the MoE block."""
        return self.table("block_cosine")

    @property
    def predicted_cosine(self) -> Array:
        """[L] the same mean as the learned block score predictor (2406.08155) sees it, from the block input alone."""
        return self.table("predicted_cosine")

    @property
    def block_norm(self) -> Array:
        """[L, 2] mean Euclidean norm of a token at the input and at the output of the MoE block."""
        return self.table("block_norm")

    @property
    def hessian_trace(self) -> Array:
        """[L, E] mean over the weights of the expert of the diagonal of its layer-wise squared-error Hessian.

        For one matrix [out, in] the loss is the mean over the tokens routed to the expert of ||dW x||^2; its Hessian
        is `out` copies of 2 mean(x x^T). Tokens are averaged, so frequency is not in it: see `mcbench.calibration`.
        """
        return self.table("hessian_trace")

    def quantization_error(
        self,
        quantizer: str,
        widths: Sequence[int] | None = None,
        *,
        aggregation: Literal["frobenius", "batch-sum"] = "frobenius",
    ) -> Array:
        """[L, E, W] norm of the change of the MoE block's output when this expert alone is quantised (MC-MoE, eq. 3).

        quantizer: "minmax" (round-to-nearest as released) or "final" (the one that makes the compressed weights).
        aggregation: the Frobenius norm over all calibration tokens, or the sum of one norm per batch, as released.
        """
        suffix = "" if aggregation == "frobenius" else f":{aggregation}"
        return self._by_width(f"quantization_error:{quantizer}{suffix}", widths)

    def output_divergence(
        self, measure: Literal["kl", "fnorm"], quantizer: str, widths: Sequence[int] | None = None
    ) -> Array:
        """[L, E, W] change of the model's output when this expert alone is quantised (eq. 3 as the paper words it).

        measure: "kl", mean over tokens of KL(original || changed) in nats, or "fnorm", Frobenius norm of the
        difference of the logits.
        """
        return self._by_width(f"output_divergence:{measure}:{quantizer}", widths)

    def weight_error(self, quantizer: str, widths: Sequence[int] | None = None) -> Array:
        """[L, E, W] squared Frobenius norm of the change of the expert's weights, summed over its matrices."""
        return self._by_width(f"weight_error:{quantizer}", widths)

    @property
    def unseen(self) -> tuple[tuple[int, int], ...]:
        """(layer, expert) of every expert that no calibration token chose."""
        return _places(self.token_count == 0)

    @property
    def starved(self) -> tuple[tuple[int, int], ...]:
        """(layer, expert) of every expert chosen by some token but by fewer than `starved_below`."""
        return _places((self.token_count > 0) & (self.token_count < self.starved_below))

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Every number that had to be estimated because its expert saw no token, in words."""
        return tuple(self.provenance.get("fallbacks", ()))

    def table(self, name: str) -> Array:
        """The statistic that a method calls `name` in its `needs`; BadInput where it was not collected."""
        if name not in self.tables:
            have = ", ".join(sorted(self.tables)) or "nothing"
            raise BadInput(
                f"the calibration holds no {name!r} (it holds {have}); calibrate again with it among the needs"
            )
        return self.tables[name]

    def missing(self, needs: Sequence[str]) -> tuple[str, ...]:
        """Those of `needs` that were not collected."""
        return tuple(name for name in needs if name not in self.tables)

    def save(self, folder: str | Path) -> None:
        """Writes `stats.safetensors` and `stats.json` into `folder`, each sealed, complete or not at all."""
        folder, header = Path(folder), self._header()
        tables = {name: np.ascontiguousarray(table) for name, table in self.tables.items()}
        write_tensors(folder / TABLES, KIND, {"description": content_digest(header)}, tables, framework="np")
        write_json(folder / DESCRIPTION, KIND, {"calibration": self.provenance.get("key", "")}, header)

    @classmethod
    def load(cls, folder: str | Path) -> CalibrationStats:
        """The value that `save` wrote; BadInput where it is absent, damaged or of another schema."""
        try:
            stats = cls.kept(folder)
        except Damaged as error:
            raise Damaged(f"{error}; delete it and run again") from None
        if stats is None:
            raise BadInput(f"{str(folder)!r} holds no calibration: {DESCRIPTION} is missing")
        return stats

    @classmethod
    def kept(cls, folder: str | Path, key: str | None = None) -> CalibrationStats | None:
        """The value that `save` wrote, None where there is none; Damaged where it is not as it was written.

        `key` is what the value has to say that it depends on (`provenance["key"]`).
        """
        folder = Path(folder)
        header = read_json(folder / DESCRIPTION, KIND, None if key is None else {"calibration": key})
        if header is None:
            return None
        of = {"description": content_digest(header)}
        found = read_tensors(folder / TABLES, KIND, of, framework="np")
        if found is None:
            raise Damaged.of(folder / TABLES, KIND, f"it is missing beside {DESCRIPTION}")
        try:
            named = header.pop("tables")
            count = WeightCount(**header.pop("count"))
            stats = cls(count=count, widths=tuple(header.pop("widths")), tables=found[0], **header)
            problem = "" if sorted(found[0]) == named else "the two files do not belong together"
            problem = problem or stats._problem()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            problem = str(error) or type(error).__name__
        if problem:
            raise Damaged.of(folder / TABLES, KIND, problem)
        return stats

    def _problem(self) -> str:
        """What in the tables cannot be, in words; empty where all can."""
        layers, experts, widths = self.layers, self.experts, len(self.widths)
        for name, table in self.tables.items():
            if table.dtype.kind not in "if" or table.shape[:1] != (layers,):
                return f"{name} is a table of {table.dtype} {table.shape}, not one of {layers} layers"
            if name in PER_EXPERT and table.shape != (layers, experts):
                return f"{name} has the shape {table.shape}, not one value for each of {layers} x {experts} experts"
            if name.startswith(PER_WIDTH) and table.shape != (layers, experts, widths):
                return f"{name} has the shape {table.shape}, not {(layers, experts, widths)}"
            if (name in PER_EXPERT or name.startswith(PER_WIDTH)) and not bool((table >= -ROUNDING).all()):
                return f"{name} holds a number that is negative or none"
        chosen = self.tables.get("token_count")
        if chosen is not None and (chosen.dtype.kind != "i" or int(chosen.sum(1).max()) > self.tokens * self.top_k):
            return f"token_count holds more than the {self.top_k} experts of each of {self.tokens} tokens"
        return ""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CalibrationStats)
            and self._header() == other._header()
            and all(
                a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
                for a, b in ((self.tables[name], other.tables[name]) for name in self.tables)
            )
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def _header(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields |= {"count": dataclasses.asdict(self.count), "widths": list(self.widths), "tables": sorted(self.tables)}
        header: dict[str, Any] = json.loads(json.dumps(fields))  # what JSON would give back
        return header

    def _by_width(self, name: str, widths: Sequence[int] | None) -> Array:
        values = self.table(name)
        if widths is None:
            return values
        absent = [w for w in widths if w not in self.widths]
        if absent:
            raise BadInput(
                f"{name!r} was measured at {self.widths} bits, not at {absent[0]}; calibrate with that width"
            )
        return values[..., [self.widths.index(w) for w in widths]]


def _places(where: Array) -> tuple[tuple[int, int], ...]:
    return tuple((int(layer), int(expert)) for layer, expert in np.argwhere(where))
