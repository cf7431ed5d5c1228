"""Attention to a beginning that all rows of a batch share, whose keys and values are held once and not once a row.

A function of ours stands in the place of the model's attention. While `attending` is open, each row's cache holds only
what comes after the beginning; the function computes one softmax over both, so that nothing is approximated.

Letters in shapes: R rows, Q new tokens of each, H heads, G heads of keys and values, N keys of a row, P keys of the
beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mcbench.errors import BadInput
from mcbench.stand_in import attention_of, standing_in, unknown_options

IMPLEMENTATION = "mcbench_trunk"  # what `attention_of` says while it is open
SUPPORTED = "sdpa"  # it has neither sinks nor caps, so one softmax over both parts is all there is to it

# exp of it is nothing beside 1, and yet a normal number: processors take many times as long for those below
NOTHING = -80.0

_BEGINNING = "_mcbench_beginning"


@contextmanager
def attending(model: nn.Module, beginning: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """While open, new tokens also attend to the beginning: keys and values [1, G, P, .] of each layer.

    Raises BadInput for a model that runs another attention implementation than sdpa.
    """
    if (own := attention_of(model)) != SUPPORTED:
        raise BadInput(f"a shared beginning needs the attention implementation {SUPPORTED}, not {own!r}")
    marks = {}
    for module in model.modules():
        at = getattr(module, "layer_idx", None)
        if isinstance(at, int) and at < len(beginning):
            marks[module] = {_BEGINNING: beginning[at]}
    with standing_in(model, IMPLEMENTATION, attention_forward, marks):
        yield


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """In the place of sdpa: query [R, H, Q, .], key and value [R, G, N, .], mask [R, 1, Q, N].

    Raises BadInput for a call that it does not understand, such as one with an argument that it knows nothing of.
    """
    beginning: tuple[Tensor, Tensor] | None = module.__dict__.get(_BEGINNING)
    rows, heads, new, width = query.shape
    if beginning is None or (new > 1 and attention_mask is None) or unknown_options(options, ("scaling",)):
        raise BadInput(f"{type(module).__name__} attends in a way that knows no shared beginning")
    keys, values = (states[0] for states in beginning)  # [G, P, .]
    groups = key.shape[1]
    if (keys.shape[0], keys.shape[2], values.shape[2]) != (groups, width, value.shape[3]):
        raise BadInput(f"{type(module).__name__} changes what its cache holds before it attends to it")
    scaling = options.get("scaling")
    asked = query.reshape(rows, groups, heads // groups * new, width) * (width**-0.5 if scaling is None else scaling)
    before = (_by_group(asked) @ keys.transpose(1, 2)).float()  # [G, R * H / G * Q, P]
    after = (asked @ key.transpose(2, 3)).float()  # [R, G, H / G * Q, N]
    if attention_mask is not None:
        apart, seen = after.unflatten(2, (-1, new)), attention_mask[:, :, None]  # [R, G, H / G, Q, N]
        apart.masked_fill_(~seen, float("-inf")) if seen.dtype == torch.bool else apart.add_(seen)
    # one softmax over both, each part left in the order in which its product needs it
    greatest = torch.maximum(_by_row(before.amax(-1, keepdim=True), rows), after.amax(-1, keepdim=True))
    before = before.sub_(_by_group(greatest)).clamp_(min=NOTHING).exp_()
    after = after.sub_(greatest).clamp_(min=NOTHING).exp_()
    total = _by_row(before.sum(-1, keepdim=True), rows) + after.sum(-1, keepdim=True)
    output = _by_row(before.to(value.dtype) @ values, rows) + after.to(value.dtype) @ value
    output = (output / total).to(value.dtype).reshape(rows, heads, new, -1)
    return output.transpose(1, 2), None


def _by_group(states: Tensor) -> Tensor:
    """[G, R * H / G * Q, .] of [R, G, H / G * Q, .]: the rows side by side, as all of them meet the same keys."""
    return states.transpose(0, 1).reshape(states.shape[1], -1, states.shape[-1])


def _by_row(states: Tensor, rows: int) -> Tensor:
    """[R, G, H / G * Q, .] of [G, R * H / G * Q, .]."""
    apart: Tensor = states.unflatten(1, (rows, -1))
    return apart.transpose(0, 1)
