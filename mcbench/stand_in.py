"""Functions of ours in the place of a model's attention, and marks on its modules that tell them what to do.

The model goes on under the name of its own implementation: its code reads that name to choose masks, and some models
choose by it how they attend. So it is the function behind the name that is exchanged while a block is open, and only
for the modules that bear a mark.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mcbench.errors import BadInput

Attention = Callable[..., tuple[Tensor, Any]]

# what a model hands to every attention function beside the tensors, and what has no say in the result where there is a
# mask: nothing is dropped outside training, and places are in the mask
WITHOUT_SAY = ("use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict",
               "cache_position", "position_ids", "num_items_in_batch", "is_causal")  # fmt: skip

_OWN = "_mcbench_own_attention"
_NAME = "_mcbench_stands_in"


def attention_of(model: Any) -> str:
    """The name of the attention implementation that a model runs; that of ours while one stands in its place."""
    name: str = model.__dict__.get(_NAME) or model.config.get_text_config()._attn_implementation or "eager"
    return name


def own_attention(module: nn.Module) -> Attention:
    """What a module attends by where nothing stands in its place; to be asked of a module that bears a mark."""
    own: Attention | None = module.__dict__.get(_OWN)
    return eager_attention(module) if own is None else own


def eager_attention(module: nn.Module) -> Attention:
    """The eager attention that the model's own file defines; BadInput where there is none."""
    found: Attention | None = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if found is None:
        raise BadInput(f"the file of {type(module).__name__} defines no eager attention")
    return found


def unknown_options(options: Mapping[str, Any], known: tuple[str, ...]) -> list[str]:
    """The arguments of a call of attention that say something and are neither `known` nor without a say."""
    silent = {*known, *WITHOUT_SAY, *(["dropout"] if not options.get("dropout") else [])}
    return sorted(name for name, value in options.items() if value is not None and name not in silent)


@contextmanager
def standing_in(
    model: Any, name: str, function: Attention, marks: Mapping[nn.Module, Mapping[str, Any]]
) -> Iterator[None]:
    """While open, `function` computes the attention of the modules that have marks, and these carry them.

    `name` is what `attention_of` says meanwhile. One function at a time stands in a model's place.
    """
    assert _NAME not in model.__dict__, "another function stands in the place of the attention already"
    own = attention_of(model)
    registries = {id(found): found for found in map(_registry_of, marks)}.values()
    before = [(registry, registry._local_mapping.get(own), registry.get(own)) for registry in registries]
    behind = {id(registry): plain for registry, _, plain in before}
    try:
        for module, marked in marks.items():
            module.__dict__.update({**marked, _OWN: behind[id(_registry_of(module))]})
        for registry, _, plain in before:
            registry[own] = _seam(function, plain)
        model.__dict__[_NAME] = name
        yield
    finally:
        model.__dict__.pop(_NAME, None)
        for registry, overridden, _ in before:
            registry._local_mapping.pop(own, None)
            if overridden is not None:
                registry[own] = overridden
        for module, marked in marks.items():
            for mark in (*marked, _OWN):
                module.__dict__.pop(mark, None)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what is added to the scores of attention: nothing, or the least number where it is False.

    Infinity would make what sees nothing, as padding does, no number.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _seam(function: Attention, plain: Attention | None) -> Attention:
    """What the registry hands out meanwhile: `function` for marked modules, for others what was there before."""

    def attend(module: nn.Module, *arguments: Any, **options: Any) -> tuple[Tensor, Any]:
        if _OWN in module.__dict__:
            return function(module, *arguments, **options)
        return (eager_attention(module) if plain is None else plain)(module, *arguments, **options)

    return attend


def _registry_of(module: nn.Module) -> Any:
    """The registry that the file of a module looks its attention up in: transformers' own, or one that overrides it."""
    return getattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
