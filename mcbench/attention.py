"""How much attention each token receives, summed up while the model's attention runs.

A function of ours stands in the place of the model's attention. It lets the model's own implementation compute the
output, and beside that asks the model's own eager attention for the probabilities of a few queries at a time, adds up
their columns and forgets them: never more than a block of queries, whatever the model does with sinks, windows or caps.

Letters in shapes: B sequences, H heads, S queries of this pass, N keys, past ones included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mcbench.errors import BadInput
from mcbench.stand_in import (
    WITHOUT_SAY,
    Attention,
    additive,
    attention_of,
    eager_attention,
    own_attention,
    standing_in,
)

IMPLEMENTATION = "mcbench"  # what `attention_of` says while it is open
SUPPORTED = ("sdpa", "eager")  # what the output may be computed with
BLOCK_ELEMENTS = 1 << 22  # probabilities held at once: 16 MiB in fp32
WIDTHS = 8  # of blocks of causal attention

_COLLECTOR = "_mcbench_received"
_SLICED = ("position_bias", *WITHOUT_SAY)


class Received:
    """The attention that the tokens of one decoder layer receive in the pass that is going on.

    own: the implementation that computes the output. real: [B, S] bool, set before each pass. total: [B, S] fp32, mean
    over heads of the probabilities in a token's column, summed over the real queries of the pass; None before it ran.
    """

    def __init__(self, own: str) -> None:
        self.own = own
        self.real: Tensor | None = None
        self.total: Tensor | None = None

    def add(self, columns: Tensor) -> None:
        """Takes the sums [B, N] of one call; those of past keys are not asked for."""
        assert self.real is not None
        now = columns[:, -self.real.shape[1] :]
        self.total = now if self.total is None else self.total + now


@contextmanager
def collecting(model: nn.Module, decoders: Sequence[nn.Module]) -> Iterator[list[Received]]:
    """While open, the attention inside each of the decoder layers reports what its tokens receive.

    Raises BadInput for a model that runs another attention implementation than sdpa or eager.
    """
    own = attention_of(model)
    if own not in SUPPORTED:
        raise BadInput(
            f"the attention implementation {own!r} cannot report the attention that tokens receive; load the model "
            f"with {' or '.join(SUPPORTED)}, or choose a policy that does not need it"
        )
    collectors = [Received(own) for _ in decoders]
    pairs = zip(decoders, collectors, strict=True)
    marks = {module: {_COLLECTOR: collector} for decoder, collector in pairs for module in decoder.modules()}
    with standing_in(model, IMPLEMENTATION, attention_forward, marks):
        yield collectors


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """In the place of the model's own: query [B, H, S, .], key and value [B, ., N, .], mask as that is given."""
    collector: Received | None = module.__dict__.get(_COLLECTOR)
    assert collector is not None
    assert collector.real is not None
    eager = _eager(module)
    if collector.own == "eager":
        output, columns = _streamed(eager, module, query, key, value, attention_mask, collector.real, options)
    else:
        # a value of width 1 leaves of eager attention little more than the probabilities
        _, columns = _streamed(eager, module, query, key, value[..., :1], attention_mask, collector.real, options)
        output, _ = own_attention(module)(module, query, key, value, attention_mask, **options)
    collector.add(columns)
    return output, None


def _streamed(
    eager: Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    real: Tensor,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """The output [B, S, H, .] and the column sums [B, N] over the real queries, both written in place.

    A small result of each block that stayed alive would keep the memory of all blocks from being used again. Where an
    argument that is not known says something of each query, there is one block.
    """
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    told = options.get("is_causal")
    causal = mask is None and queries > 1 and bool(getattr(module, "is_causal", True) if told is None else told)
    bias = options.get("position_bias")
    at_once = any(_of_each_query(option, queries) for name, option in options.items() if name not in _SLICED)
    # few widths and blocks of one size, so that each fits where an earlier one was and memory does not fall into pieces
    unit = keys if at_once or batch * heads * queries * keys <= BLOCK_ELEMENTS else math.ceil(keys / WIDTHS)
    columns = torch.zeros(batch, keys, dtype=torch.float32, device=query.device)
    whole: Tensor | None = None
    end = 0
    while end < queries:
        start = end
        # without a mask, query i sees the keys up to i
        seen = min(keys, (start // unit + 1) * unit) if causal else keys
        end = queries if at_once else min(queries, start + max(1, BLOCK_ELEMENTS // (batch * heads * seen)))
        end = min(end, seen) if causal and not at_once else end
        part = None if mask is None else _rows(mask, start, end)
        if causal:
            part = _causal_block(start, end, seen, query.device)
        block = additive(part, query.dtype) if part is not None and part.dtype == torch.bool else part
        if bias is not None:
            options = {**options, "position_bias": _rows(bias, start, end)[..., :seen]}
        output, probability = eager(
            module, query[:, :, start:end], key[:, :, :seen], value[:, :, :seen], block, **options
        )
        counted = real[:, start:end, None].to(probability.device)
        columns[:, :seen] += (probability.float().mean(1) * counted).sum(1)
        if whole is None:
            whole = output.new_empty(batch, queries, *output.shape[2:])
        whole[:, start:end] = output
    assert whole is not None
    return whole, columns


def _rows(table: Tensor, start: int, end: int) -> Tensor:
    """The part of a table [.., .., S or 1, N] that speaks of these queries."""
    return table if table.shape[2] == 1 else table[:, :, start:end]


def _of_each_query(option: Any, queries: int) -> bool:
    """Whether an argument of attention may say something else of each query."""
    return isinstance(option, Tensor) and option.ndim > 1 and queries > 1 and queries in option.shape


def _eager(module: nn.Module) -> Attention:
    """The eager attention that the model's own file defines."""
    try:
        return eager_attention(module)
    except BadInput as error:
        raise BadInput(
            f"{error}, so it cannot report the attention that tokens receive; choose a policy that does not need it"
        ) from None


def _causal_block(start: int, end: int, seen: int, device: torch.device) -> Tensor:
    """[1, 1, end - start, seen] bool: where query start + i may look."""
    rows = torch.arange(start, end, device=device)[:, None]
    return (torch.arange(seen, device=device)[None] <= rows)[None, None]
