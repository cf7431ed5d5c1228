"""topk: every token runs the k experts of greatest weight, whatever the router chose. The simplest way to skip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from mcbench.bounds import Between, Layers
from mcbench.errors import BadInput
from mcbench.method import Method
from mcbench.routing import Choices, Learnt, Routed

if TYPE_CHECKING:
    from torch import Tensor

    from mcbench.model import MoEModel
    from mcbench.text import CalibrationData


@dataclass(frozen=True)
class TopK(Method):
    """Keeps the first k of the K chosen experts, so that the share skipped is 1 - k / K in every pruned layer.

    k: how many experts run. layers: those pruned, all by default.
    """

    layers_field: ClassVar[str] = "layers"

    k: Annotated[int, Between(1, 1024)] = 1
    layers: Layers | None = None

    def learn(self, model: MoEModel, data: CalibrationData) -> Learnt:
        if self.k > model.top_k:
            raise BadInput(f"{self.k} experts cannot run where {model.name!r} chooses {model.top_k}; ask for fewer")
        with model.route(lambda choices: choices.keep(choices.chosen), layers=self.layers):
            pass  # refuses layers that are not there
        pruned = model.layers if self.layers is None else len(set(self.layers))
        return Learnt({}, {"skipped": (1 - self.k / model.top_k) * pruned / model.layers})

    def route(self, choices: Choices, learnt: Mapping[str, Tensor]) -> Routed:
        import torch

        rank = torch.arange(choices.weight.shape[1], device=choices.weight.device)
        return choices.keep((rank < self.k).expand_as(choices.weight))
