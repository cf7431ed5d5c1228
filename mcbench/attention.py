"""How much attention each token receives, summed up while the model's attention runs.

A function of ours stands in transformers' attention registry. It lets the model's own implementation compute the
output, and beside that asks the model's own eager attention for the probabilities of a few queries at a time, adds up
their columns and forgets them: never more than a block of queries, whatever the model does with sinks, windows or caps.

Letters in shapes: B sequences, H heads, S queries of this pass, N keys, past ones included.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mcbench.errors import BadInput
from mcbench.stand_in import additive, attention_of, register, standing_in

IMPLEMENTATION = "mcbench"  # the name under which our function stands in the registry
SUPPORTED = ("sdpa", "eager")  # what the output may be computed with
BLOCK_ELEMENTS = 1 << 22  # probabilities held at once: 16 MiB in fp32
WIDTHS = 8  # of blocks of causal attention

_COLLECTOR = "_mcbench_received"


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
    with standing_in(model, IMPLEMENTATION, marks):
        yield collectors


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function in transformers' registry: query [B, H, S, .], key and value [B, ., N, .], mask as for sdpa."""
    collector: Received | None = module.__dict__.get(_COLLECTOR)
    if collector is None:  # not in a decoder layer that anybody asks about
        output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **options)
        return output, None
    assert collector.real is not None
    eager = _eager(module)
    if collector.own == "eager":
        output, columns = _streamed(eager, module, query, key, value, attention_mask, collector.real, options)
    else:
        # a value of width 1 leaves of eager attention little more than the probabilities
        _, columns = _streamed(eager, module, query, key, value[..., :1], attention_mask, collector.real, options)
        output, _ = ALL_ATTENTION_FUNCTIONS[collector.own](module, query, key, value, attention_mask, **options)
    collector.add(columns)
    return output, None


register(IMPLEMENTATION, attention_forward)


def _streamed(
    eager: Callable[..., tuple[Tensor, Tensor]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    real: Tensor,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """The output [B, S, H, .] and the column sums [B, N] over the real queries, both written in place.

    A small result of each block that stayed alive would keep the memory of all blocks from being used again.
    """
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    causal = mask is None and queries > 1 and getattr(module, "is_causal", True)
    # few widths and blocks of one size, so that each fits where an earlier one was and memory does not fall into pieces
    unit = keys if batch * heads * queries * keys <= BLOCK_ELEMENTS else math.ceil(keys / WIDTHS)
    columns = torch.zeros(batch, keys, dtype=torch.float32, device=query.device)
    whole: Tensor | None = None
    end = 0
    while end < queries:
        start = end
        # without a mask, query i sees the keys up to i
        seen = min(keys, (start // unit + 1) * unit) if causal else keys
        end = min(queries, start + max(1, BLOCK_ELEMENTS // (batch * heads * seen)))
        end = min(end, seen) if causal else end
        part = mask[:, :, start:end] if mask is not None else None
        if causal:
            part = _causal_block(start, end, seen, query.device)
        block = additive(part, query.dtype) if part is not None and part.dtype == torch.bool else part
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


def _eager(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The eager attention that the model's own file defines."""
    found = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if found is None:
        raise BadInput(
            f"{type(module).__name__} has no eager attention of its own, so it cannot report the attention that tokens "
            "receive; choose a policy that does not need it"
        )
    own: Callable[..., tuple[Tensor, Tensor]] = found
    return own


def _causal_block(start: int, end: int, seen: int, device: torch.device) -> Tensor:
    """[1, 1, end - start, seen] bool: where query start + i may look."""
    rows = torch.arange(start, end, device=device)[:, None]
    return (torch.arange(seen, device=device)[None] <= rows)[None, None]
