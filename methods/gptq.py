"""gptq: columns are rounded one after another, and those still to come make up for the error of those that are done.

Paper: https://arxiv.org/abs/2210.17323. The algorithm, batched over experts and widths, is `mcbench.gptq`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from mcbench.bounds import Between, GroupSize
from mcbench.errors import BadInput
from mcbench.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from mcbench.quantization import Grid, QuantizedTensor


@dataclass(frozen=True)
class GPTQ(Method):
    """GPTQ at 1 to 8 bits with full error feedback and a search of the range that suits 2 bits.

    group_size: weights of a row that share scale and offset; -1 for whole rows
    damping: added to the Hessian's diagonal, as a share of its mean
    act_order: inputs with the largest mean square first, on groups whose grids are fixed beforehand
    rounds: how often the columns are gone through, from the second time on with the scales that the first time left
    refit: how often, after each round, scales and offsets are fitted to the codes; rounds=1, refit=0 is the paper's
    variant: "mcmoe" does what the code released with MC-MoE does: nothing is corrected inside a block of 128 columns
        at 3 bits or fewer, the range is searched within 10 %, and no row is taken from round-to-nearest.
        `act_order`, `rounds` and `refit` have no effect on it
    inputs: whose inputs the Hessians are made of. "original" takes those of the model as it is, so every expert is
        quantised once and serves every allocation. "quantized" takes those of the model whose earlier layers are
        quantised already, at their allocated widths, as the paper and MC-MoE's release do: each run quantises for
        itself. What the allocation is decided by comes from the original model either way. On the reference models
        the two hardly differ (benchmarks/layerwise.py)
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2210.17323"
    needs_hessian: ClassVar[bool] = True
    inputs_field: ClassVar[str] = "inputs"

    group_size: GroupSize = 128
    damping: Annotated[float, Between(0, 10)] = 0.01
    act_order: bool = True
    rounds: Annotated[int, Between(1, 20)] = 3
    refit: Annotated[int, Between(0, 20)] = 2
    variant: Literal["full", "mcmoe"] = "full"
    inputs: Literal["original", "quantized"] = "original"

    def quantize(self, weights: Tensor, widths: Sequence[int], hessian: Tensor | None) -> dict[int, QuantizedTensor]:
        """Each of the matrices [N, out, in] at each width, with the Hessian 2 x x^T [N, in, in] of its inputs."""
        from mcbench.gptq import Settings, gptq

        if hessian is None:
            raise BadInput("gptq corrects errors by the Hessian of the inputs, and none was given")
        if self.variant == "full":
            settings = Settings(self.group_size, self.damping, self.act_order, self.rounds, self.refit)
        elif self.variant == "mcmoe":
            settings = Settings(
                self.group_size,
                self.damping,
                act_order=False,
                rounds=1,
                refit=0,
                fit=released_grid,
                feedback_above=3,
                never_above_rtn=False,
            )
        else:
            raise BadInput(f"gptq has no variant {self.variant!r}; known are 'full' and 'mcmoe'")
        return gptq(weights, widths, hessian, settings)


def released_grid(groups: Tensor, bits: int, cost: Tensor) -> Grid:
    """The grid [...] of groups [..., g] as MC-MoE's released code finds it.

    From minimum to maximum, zero included, times the one of 101 factors in [0.9, 1.1] with the least sum of
    |error|^2.4; the zero point is not rounded. 1 bit: plus and minus the mean magnitude. The errors are summed in
    fp32, not in fp16 as there.
    """
    import torch

    from mcbench.quantization import Grid, fit_grid, nearest, sixteen_bits

    if bits == 1:
        return fit_grid(groups, bits)
    top = (1 << bits) - 1
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    best, least = Grid(low, high), torch.full_like(low, torch.inf)
    for percent in range(101):
        factor = 0.9 + 0.002 * percent
        trial = Grid(sixteen_bits(factor * (high - low) / top), sixteen_bits(factor * low))
        step, bottom = trial.step[..., None], trial.low[..., None]
        codes = nearest(groups, Grid(step, bottom), top)
        error = (codes * step + bottom - groups).abs().pow(2.4).sum(-1)
        wins = error < least
        best = Grid(torch.where(wins, trial.step, best.step), torch.where(wins, trial.low, best.low))
        least = torch.where(wins, error, least)
    return best
