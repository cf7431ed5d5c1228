"""Functions of ours in the place of a model's attention, and marks on its modules that tell them what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def register(name: str, function: Callable[..., tuple[Tensor, None]]) -> None:
    """Enters a function in transformers' attention registry; it is given the masks that sdpa is given."""
    ALL_ATTENTION_FUNCTIONS.register(name, function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, sdpa_mask)


def attention_of(model: Any) -> str:
    """The name of the attention implementation that a model runs."""
    return model.config.get_text_config()._attn_implementation or "eager"


@contextmanager
def standing_in(model: Any, name: str, marks: Mapping[nn.Module, Mapping[str, Any]]) -> Iterator[None]:
    """While open, the model attends by the function of that name, and its modules carry their marks."""
    config = model.config.get_text_config()
    own = config._attn_implementation
    try:
        for module, marked in marks.items():
            module.__dict__.update(marked)
        config._attn_implementation = name
        yield
    finally:
        config._attn_implementation = own
        for module, marked in marks.items():
            for mark in marked:
                module.__dict__.pop(mark, None)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what is added to the scores of attention: nothing, or the least number where it is False.

    Infinity would make what sees nothing, as padding does, no number.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
