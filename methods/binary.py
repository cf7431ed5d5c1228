"""binary: plus or minus one scale per group, and later columns make up for the error of earlier ones.

Papers: XNOR-Net, https://arxiv.org/abs/1603.05279 (sign times mean magnitude); the feedback is GPTQ's,
https://arxiv.org/abs/2210.17323. MC-MoE, appendix A.2, stores 1-bit experts like this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from mcbench.bounds import Between, GroupSize
from mcbench.errors import BadInput
from mcbench.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from mcbench.quantization import QuantizedTensor


@dataclass(frozen=True)
class Binary(Method):
    """Sign and scale with error feedback, for models whose every matrix gets 1 bit.

    The sign of zero is plus, and only the scale is stored: 1 + 16 / group_size bits a weight.

    group_size: weights of a row that share a scale; -1 for whole rows
    damping: added to the Hessian's diagonal, as a share of its mean
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/1603.05279"
    needs_hessian: ClassVar[bool] = True

    group_size: GroupSize = 128
    damping: Annotated[float, Between(0, 10)] = 0.01

    def quantize(self, weights: Tensor, widths: Sequence[int], hessian: Tensor | None) -> dict[int, QuantizedTensor]:
        """Each of the matrices [N, out, in] at 1 bit. Raises BadInput for any other width."""
        from mcbench.gptq import Settings, gptq

        if wider := [bits for bits in widths if bits != 1]:
            raise BadInput(f"binary makes 1 bit only, not {', '.join(map(str, wider))}; gptq makes 1 to 8")
        if hessian is None:
            raise BadInput("binary corrects errors by the Hessian of the inputs, and none was given")
        return gptq(weights, widths, hessian, Settings(self.group_size, self.damping))
