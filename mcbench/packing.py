"""Puts codes of 1, 2, 3, 4 or 8 bits into bytes, and takes them out again.

A row of codes is cut into units of 128 (the last may be shorter) and each unit becomes one or two bit planes:

    1 bit   16 bytes: code k is bit k
    2 bits  32 bytes: byte j holds codes j, j+32, j+64 and j+96, lowest bits first
    3 bits  48 bytes: the two low bits as for 2, then the high bit as for 1; exactly 3.0 bits a code
    4 bits  64 bytes: byte j holds codes j and j+64
    8 bits  128 bytes

One AND and one shift yield a whole vector of codes, and 3 bits share the loader of 2. The unit does not depend on the
group that shares a scale. A row whose length is no multiple of 8 is padded to one with zero codes, which are stored
and counted.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mcbench.errors import BadInput

CODE_BITS = (1, 2, 3, 4, 8)
_UNIT = 128  # codes of a row that are packed together
_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}  # bits of each plane, lowest first


def row_bytes(width: int, bits: int) -> int:
    """Bytes that one row of `width` codes takes, padding included. Raises BadInput for an unknown `bits`."""
    return _padded(width) * sum(_planes(bits)) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """The bytes of `codes` [..., width], as uint8 [..., row_bytes(width, bits)].

    Raises BadInput where a code does not fit `bits`, or `bits` is none of 1, 2, 3, 4, 8.
    """
    planes = _planes(bits)
    width = codes.shape[-1]
    if codes.numel() and (int(codes.max()) >= 1 << bits or int(codes.min()) < 0):
        raise BadInput(f"codes from {int(codes.min())} to {int(codes.max())} do not fit {bits} bits")
    codes = torch.nn.functional.pad(codes.to(torch.uint8), (0, _padded(width) - width))
    parts: list[Tensor] = []
    for start, stop in _units(width):
        unit, shift = codes[..., start:stop], 0
        for plane in planes:
            parts.append(_pack_plane(unit >> shift & (1 << plane) - 1, plane))
            shift += plane
    return torch.cat(parts, dim=-1) if parts else codes


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """The codes [..., width] in uint8 that `pack` put into `packed` [..., row_bytes(width, bits)].

    Raises BadInput where the bytes of a row are not those of `width` codes.
    """
    planes = _planes(bits)
    if packed.shape[-1] != row_bytes(width, bits):
        raise BadInput(f"{width} codes of {bits} bits take {row_bytes(width, bits)} bytes, not {packed.shape[-1]}")
    units, at = [], 0
    for start, stop in _units(width):
        unit, shift = torch.zeros((), dtype=torch.uint8, device=packed.device), 0
        for plane in planes:
            size = (stop - start) * plane // 8
            unit = unit | _unpack_plane(packed[..., at : at + size], plane) << shift
            shift, at = shift + plane, at + size
        units.append(unit)
    return torch.cat(units, dim=-1)[..., :width] if units else packed


def _padded(width: int) -> int:
    return -(-width // 8) * 8


def _planes(bits: int) -> tuple[int, ...]:
    if bits not in _PLANES:
        raise BadInput(f"codes of {bits} bits cannot be packed; known are {', '.join(map(str, CODE_BITS))}")
    return _PLANES[bits]


def _units(width: int) -> Iterator[tuple[int, int]]:
    for start in range(0, _padded(width), _UNIT):
        yield start, min(start + _UNIT, _padded(width))


def _pack_plane(codes: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return codes
    # 1 bit: neighbours share a byte, whose bits are then in the order of k, ready to be a vector mask
    lanes: Tensor = (  # [..., codes per byte, bytes]
        codes.unflatten(-1, (-1, 8)).transpose(-1, -2) if bits == 1 else codes.unflatten(-1, (8 // bits, -1))
    )
    packed = lanes[..., 0, :]
    for lane in range(1, 8 // bits):
        packed = packed | lanes[..., lane, :] << lane * bits
    return packed


def _unpack_plane(packed: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return packed
    lanes = [packed >> lane * bits & (1 << bits) - 1 for lane in range(8 // bits)]
    return torch.stack(lanes, dim=-1 if bits == 1 else -2).flatten(-2)
