"""hqq: scale by the range, offset by half-quadratic optimisation of the weights alone. Needs no data.

Paper: https://mobiusml.github.io/hqq_blog/ (Badri and Shaji, 2023). The optimiser is that of the `hqq` package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mcbench.bounds import GroupSize
from mcbench.errors import NotInstalled
from mcbench.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from mcbench.quantization import Grid, QuantizedTensor


@dataclass(frozen=True)
class HQQ(Method):
    """Half-quadratic quantisation: the offset that leaves the least |error|^0.7, outliers forgiven.

    At 1 bit, where the full range makes a useless scale, it starts from twice the mean magnitude; the offset is stored.

    group_size: weights of a row that share scale and offset; the package's own default is 64, here it is that of the
        other quantisers, so that as many bits are stored
    """

    paper: ClassVar[str] = "https://mobiusml.github.io/hqq_blog/"

    group_size: GroupSize = 128

    def quantize(self, weights: Tensor, widths: Sequence[int], hessian: Tensor | None) -> dict[int, QuantizedTensor]:
        """Each of the matrices [N, out, in] at each width; the Hessian is not looked at."""
        import torch

        from mcbench.quantization import Grid, QuantizedTensor, check_weights, encode, group_size_for

        check_weights(weights, widths)
        weights = weights.float()
        groups = weights.unflatten(-1, (-1, group_size_for(weights.shape[-1], self.group_size)))  # [N, out, G, g]
        done = {}
        for bits in widths:
            # one matrix at a time: the package stops by the mean error of all that it is given
            grids = [half_quadratic(matrix, bits) for matrix in groups]
            grid = Grid(torch.stack([g.step for g in grids]), torch.stack([g.low for g in grids]))
            codes = encode(weights, grid, bits)
            done[bits] = QuantizedTensor.encode(codes, grid, bits, self.group_size, symmetric=False)
        return done


def half_quadratic(groups: Tensor, bits: int) -> Grid:
    """The grid [out, G] of groups [out, G, g] by the package's optimiser, rounded to 16 bits."""
    from mcbench.quantization import Grid, sixteen_bits

    try:
        from hqq.core.optimize import optimize_weights_proximal_legacy
    except ImportError as error:
        raise NotInstalled(f"hqq needs the package 'hqq': pip install hqq ({error})") from error

    top = (1 << bits) - 1
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if bits == 1:
        high = groups.abs().mean(-1, keepdim=True)
        low = -high
    inverse = top / (high - low).clamp(min=1e-12)  # the package multiplies by the inverse of the scale
    _, inverse, zero = optimize_weights_proximal_legacy(groups, inverse, -low * inverse, [0, top], axis=-1)
    return Grid(sixteen_bits((1 / inverse)[..., 0]), sixteen_bits((-zero / inverse)[..., 0]))
