"""NAEE: skip an expert whose routing weight is small beside that of the first (https://arxiv.org/abs/2402.14800).

The paper knows top-2: the second expert is skipped where w1 / w0 lies below the layer's median on calibration text,
which skips half of the tokens' second experts by construction. For more chosen experts we take one median for each
rank, as nothing in the paper says what else to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mcbench.policy import ThresholdPolicy, weight_ratio
from mcbench.routing import Choices

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NAEE(ThresholdPolicy):
    """Drops the expert of rank r where w_r / w_0 is below a quantile of that ratio, the median by default.

    skip: share of all pairs to skip, solved for; quantile or a fixed threshold otherwise. layers: those pruned.
    fitted: folder of thresholds to use. The release scores all experts with a softmax first; a ratio is the same after
    renormalisation.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.14800"

    def score(self, choices: Choices) -> Tensor:
        return weight_ratio(choices)
