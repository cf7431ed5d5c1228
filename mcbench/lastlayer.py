"""The last layer of a model for those positions only whose logits are asked for.

What it makes of other positions nobody reads: they are keys and values of its attention, but neither queries nor tokens
of its experts. Functions of ours stand in the place of its attention (here) and of its experts (`mcbench.experts`);
what else the layer holds goes over all positions as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcbench.experts import READ, decorated
from mcbench.stand_in import own_attention, standing_in, unknown_options

IMPLEMENTATION = "mcbench_last"  # what `attention_of` says while it is open
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
    with standing_in(model, IMPLEMENTATION, attention_forward, marks):
        yield


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """In the place of sdpa, of the shapes of that: query [rows, heads, new, width].

    A call that may say something else of each position, in a tensor or by attending to later ones, is left to the
    model's own attention, over all positions.
    """
    new, kept, own = query.shape[2], module.__dict__.get(_KEPT), own_attention(module)
    tensors = {name: option for name, option in options.items() if isinstance(option, Tensor)}
    looks_ahead = attention_mask is None and options.get("is_causal") is False
    if kept is None or kept >= new or looks_ahead or unknown_options(tensors, ()):
        return own(module, query, key, value, attention_mask, **options)
    if attention_mask is None:
        place = torch.arange(key.shape[2], device=key.device)
        attention_mask = (place <= place[-kept:, None])[None, None]
    elif attention_mask.shape[2] == new:
        attention_mask = attention_mask[:, :, -kept:]
    output, _ = own(module, query[:, :, -kept:], key, value, attention_mask, **options)
    return F.pad(output, (0, 0, 0, 0, new - kept, 0)), None
