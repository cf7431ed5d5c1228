"""Codes come back from their bytes, and take exactly the room that their width says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcbench.errors import BadInput
from mcbench.packing import CODE_BITS, pack, row_bytes, unpack

bits_of_codes = pytest.mark.parametrize("bits", CODE_BITS)


def random_codes(bits: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@settings(deadline=None)
@given(bits=st.sampled_from(CODE_BITS), matrices=st.integers(1, 3), width=st.integers(1, 400), seed=st.integers(0, 99))
def test_unpacking_returns_what_was_packed(bits: int, matrices: int, width: int, seed: int) -> None:
    codes = random_codes(bits, matrices, 3, width, seed=seed)
    packed = pack(codes, bits)
    assert packed.shape == (matrices, 3, row_bytes(width, bits))
    assert torch.equal(unpack(packed, bits, width), codes)


@bits_of_codes
@pytest.mark.parametrize("width", [8, 64, 96, 128, 192, 1408, 4096])
def test_a_width_that_is_a_multiple_of_eight_takes_exactly_its_bits(bits: int, width: int) -> None:
    assert pack(random_codes(bits, 5, width), bits).nbytes * 8 == 5 * width * bits


@bits_of_codes
def test_padding_is_counted_up_to_the_next_multiple_of_eight(bits: int) -> None:
    assert row_bytes(129, bits) == row_bytes(136, bits) == 17 * bits


def test_three_bits_are_a_plane_of_two_and_a_plane_of_one() -> None:
    codes = random_codes(3, 1, 256)
    packed = pack(codes, 3).unflatten(-1, (2, 48))  # two units
    low, high = pack(codes & 3, 2).unflatten(-1, (2, 32)), pack(codes >> 2, 1).unflatten(-1, (2, 16))
    assert torch.equal(packed, torch.cat([low, high], dim=-1))


def test_the_layout_is_the_documented_one() -> None:
    codes = torch.zeros(1, 128, dtype=torch.uint8)
    codes[0, [0, 33, 66, 127]] = torch.tensor([1, 2, 3, 1], dtype=torch.uint8)
    expected = torch.zeros(1, 32, dtype=torch.uint8)
    expected[0, 0], expected[0, 1], expected[0, 2], expected[0, 31] = 1, 2 << 2, 3 << 4, 1 << 6
    assert torch.equal(pack(codes, 2), expected)
    assert pack((codes > 0).to(torch.uint8), 1)[0].nonzero().flatten().tolist() == [0, 4, 8, 15]  # bit k of the row


@pytest.mark.parametrize("codes", [[4], [-1]])
def test_codes_that_do_not_fit_are_refused(codes: list[int]) -> None:
    with pytest.raises(BadInput, match="do not fit 2 bits"):
        pack(torch.tensor([codes]), 2)


def test_an_unknown_width_is_refused() -> None:
    with pytest.raises(BadInput, match="5 bits cannot be packed"):
        row_bytes(8, 5)


def test_bytes_of_another_length_are_refused() -> None:
    with pytest.raises(BadInput, match="16 codes of 2 bits take 4 bytes, not 5"):
        unpack(torch.zeros(1, 5, dtype=torch.uint8), 2, 16)
