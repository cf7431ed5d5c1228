"""rtn: every weight on its own goes to the nearest value of its group's grid. Needs no data.

Paper: the baseline of https://arxiv.org/abs/2210.17323 (GPTQ, section 4), there without a search of the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mcbench.bounds import GroupSize
from mcbench.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from mcbench.quantization import QuantizedTensor


@dataclass(frozen=True)
class RTN(Method):
    """Round-to-nearest on asymmetric groups; at 1 bit the sign times the mean magnitude.

    group_size: weights of a row that share scale and offset; -1 for whole rows
    search: looks for the range with the least squared error, down to 0.3 of the full one; without it, min-max
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2210.17323"

    group_size: GroupSize = 128
    search: bool = True

    def quantize(self, weights: Tensor, widths: Sequence[int], hessian: Tensor | None) -> dict[int, QuantizedTensor]:
        """Each of the matrices [N, out, in] at each width; the Hessian is not looked at."""
        from mcbench.quantization import CLIP_CANDIDATES, check_weights, round_to_nearest

        check_weights(weights, widths)
        clip, refine = (CLIP_CANDIDATES, 2) if self.search else ((1.0,), 0)
        return {
            bits: round_to_nearest(weights.float(), bits, self.group_size, clip=clip, refine=refine) for bits in widths
        }
