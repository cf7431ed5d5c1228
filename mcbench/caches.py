"""Key-value caches whose rows are copied, dropped and joined, and that take new tokens without copying earlier ones.

They are transformers' own caches; what they hold for one layer is in parts [rows, heads, tokens, width].
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer


def rows_of_cache(cache: Any, rows: Tensor, *, last: bool) -> Any:
    """A key-value cache with only these rows, repeated as they are; in place where this is its `last` use."""
    if not last:  # shallow: selecting rows makes new tensors and leaves the old ones alone
        cache = copy.copy(cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
    cache.batch_select_indices(rows)
    return cache


def joined_cache(caches: Sequence[Any], rows: Tensor, room: int, skipped: int) -> Any:
    """One cache with these rows of several, without its first `skipped` tokens, able to take `room` more.

    The caches are used up: a layer is let go as soon as it has been copied.
    """
    joined = caches[0]
    for at in range(len(joined.layers)):
        joined.layers[at] = RoomyLayer([cache.layers[at] for cache in caches], rows, room, skipped)
        for cache in caches[1:]:
            cache.layers[at] = None
    return joined


def widened(parts: Sequence[Tensor], *, dim: int) -> list[Tensor]:
    """The parts, all as long as the longest along a dimension counted from the last: zeros before the shorter ones."""
    longest = max(part.shape[dim] for part in parts)
    return [F.pad(part, (0, 0) * (-1 - dim) + (longest - part.shape[dim], 0)) for part in parts]


class RoomyLayer(DynamicLayer):
    """Keys and values of a layer in a buffer with room for more.

    `parts` hold rows of equal length, one part after the other; `rows` are chosen from them, and the first `skipped`
    tokens of each are left out. Parts shorter than the longest get room at their beginning that no mask lets be seen.
    New tokens come after all earlier ones, or where `places` [rows, new tokens] says, whatever stood there.
    """

    def __init__(self, parts: Sequence[DynamicLayer], rows: Tensor, room: int, skipped: int) -> None:
        keys = [part.keys for part in parts if part.keys is not None]
        values = [part.values for part in parts if part.values is not None]
        assert len(keys) == len(values) == len(parts)
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys[0], values[0])
        self.places: Tensor | None = None
        self._buffers = []
        for states in (keys, values):
            whole = torch.cat(widened([part[:, :, skipped:] for part in states], dim=-2))[rows]
            self._used = whole.shape[-2]
            # zeros: what no mask lets be seen is multiplied by nothing, but must be a number
            self._buffers.append(torch.cat([whole, whole.new_zeros(*whole.shape[:-2], room, whole.shape[-1])], dim=-2))
        self._show()

    def place(self, places: Tensor, used: int) -> None:
        """The next tokens come there, places [rows, new tokens]; then the first `used` places of each row are shown."""
        self.places, self._used = places, used

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes the states of new tokens, both [rows, heads, tokens, width]; returns those of all tokens."""
        new = key_states, value_states
        if self.places is None:
            start, self._used = self._used, self._used + key_states.shape[-2]
            for buffer, states in zip(self._buffers, new, strict=True):
                buffer[:, :, start : self._used] = states
        else:
            row = torch.arange(len(self.places), device=self.places.device)[:, None]
            for buffer, states in zip(self._buffers, new, strict=True):
                buffer[row, :, self.places] = states.transpose(1, 2)
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps only these rows."""
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, : self._used] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values
