"""Does a method keep the promises that the engine builds on? Tried on a tiny random model, in seconds."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcbench.composition import METHODS, Composition, compose, defaults
from mcbench.declarations import require_answers, require_declarations
from mcbench.method import DECISIONS, Method, decisions

if TYPE_CHECKING:
    from torch import Tensor

    from mcbench.allocation import BitAllocation, BitBudget
    from mcbench.calibration import CalibrationStats
    from mcbench.model import MoEModel
    from mcbench.policy import RoutingPolicy
    from mcbench.text import CalibrationData

LAYERS, EXPERTS = 2, 4
WIDTHS = (1, 2, 3)


@dataclass(frozen=True)
class Promise:
    """One thing a method was held to; `broken` says what happened instead, and is empty where it was kept."""

    text: str
    broken: str = ""

    @property
    def kept(self) -> bool:
        return not self.broken

    def __str__(self) -> str:
        return f"kept    {self.text}" if self.kept else f"BROKEN  {self.text}: {self.broken}"


def check_method(name: str) -> list[Promise]:
    """Holds the method called `name`, or defined in that file, to every promise that its decisions entail.

    A name or file that is not a method at all raises, as `METHODS.get` does; an exception inside a promise breaks it.
    """
    kind = METHODS.get(name)
    promises = [_try(text, partial(test, kind)) for text, test in _FORM.items()]
    if not all(promise.kept for promise in promises):
        return promises
    composition = compose(name)
    promises.append(_try("its method string reads back to itself", lambda: _reads_back(composition)))
    for decision in decisions(kind):
        tests = {"allocate": _ALLOCATE, "quantize": _QUANTIZE, "route": _ROUTE}[decision]
        promises += [_try(text, partial(test, composition)) for text, test in tests.items()]
    return promises


def _try(text: str, test: Callable[[], str | None]) -> Promise:
    try:
        return Promise(text, test() or "")
    except Exception as error:  # whatever a contribution raises breaks its promise, and is shown
        return Promise(text, f"{type(error).__name__}: {error}")


def _is_frozen_dataclass(kind: type[Method]) -> str | None:
    parameters = getattr(kind, "__dataclass_params__", None)
    own = "__dataclass_fields__" in vars(kind)
    return None if own and parameters and parameters.frozen else "write @dataclass(frozen=True) above the class"


def _is_documented(kind: type[Method]) -> str | None:
    own = kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(")
    if not own:
        return "the class has no docstring"
    opening = inspect.getdoc(inspect.getmodule(kind))
    return None if opening else "the file does not open with a sentence about the method"


def _declares_what_can_be(kind: type[Method]) -> str | None:
    from mcbench.errors import BadInput

    try:
        require_declarations(kind, kind.__name__)
        require_answers(kind(), kind.__name__)
    except BadInput as error:
        return str(error)
    return None


def _has_defaults(kind: type[Method]) -> str | None:
    kind()
    return None


def _decides(kind: type[Method]) -> str | None:
    return None if decisions(kind) else f"it overrides none of {', '.join(DECISIONS)}"


_FORM: dict[str, Callable[[type[Method]], str | None]] = {
    "it is a frozen dataclass": _is_frozen_dataclass,
    "it is documented": _is_documented,
    "every hyper-parameter has a default": _has_defaults,
    "it takes at least one decision": _decides,
    "what it declares can be": _declares_what_can_be,
}


def _reads_back(composition: Composition) -> str | None:
    again = compose(str(composition))
    return None if again.parts == composition.parts else f"{composition} reads back as {again}"


def _budgets(method: Method) -> Iterator[BitBudget]:
    from mcbench.allocation import BitBudget

    count = _model().weight_count()
    averages = method.reachable(count, WIDTHS)
    for average in averages or np.arange(EXPERTS * WIDTHS[0] + 3, EXPERTS * WIDTHS[-1]) / EXPERTS:
        yield BitBudget.from_expert_bits(float(average), count, WIDTHS)


def _knows_its_needs(composition: Composition) -> str | None:
    from mcbench.calibration import known_needs

    unknown = set(composition.allocator.needs) - set(known_needs())
    return f"calibration knows nothing called {', '.join(sorted(unknown))}" if unknown else None


def _meets_budgets(composition: Composition) -> str | None:
    stats = _stats(composition)
    for budget in _budgets(composition.allocator):
        allocation = composition.allocator.allocate(stats, budget)
        shape = (budget.count.layers, budget.count.experts)
        if allocation.widths.shape != shape:
            return f"widths are {allocation.widths.shape}, not layers x experts = {shape}"
        if abs(allocation.expert_average - budget.expert_bits) > 0.5 / EXPERTS + 1e-9:
            return f"{budget.expert_bits} bits were asked and {allocation.expert_average} spent"
    return None


def _is_deterministic(composition: Composition) -> str | None:
    stats = _stats(composition)
    for budget in _budgets(composition.allocator):
        first, second = (composition.allocator.allocate(stats, budget) for _ in range(2))
        if first != second:
            return f"two calls at {budget.expert_bits} bits differ"
    return None


def _leaves_statistics_alone(composition: Composition) -> str | None:
    stats = _stats(composition)
    before = {name: table.copy() for name, table in stats.tables.items()}
    composition.allocator.allocate(stats, next(_budgets(composition.allocator)))
    changed = [name for name, table in before.items() if not np.array_equal(table, stats.tables[name], equal_nan=True)]
    return f"it changed {', '.join(changed)}" if changed else None


def _copes_with_unseen_experts(composition: Composition) -> str | None:
    stats = _stats(composition)
    tables = {name: table.copy() for name, table in stats.tables.items()}
    for table in tables.values():
        if table.ndim >= 2 and table.shape[1] == EXPERTS:
            table[0, 1] = np.nan if np.isnan(table).any() else 0
    unseen = dataclasses.replace(stats, tables=tables)
    for budget in _budgets(composition.allocator):
        composition.allocator.allocate(unseen, budget)
    return None


def _ends_covered(composition: Composition) -> str | None:
    from mcbench.compression import compress
    from mcbench.store import ExpertStore

    model = _model()
    allocation: BitAllocation = composition.allocator.allocate(
        _stats(composition), list(_budgets(composition.allocator))[-1]
    )
    store = ExpertStore(model, _data(), _default_quantizer(), "default", (*WIDTHS, 16))
    compress(model, allocation, store).restore()  # raises CheckFailed where a matrix is not at its width
    return None


_ALLOCATE: dict[str, Callable[[Composition], str | None]] = {
    "it needs only statistics that calibration has": _knows_its_needs,
    "it meets every budget within half a step": _meets_budgets,
    "the same statistics and budget give the same widths": _is_deterministic,
    "it leaves the statistics alone": _leaves_statistics_alone,
    "it copes with an expert that calibration never saw": _copes_with_unseen_experts,
    "every expert matrix ends at its width": _ends_covered,
}


@dataclass(frozen=True)
class _Quantized:
    """Three matrices [3, 16, 32], their Hessians, and the widths that the quantiser knows."""

    quantizer: Method

    def run(self, first: int = 0, last: int = 3, *, blind: bool = False) -> dict[int, NDArray[np.float32]]:
        """The dequantised values of matrices first to last at every width, Hessians zero where `blind`."""
        weights, hessian = self.inputs()
        given = (hessian * (not blind))[first:last] if self.quantizer.needs_hessian else None
        codes = self.quantizer.quantize(weights[first:last], self.widths(), given)
        return {width: stack.dequantize().numpy() for width, stack in codes.items()}

    def inputs(self) -> tuple[Tensor, Tensor]:
        import torch

        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(3, 16, 32, generator=generator)
        inputs = torch.randn(3, 64, 32, generator=generator) @ torch.randn(3, 32, 32, generator=generator)
        return weights, 2 * inputs.transpose(1, 2) @ inputs / 64

    def widths(self) -> tuple[int, ...]:
        from mcbench.errors import BadInput

        weights, hessian = self.inputs()
        known = []
        for width in (1, 2, 3, 4, 8):
            try:
                self.quantizer.quantize(weights[:1], (width,), hessian[:1] if self.quantizer.needs_hessian else None)
            except BadInput:  # a quantiser may refuse a width; anything else it raises is a broken promise
                continue
            known.append(width)
        return tuple(known)


def _quantizes_something(composition: Composition) -> str | None:
    return None if _Quantized(composition.quantizer).widths() else "it refuses every width from 1 to 8"


def _keeps_shape_and_finite(composition: Composition) -> str | None:
    for width, values in _Quantized(composition.quantizer).run().items():
        if values.shape != (3, 16, 32) or not np.isfinite(values).all():
            return f"at {width} bits"
    return None


def _same_in_a_batch(composition: Composition) -> str | None:
    work = _Quantized(composition.quantizer)
    together, apart = work.run(), [work.run(i, i + 1) for i in range(3)]
    for width, values in together.items():
        if not np.array_equal(values, np.concatenate([single[width] for single in apart])):
            return f"at {width} bits one by one differs from all at once"
    return None


def _same_again(composition: Composition) -> str | None:
    work = _Quantized(composition.quantizer)
    first, second = work.run(), work.run()
    differ = [str(width) for width in first if not np.array_equal(first[width], second[width])]
    return f"two calls differ at {', '.join(differ)} bits" if differ else None


def _never_zero(composition: Composition) -> str | None:
    for width, values in _Quantized(composition.quantizer).run(blind=True).items():
        if not np.abs(values).sum(axis=(1, 2)).all():
            return f"at {width} bits a matrix became zero"
    return None


def _more_bits_less_error(composition: Composition) -> str | None:
    work = _Quantized(composition.quantizer)
    weights, _ = work.inputs()
    errors = {w: float(np.square(v - weights.numpy()).sum()) for w, v in work.run(blind=True).items()}
    ordered = [errors[w] for w in sorted(errors)]
    return None if ordered == sorted(ordered, reverse=True) else f"squared errors by width: {errors}"


_QUANTIZE: dict[str, Callable[[Composition], str | None]] = {
    "it knows at least one width": _quantizes_something,
    "what it makes is finite and of the same shape": _keeps_shape_and_finite,
    "matrices in a batch come out as one by one": _same_in_a_batch,
    "the same weights give the same codes": _same_again,
    "an expert that no token reaches is not zeroed": _never_zero,
    "more bits leave less error in the weights": _more_bits_less_error,
}


@dataclass(frozen=True)
class _Routing:
    """A policy in the tiny model: what it keeps of the pairs of some tokens."""

    policy: RoutingPolicy

    @classmethod
    def of(cls, composition: Composition) -> _Routing:
        from mcbench.policy import fit

        part = composition.policy
        assert part is not None
        return cls(fit(str(part), part.method, _model(), _data()))

    @classmethod
    def once(cls, composition: Composition) -> _Routing:
        """The same, learnt only the first time it is asked for."""
        return _routing_once(str(composition))

    def kept(self, ids: Tensor, mask: Tensor | None = None) -> NDArray[np.bool_]:
        """[L, B, S, K] which pairs run, each token's heaviest first; False at padding."""
        from mcbench.routing import Choices, Routed

        found = []

        def note(choices: Choices) -> Routed:
            routed = self.policy(choices)
            found.append((routed.keep & choices.real[:, None]).view(*ids.shape, -1).cpu().numpy())
            return routed

        with _model().route(note, sees=self.policy.method.sees, layers=self.policy.layers):
            found.clear()
            _model().logits(ids, mask)
        return np.stack(found)


def _routes_alike_again(composition: Composition) -> str | None:
    learnt = (_Routing.once(composition), _Routing.of(composition))
    first, second = (routing.kept(_data().input_ids) for routing in learnt)
    return None if np.array_equal(first, second) else "learnt twice from the same data, it keeps other pairs"


def _routes_alike_in_a_batch(composition: Composition) -> str | None:
    routing, ids = _Routing.once(composition), _data().input_ids[:3]
    together = routing.kept(ids)
    alone = np.concatenate([routing.kept(row[None]) for row in ids], axis=1)
    return None if np.array_equal(together, alone) else "a sequence alone keeps other pairs than in a batch"


def _routes_alike_padded(composition: Composition) -> str | None:
    import torch

    routing, ids = _Routing.once(composition), _data().input_ids[:2]
    padding = torch.zeros(2, 5, dtype=ids.dtype)
    mask = torch.cat([padding, torch.ones_like(ids)], dim=1)
    padded = routing.kept(torch.cat([padding, ids], dim=1), mask)[:, :, 5:]
    return None if np.array_equal(padded, routing.kept(ids)) else "padding on the left changes what is kept"


def _is_causal_if_it_says_so(composition: Composition) -> str | None:
    routing, ids = _Routing.once(composition), _data().input_ids[:2]
    half = ids.shape[1] // 2
    same = np.array_equal(routing.kept(ids)[:, :, :half], routing.kept(ids[:, :half]))
    return None if same or not routing.policy.method.causal else "it says that it is causal, yet later tokens matter"


def _gives_finite_weights(composition: Composition) -> str | None:
    import torch

    routing = _Routing.once(composition)
    with routing.policy.applied(_model()):
        logits = _model().logits(_data().input_ids)
    return None if bool(torch.isfinite(logits).all()) else "under it the model computes NaN or infinity"


def _is_kept_in_files(composition: Composition) -> str | None:
    import tempfile

    from mcbench.policy import load_policy

    policy = _Routing.once(composition).policy
    with tempfile.TemporaryDirectory() as folder:
        again = load_policy(policy.save(folder), policy.name, policy.method)
    return None if again.key == policy.key else "saved and loaded, it is another"


_ROUTE: dict[str, Callable[[Composition], str | None]] = {
    "the same data give the same policy": _routes_alike_again,
    "a sequence is routed the same alone and in a batch": _routes_alike_in_a_batch,
    "padding changes nothing": _routes_alike_padded,
    "where it says that it is causal, later tokens change nothing": _is_causal_if_it_says_so,
    "the weights that it gives are finite": _gives_finite_weights,
    "saved and loaded it is the same": _is_kept_in_files,
}


@cache
def _routing_once(text: str) -> _Routing:
    return _Routing.of(compose(text))


@cache
def _model() -> MoEModel:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    from mcbench.model import MoEModel

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MoEModel(MixtralForCausalLM(config).eval(), None, "tiny random Mixtral")


@cache
def _data() -> CalibrationData:
    import torch

    from mcbench.text import CalibrationData

    ids = torch.randint(0, 64, (8, 32), generator=torch.Generator().manual_seed(0))
    return CalibrationData(ids, torch.ones_like(ids), "random tokens")


def _default_quantizer() -> Method:
    return compose(defaults()["parts"]["quantize"]).quantizer


@cache
def _stats_for(needs: frozenset[str]) -> CalibrationStats:
    from mcbench.calibration import calibrate
    from mcbench.store import ExpertStore

    store = ExpertStore(_model(), _data(), _default_quantizer(), "default", WIDTHS)
    return calibrate(_model(), _data(), needs, store=store, widths=WIDTHS)


def _stats(composition: Composition) -> CalibrationStats:
    return _stats_for(frozenset(composition.allocator.needs))
