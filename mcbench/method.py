"""What a compression method is: a frozen dataclass that takes one or more of the decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mcbench.bounds import require_bounds

if TYPE_CHECKING:  # torch stays out of reach until a method computes with it
    from torch import Tensor

    from mcbench.allocation import BitAllocation, BitBudget, WeightCount
    from mcbench.calibration import CalibrationStats
    from mcbench.model import MoEModel
    from mcbench.quantization import QuantizedTensor
    from mcbench.routing import Choices, Learnt, Routed
    from mcbench.text import CalibrationData

DECISIONS = ("allocate", "quantize", "route")
SIGHTS = ("hidden", "logits", "attention")  # what a policy may look at beside the router's choice


@dataclass(frozen=True)
class Method:
    """Base of everything in `methods/`. A subclass owns each decision whose function it overrides.

    Its fields are its hyper-parameters: the method string sets them, the record stores them, `mcbench show` prints
    them. What a field is called means nothing. What changes how a method is run is declared by attributes of its class,
    written without annotation or as ClassVar, and checked when methods are composed (`mcbench.declarations`):

    paper: the address of its paper, in text.
    needs_hessian: `quantize` gets Hessians, so that calibration text is needed.
    compresses: False for what leaves the model as it is: no other part but a routing policy goes with it.
    seed_field: the name of the field, int or None with default None, that is filled from `--seed` where nobody set it.
    inputs_field: of a quantiser that needs a Hessian: the field, "original" or "quantized" with the former as default,
        that says whose inputs it is made of; "quantized" are those of the model whose earlier layers are quantised.
    layers_field: of a routing policy: the field, tuple[int, ...] or None with default None, that says in which MoE
        layers it is asked; None means all of them.
    fitted_field: of a routing policy: the field, text with default "", that names a folder with what an earlier run
        learnt, which then is read in place of `learn`.
    """

    paper: ClassVar[str] = ""
    needs_hessian: ClassVar[bool] = False
    compresses: ClassVar[bool] = True
    seed_field: ClassVar[str] = ""
    inputs_field: ClassVar[str] = ""
    layers_field: ClassVar[str] = ""
    fitted_field: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Raises BadInput for a field out of its bounds (see `mcbench.bounds`); a subclass calls it from its own."""
        require_bounds(self, type(self).__name__)

    @property
    def needs(self) -> tuple[str, ...]:
        """The calibration statistics that `allocate` reads, by name (see `mcbench.calibration`)."""
        return ()

    def allocate(self, stats: CalibrationStats, budget: BitBudget) -> BitAllocation:
        """How many bits each expert gets; must meet `budget` and depend on nothing but its arguments and fields."""
        raise NotImplementedError

    def reachable(self, count: WeightCount, widths: tuple[int, ...]) -> tuple[float, ...] | None:
        """The average expert widths that `allocate` can make, in bits; None where every whole total can be made."""
        return None

    def quantize(self, weights: Tensor, widths: Sequence[int], hessian: Tensor | None) -> dict[int, QuantizedTensor]:
        """Turns matrices [N, out, in] into codes, once for each width.

        `hessian` [N, in, in] is 2 x x^T averaged over the tokens that reach each matrix; it is None unless the class
        sets `needs_hessian`. N matrices at once must give what N calls of one matrix give.
        """
        raise NotImplementedError

    # ---- route: which of the chosen experts run, for this token, now?

    @property
    def sees(self) -> tuple[str, ...]:
        """What `route` looks at beside the router's choice: of "hidden", "logits" and "attention"."""
        return ()

    @property
    def causal(self) -> bool:
        """Whether a token's experts depend on nothing that comes after it, so that scores mean what generation does.

        Where they do depend on it, teacher-forced scores see tokens that generation would not have: they are computed
        from whole sequences, each for itself, and generated text follows the policy's rule for decoding.
        """
        return True

    @property
    def prefix_cacheable(self) -> bool:
        """Whether the state of a shared context may be reused: its tokens' experts do not depend on what follows."""
        return self.causal

    def learn(self, model: MoEModel, data: CalibrationData) -> Learnt:
        """What `route` has to know about the model that it will run in, found out on calibration data."""
        from mcbench.routing import Learnt

        return Learnt({}, {})

    def route(self, choices: Choices, learnt: Mapping[str, Tensor]) -> Routed:
        """Which (token, expert) pairs of one layer run, and with what weights; `learnt` are the tables of `learn`.

        A token's answer must not depend on other sequences of the batch or on padding.
        """
        raise NotImplementedError


def declared(method: Method, declaration: str) -> Any:
    """The value of the field that a declaration such as `layers_field` names; None where it names none."""
    name = getattr(type(method), declaration)
    return getattr(method, name) if name else None


def decisions(method: Method | type[Method]) -> tuple[str, ...]:
    """The decisions that a method takes, in the order of the pipeline."""
    kind = method if isinstance(method, type) else type(method)
    return tuple(name for name in DECISIONS if getattr(kind, name) is not getattr(Method, name))
