"""The routed experts of one MoE layer, whatever way transformers stores them, as matrices [out, in].

transformers 5 keeps all experts of a layer in two fused parameters and dispatches their computation through one
registry, `transformers.integrations.moe.ALL_EXPERTS_FUNCTIONS`. The decorator behind it says how a class stores its
weights; that, and nothing about the architecture's name, is read here. A layout that is not understood is refused.

Letters in shapes: T tokens, K chosen experts, E experts, D width of the model, F inner width of an expert.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mcbench.errors import BadInput

Projection = Literal["gate", "up", "down"]
PROJECTIONS: tuple[Projection, ...] = ("gate", "up", "down")
READ = "_mcbench_read"  # of a module of experts: how many tokens T there will be, and the ones whose output is read
IMPLEMENTATION = "mcbench"  # the name under which our function stands in the registry

FEW_PAIRS = 1024  # (token, expert) pairs whose results are held at once

_DECLARED = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "is_concatenated")
_UNDERSTOOD = {"gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias"}


class ExpertCall(NamedTuple):
    """What the experts of a layer were asked to do: hidden [T, D], chosen [T, K], weight [T, K]."""

    hidden: Tensor
    chosen: Tensor
    weight: Tensor


@dataclass(eq=False)
class Experts:
    """The routed experts of one MoE layer. `name` is that of their module inside the model.

    policy: given hidden [T, D], the router's index [T, K] and weight [T, K], says which index and weight to run.
    """

    name: str
    module: nn.Module
    count: int
    width: int
    inner: int
    transposed: bool
    interleaved: bool
    biased: bool
    last_call: ExpertCall | None = field(default=None, repr=False)
    listening: bool = False
    policy: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = field(default=None, repr=False)

    def matrices(self, projection: str) -> Tensor:
        """[E, out, in] view of the stored weights: what is written into it is in the model."""
        if projection == "down":
            stored = self._parameter("down_proj")
            return stored.transpose(1, 2) if self.transposed else stored
        fused = self._parameter("gate_up_proj")
        return self._half(fused.transpose(1, 2) if self.transposed else fused, projection)

    def biases(self, projection: str) -> Tensor | None:
        """[E, out] view of the biases, None where the layout has none."""
        if not self.biased:
            return None
        if projection == "down":
            return self._parameter("down_proj_bias")
        return self._half(self._parameter("gate_up_proj_bias"), projection)

    def run(
        self,
        hidden: Tensor,
        index: Tensor,
        weight: Tensor,
        replaced: Mapping[tuple[int, str], Tensor] | None = None,
    ) -> Tensor:
        """[T, D] weighted sum over the chosen experts; an index equal to E runs nothing.

        Bit for bit what transformers' own eager loop computes: experts in rising order, the tokens of an expert
        sorted by slot, then by position. `replaced` holds matrices [out, in] by (expert, projection).
        """
        replaced = replaced or {}
        output = torch.zeros_like(hidden)
        chosen = index.t().reshape(-1)  # [K * T]
        order = torch.argsort(chosen, stable=True)
        counts = torch.bincount(chosen, minlength=self.count + 1).tolist()[: self.count]
        order = order[: sum(counts)]
        token, slot = order % len(index), order // len(index)
        ends = list(itertools.accumulate(counts, initial=0))
        parts = [(expert, slice(ends[expert], ends[expert + 1])) for expert in range(self.count) if counts[expert]]
        own = {e: {projection: replaced.get((e, projection)) for projection in PROJECTIONS} for e, _ in parts}
        if parts and len(order) <= FEW_PAIRS:  # products and sums are the same in whatever company; not so what gates
            rows = hidden[token]
            results = torch.cat([self.output(expert, rows[part], **own[expert]) for expert, part in parts])
            return output.index_add_(0, token, (results * weight[token, slot, None]).to(output.dtype))
        for expert, part in parts:
            here = token[part]
            rows = hidden[F.pad(here, (0, _surplus(hidden, len(here))))]
            result = self.output(expert, rows, **own[expert])[: len(here)] * weight[here, slot[part], None]
            output.index_add_(0, here, result.to(output.dtype))
        return output

    def output(
        self,
        expert: int,
        hidden: Tensor,
        gate: Tensor | None = None,
        up: Tensor | None = None,
        down: Tensor | None = None,
    ) -> Tensor:
        """[T, D]: the MLP of one expert, before its routing weight is applied."""
        stored = self._parameter("down_proj")[expert] if down is None else self._stored(down, hidden)
        return self._linear(self.hidden(expert, hidden, gate, up), stored, self._bias("down_proj_bias", expert))

    def hidden(self, expert: int, hidden: Tensor, gate: Tensor | None = None, up: Tensor | None = None) -> Tensor:
        """[T, F]: what enters the down projection of one expert."""
        stored = self._parameter("gate_up_proj")[expert]
        if gate is not None or up is not None:
            stored = stored.clone()
            rows = stored.t() if self.transposed else stored  # [2 F, D]
            for projection, matrix in (("gate", gate), ("up", up)):
                if matrix is not None:
                    self._half(rows[None], projection)[0].copy_(matrix)
        both = self._linear(hidden, stored, self._bias("gate_up_proj_bias", expert))
        gated: Tensor = self.module._apply_gate(both)  # type: ignore[operator]
        return gated

    def _half(self, both: Tensor, projection: str) -> Tensor:
        """[E, F, ...] the gate or the up part of [E, 2 F, ...]."""
        if projection not in ("gate", "up"):
            raise BadInput(f"an expert has no projection {projection!r}, only {', '.join(PROJECTIONS)}")
        second = projection == "up"
        if self.interleaved:
            return both[:, int(second) :: 2]
        return both[:, self.inner :] if second else both[:, : self.inner]

    def _linear(self, x: Tensor, stored: Tensor, bias: Tensor | None) -> Tensor:
        if not self.transposed:
            return F.linear(x, stored, bias)
        return x @ stored if bias is None else x @ stored + bias

    def _stored(self, matrix: Tensor, like: Tensor) -> Tensor:
        matrix = matrix.to(like.device, like.dtype)
        return matrix.t() if self.transposed else matrix

    def _bias(self, name: str, expert: int) -> Tensor | None:
        return self._parameter(name)[expert] if self.biased else None

    def _parameter(self, name: str) -> Tensor:
        parameter = getattr(self.module, name)
        assert isinstance(parameter, Tensor)
        return parameter.detach()


def find_experts(model: nn.Module) -> list[Experts]:
    """The experts of every MoE layer, in the order of the layers; empty for a dense model.

    Raises BadInput for experts that do not go through transformers' registry, and for a layout not understood.
    """
    modules = dict(model.named_modules())
    found = [_read(name, module) for name, module in modules.items() if decorated(module)]
    inside = tuple(f"{experts.name}." for experts in found)
    for name, module in modules.items():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2].endswith("experts") and len(module) > 1:
            raise BadInput(
                f"{name} holds its experts as a list of {type(module[0]).__name__}, not through transformers' experts"
                " registry; this layout is not supported"
            )
        if type(module).__name__.endswith("Experts") and not decorated(module) and not name.startswith(inside):
            raise BadInput(f"{name} ({type(module).__name__}) does not go through transformers' experts registry")
    sizes = {(experts.count, experts.width, experts.inner) for experts in found}
    if len(sizes) > 1:
        raise BadInput(f"the MoE layers differ in experts, width and inner width: {sorted(sizes)}; not supported")
    return found


def prove_layout(experts: Experts) -> None:
    """Runs a few random tokens through our computation and the model's own eager one; raises BadInput if they differ.

    On the CPU they must agree in every bit, elsewhere (index_add_ is not deterministic there) within rounding.
    """
    module, count = experts.module, experts.count
    like = experts._parameter("down_proj")
    generator = torch.Generator().manual_seed(0)
    tokens, chosen = 6, min(2, count)
    hidden = torch.randn(tokens, experts.width, generator=generator).to(like.device, like.dtype)
    index = torch.rand(tokens, count, generator=generator).topk(chosen).indices.to(like.device)
    weight = torch.rand(tokens, chosen, generator=generator).to(like.device, like.dtype)
    config: Any = module.config
    with torch.no_grad():
        ours = module(hidden, index, weight)
        try:
            config._experts_implementation_internal = "eager"
            theirs = module(hidden, index, weight)
        finally:
            config._experts_implementation_internal = IMPLEMENTATION
    if not (torch.equal(ours, theirs) if ours.is_cpu else torch.allclose(ours, theirs, rtol=1e-2, atol=1e-3)):
        raise BadInput(f"{experts.name} ({type(module).__name__}) computes other than its declared layout says")
    _prove_halves(experts)


def experts_forward(module: nn.Module, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """The function in transformers' registry: runs the experts of one layer and lets observers see the call."""
    experts: Experts | None = getattr(module, "_mcbench", None)
    if experts is None:
        experts = _read(type(module).__name__, module)
    if experts.listening:
        experts.last_call = ExpertCall(hidden, index, weight)
    if experts.policy is not None:
        index, weight = experts.policy(hidden, index, weight)
    tokens, read = module.__dict__.get(READ, (None, None))
    if tokens != len(hidden) or experts.listening or experts.policy is not None:
        return experts.run(hidden, index, weight)
    output = torch.zeros_like(hidden)
    output[read] = experts.run(hidden[read], index[read], weight[read])
    return output


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)


def _surplus(hidden: Tensor, rows: int) -> int:
    """How many rows more an expert is given, whose results are dropped.

    In 16 bits on a processor a product of a number of rows not met before costs as much as hundreds of rows, for which
    torch has its kernel made anew; numbers of five significant bits are soon met, and at most a sixteenth is added.
    """
    if hidden.device.type != "cpu" or hidden.element_size() != 2:
        return 0
    return -rows % (1 << max(0, rows.bit_length() - 5))


def decorated(module: nn.Module) -> bool:
    """Whether a module holds the routed experts of a layer, by transformers' own mark."""
    return hasattr(module, "is_concatenated") and hasattr(module, "is_transposed")


def _read(name: str, module: nn.Module) -> Experts:
    """The layout that the decorator declared, checked against the parameters that are there."""
    kind = f"{name} ({type(module).__name__})"
    flags = {flag: bool(getattr(module, flag, False)) for flag in _DECLARED}
    if not flags["has_gate"]:
        raise BadInput(f"{kind} has experts without a gate projection; this layout is not supported")
    if flags["has_post_expert_norm"]:
        raise BadInput(f"{kind} normalises the output of each expert; this layout is not supported")
    shapes = {key: tuple(value.shape) for key, value in module.named_parameters()}
    wanted = _UNDERSTOOD if flags["has_bias"] else {"gate_up_proj", "down_proj"}
    if set(shapes) != wanted:
        odd = ", ".join(sorted(set(shapes) ^ wanted))
        raise BadInput(f"{kind} has other parameters than its declared layout: {odd}; it is not supported")
    count, *down = shapes["down_proj"]
    width, inner = reversed(down) if flags["is_transposed"] else down
    both = (count, width, 2 * inner) if flags["is_transposed"] else (count, 2 * inner, width)
    if shapes["gate_up_proj"] != both or int(getattr(module, "num_experts", count)) != count:
        raise BadInput(f"{kind} stores {shapes}, which does not fit its declared layout; it is not supported")
    return Experts(
        name=name,
        module=module,
        count=count,
        width=width,
        inner=inner,
        transposed=flags["is_transposed"],
        interleaved=not flags["is_concatenated"],
        biased=flags["has_bias"],
    )


def _prove_halves(experts: Experts) -> None:
    """Checks that output j of the gating depends on gate j and up j as the layout places them, and on nothing else."""
    like = experts._parameter("down_proj")
    generator = torch.Generator().manual_seed(1)
    both = torch.randn(1, 2 * experts.inner, generator=generator).to(like.device, like.dtype)
    changed = both.clone()
    for projection in ("gate", "up"):
        experts._half(changed, projection)[:, ::2] += 1.0
    apply: Any = experts.module._apply_gate
    same = (apply(both) == apply(changed))[0]
    if bool(same[::2].all()) or not bool(same[1::2].all()):
        raise BadInput(f"{experts.name} ({type(experts.module).__name__}) mixes gate and up other than it declares")
