"""The last layer of a model for those positions only whose logits are asked for.

What it makes of other positions nobody reads: they are keys and values of its attention, but neither queries nor tokens
of its experts. Functions of ours stand in transformers' registries for attention (here) and experts
(`mcbench.experts`); what else the layer holds goes over all positions as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mcbench.experts import READ, decorated
from mcbench.stand_in import register, standing_in

IMPLEMENTATION = "mcbench_last"  # the name under which our function stands in the registry
SUPPORTED = "sdpa"  # what it hands the positions on to

_KEPT = "_mcbench_kept"


def last_layer(model: Any) -> nn.Module | None:
    """The last of the decoder's layers; None where it is not to be found."""
    layers = getattr(getattr(model.get_decoder(), "layers", None), "_modules", None)
    return list(layers.values())[-1] if layers else None


@contextmanager
def only_last(model: nn.Module, layer: nn.Module, rows: int, new: int, kept: int) -> Iterator[None]:
    """While open, `layer` computes the last `kept` of the `new` positions of each row alone; the others are garbage."""
    place = torch.arange(rows * new).reshape(rows, new)[:, new - kept :].reshape(-1)
    marks: dict[nn.Module, dict[str, Any]] = {}
    for module in layer.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            marks[module] = {_KEPT: kept}
        if decorated(module):
            read = rows * new, place.to(next(module.parameters()).device)
            marks[module] = {**marks.get(module, {}), READ: read}
    with standing_in(model, IMPLEMENTATION, marks):
        yield


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function in transformers' registry, of the shapes of its own: query [rows, heads, new, width]."""
    new, kept = query.shape[2], module.__dict__.get(_KEPT)
    sdpa: Any = ALL_ATTENTION_FUNCTIONS[SUPPORTED]
    if kept is None or kept >= new or options.get("position_bias") is not None:
        found: tuple[Tensor, None] = sdpa(module, query, key, value, attention_mask, **options)
        return found
    if attention_mask is None:
        place = torch.arange(key.shape[2], device=key.device)
        attention_mask = (place <= place[-kept:, None])[None, None]
    else:
        attention_mask = attention_mask[:, :, -kept:]
    output, _ = sdpa(module, query[:, :, -kept:], key, value, attention_mask, **options)
    return F.pad(output, (0, 0, 0, 0, new - kept, 0)), None


register(IMPLEMENTATION, attention_forward)
