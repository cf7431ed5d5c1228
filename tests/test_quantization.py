"""What every quantiser promises, and what GPTQ adds to it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcbench.composition import METHODS
from mcbench.errors import BadInput
from mcbench.gptq import Settings, gptq, layer_error
from mcbench.method import Method
from mcbench.packing import CODE_BITS
from mcbench.quantization import QuantizedTensor, concatenate, group_size_for, round_to_nearest, stored_bytes

QUANTIZERS = ("rtn", "gptq", "hqq", "binary")
quantizers = pytest.mark.parametrize("name", QUANTIZERS)
bits_of_codes = pytest.mark.parametrize("bits", CODE_BITS)
gptq_settings = pytest.mark.parametrize(
    "settings",
    [Settings(), Settings(act_order=False), Settings(act_order=False, rounds=1, refit=0)],
    ids=["default", "in order", "as published"],
)


def matrices(n: int = 3, rows: int = 24, columns: int = 192, seed: int = 0) -> Tensor:
    return torch.randn(n, rows, columns, generator=torch.Generator().manual_seed(seed)) / 20


def hessians(n: int = 3, columns: int = 192, *, correlated: bool = True, seed: int = 1) -> Tensor:
    """2 x x^T averaged over random tokens, [n, columns, columns]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4 * columns, columns, generator=generator)
    if correlated:
        size = torch.rand(columns, generator=generator) ** 3
        x = (x @ torch.randn(n, columns, columns, generator=generator) / columns**0.5 + 0.2 * x) * size
    return 2 * x.mT @ x / x.shape[1]


def quantized(name: str, weights: Tensor, widths: tuple[int, ...] | None = None) -> dict[int, QuantizedTensor]:
    method: Method = METHODS.get(name)()
    hessian = hessians(len(weights), weights.shape[-1]) if method.needs_hessian else None
    return method.quantize(weights, widths or widths_of(name), hessian)


def widths_of(name: str) -> tuple[int, ...]:
    return (1,) if name == "binary" else CODE_BITS


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    return a.tensors().keys() == b.tensors().keys() and all(
        torch.equal(value, b.tensors()[name]) for name, value in a.tensors().items()
    )


# ---- every quantiser


@quantizers
def test_many_matrices_at_once_give_what_each_gives_alone(name: str) -> None:
    weights = matrices()
    method, together = METHODS.get(name)(), quantized(name, weights)
    hessian = hessians()
    for bits, stack in together.items():
        for n in range(len(weights)):
            alone = method.quantize(weights[n : n + 1], (bits,), hessian[n : n + 1])[bits]
            assert same(alone, stack[n]), f"{bits} bits, matrix {n}"


@quantizers
def test_quantising_twice_gives_the_same_bytes(name: str) -> None:
    first, second = quantized(name, matrices()), quantized(name, matrices())
    assert all(same(first[bits], second[bits]) for bits in first)


@quantizers
def test_more_bits_leave_less_error(name: str) -> None:
    weights = matrices()
    errors = [float((q.dequantize() - weights).square().mean()) for q in quantized(name, weights).values()]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < float(weights.square().mean())


@quantizers
def test_the_size_is_predicted_to_the_byte(name: str) -> None:
    for bits, stack in quantized(name, matrices(columns=200)).items():
        symmetric = stack.offset is None
        assert stack.nbytes == stored_bytes(stack.shape, bits, 128, symmetric=symmetric)
        assert stack.nbytes == sum(t.numel() * t.element_size() for t in stack.tensors().values())


@quantizers
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_number(name: str, bad: float) -> None:
    weights = matrices()
    weights[1, 2, 3] = bad
    with pytest.raises(BadInput, match="matrix 1 of 3 holds NaN or infinite weights"):
        quantized(name, weights)


@quantizers
def test_a_constant_matrix_comes_back(name: str) -> None:
    weights = torch.full((1, 4, 64), -0.25)
    for stack in quantized(name, weights).values():
        assert torch.equal(stack.dequantize(), weights)


# ---- the packed value


@settings(deadline=None, max_examples=40)
@given(
    bits=st.sampled_from(CODE_BITS),
    rows=st.integers(1, 5),
    columns=st.integers(1, 40).map(lambda n: 8 * n),
    seed=st.integers(0, 99),
)
def test_encoding_what_was_decoded_changes_nothing(bits: int, rows: int, columns: int, seed: int) -> None:
    stack = round_to_nearest(matrices(2, rows, columns, seed), bits)
    scale, codes = stack.scale.float(), stack.codes.float().unflatten(-1, (stack.scale.shape[-1], -1))
    offset = -scale if stack.offset is None else stack.offset.float()
    step = 2 * scale if stack.offset is None else scale
    assert torch.equal(stack.dequantize(), (codes * step[..., None] + offset[..., None]).flatten(-2))
    assert stack.nbytes == stored_bytes(stack.shape, bits)


def test_three_bits_are_stored_in_three_bits() -> None:
    stack = round_to_nearest(matrices(2, 16, 256), 3)
    assert stack.packed.nbytes * 8 == 3 * 2 * 16 * 256
    assert stack.nbytes * 8 == (3 + 32 / 128) * 2 * 16 * 256  # and an fp16 scale and offset for each 128


def test_one_bit_stores_a_scale_and_no_offset() -> None:
    stack = round_to_nearest(matrices(1, 16, 256), 1)
    assert stack.nbytes * 8 == (1 + 16 / 128) * 16 * 256


def test_one_bit_is_the_sign_times_the_mean_magnitude_and_zero_counts_as_plus() -> None:
    weights = matrices(1, 4, 128)
    weights[0, 0, 0] = 0.0
    scale = weights.abs().mean(-1, keepdim=True).half().float()
    expected = torch.where(weights >= 0, scale, -scale)
    assert torch.equal(round_to_nearest(weights, 1).dequantize(), expected)


def test_a_stack_is_taken_apart_and_put_together_again() -> None:
    stack = gptq(matrices(), (2,), torch.zeros(3, 192, 192))[2]
    assert same(concatenate([stack[0], stack[1:]]), stack)
    assert concatenate([stack[0], stack[1:]]).notes == stack.notes
    assert [stack[n].shape for n in range(len(stack))] == [(1, 24, 192)] * 3


@pytest.mark.parametrize(
    ("columns", "asked", "size"),
    [(256, 128, 128), (192, 128, 96), (1408, 128, 128), (2880, 128, 120), (100, 64, 50), (131, 64, 131), (96, -1, 96)],
)
def test_groups_fall_back_to_the_largest_size_that_divides_a_row(columns: int, asked: int, size: int) -> None:
    assert group_size_for(columns, asked) == size
    stack = round_to_nearest(matrices(1, 2, columns), 2, asked)
    assert stack.group_size == size
    fell_back = size != min(asked, columns) and asked != -1
    assert (stack.group_fallback == f"group {size} instead of {asked}, as a row has {columns} weights") == fell_back


def test_a_group_of_zero_weights_is_refused() -> None:
    with pytest.raises(BadInput, match="a group of 0 weights"):
        group_size_for(128, 0)


def test_searching_the_range_halves_the_error_at_two_bits() -> None:
    weights = matrices(2, 64, 256)
    plain = round_to_nearest(weights, 2, clip=(1.0,), refine=0).dequantize()
    searched = round_to_nearest(weights, 2).dequantize()
    assert (searched - weights).square().sum() < 0.5 * (plain - weights).square().sum()


# ---- GPTQ


@bits_of_codes
@gptq_settings
@pytest.mark.parametrize("correlated", [False, True], ids=["white", "correlated"])
def test_gptq_is_never_above_round_to_nearest_in_any_row(bits: int, settings: Settings, correlated: bool) -> None:
    weights, hessian = matrices(), hessians(correlated=correlated)
    ours = layer_error(weights, gptq(weights, (bits,), hessian, settings)[bits].dequantize(), hessian)
    plain = layer_error(weights, round_to_nearest(weights, bits).dequantize(), hessian)
    assert (ours <= plain).all()
    assert ours.sum() < (0.9 if correlated else 1.0) * plain.sum()


@gptq_settings
def test_gptq_at_several_widths_gives_what_each_width_gives_alone(settings: Settings) -> None:
    weights, hessian = matrices(), hessians()
    for bits, stack in gptq(weights, (1, 2, 3), hessian, settings).items():
        assert same(stack, gptq(weights, (bits,), hessian, settings)[bits])


def test_gptq_rounds_columns_as_the_written_out_algorithm_does() -> None:
    """Algorithm 1 without blocks, in float64, on grids that are known beforehand."""
    weights, hessian = matrices(1, 8, 64), hessians(1, 64)
    stack = gptq(weights, (3,), hessian, Settings(act_order=False, rounds=1, refit=0, never_above_rtn=False))[3]
    damped = hessian[0].double() + 0.01 * hessian[0].double().diagonal().mean() * torch.eye(64)
    inverse = torch.linalg.inv(damped)
    step, low = stack.scale[0].double(), stack.offset[0].double()  # type: ignore[index]
    left, codes = weights[0].double(), torch.zeros(8, 64)
    for j in range(64):
        codes[:, j] = ((left[:, j] - low[:, 0]) / step[:, 0]).round().clamp(0, 7)
        error = left[:, j] - (codes[:, j] * step[:, 0] + low[:, 0])
        left -= error[:, None] * inverse[j] / inverse[j, j]
        inverse -= inverse[:, j : j + 1] @ inverse[j : j + 1] / inverse[j, j].clone()
        inverse[j, :] = inverse[:, j] = 0.0
        inverse[j, j] = 1.0
    assert torch.equal(stack.codes[0].float(), codes)


def test_the_order_of_the_inputs_does_not_matter_where_gptq_chooses_its_own() -> None:
    weights, hessian, settings = matrices(1, 16, 64), hessians(1, 64), Settings()
    shuffle = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    straight = gptq(weights, (2,), hessian, settings)[2].dequantize()
    shuffled = gptq(weights[..., shuffle], (2,), hessian[:, shuffle][..., shuffle], settings)[2].dequantize()
    torch.testing.assert_close(shuffled, straight[..., shuffle])


def test_the_order_of_the_outputs_does_not_matter() -> None:
    weights, hessian = matrices(1), hessians(1)
    turned = gptq(weights.flip(1), (1, 2), hessian)
    for bits, stack in gptq(weights, (1, 2), hessian).items():
        torch.testing.assert_close(turned[bits].dequantize(), stack.dequantize().flip(1))


@bits_of_codes
@gptq_settings
def test_an_expert_that_saw_nothing_is_rounded_to_nearest_and_says_so(bits: int, settings: Settings) -> None:
    weights, hessian = matrices(2), hessians(2)
    hessian[1] = 0
    stack = gptq(weights, (bits,), hessian, settings)[bits]
    assert same(stack[1], round_to_nearest(weights[1:], bits))
    assert stack[1].notes == (("no input was ever seen: rounded to nearest",),)


def test_inputs_that_are_always_zero_keep_their_weights() -> None:
    weights, hessian = matrices(1), hessians(1)
    hessian[:, 5], hessian[:, :, 5] = 0, 0
    stack = gptq(weights, (8,), hessian)[8]
    torch.testing.assert_close(stack.dequantize()[..., 5], weights[..., 5], atol=0.002, rtol=0)


def test_damping_is_raised_visibly_where_the_hessian_is_not_positive() -> None:
    hessian = hessians(1)
    hessian -= torch.eye(192) * 0.05 * hessian[0].diagonal().mean()
    stack = gptq(matrices(1), (2,), hessian)[2]
    assert stack.notes[0][0] == "damping raised from 0.01 to 0.1"


def test_a_hessian_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match="not positive semi-definite"):
        gptq(matrices(1), (2,), -hessians(1))


def test_a_hessian_with_nan_is_refused_by_number() -> None:
    hessian = hessians()
    hessian[2, 0, 0] = float("nan")
    with pytest.raises(BadInput, match="the Hessian of matrix 2 holds NaN"):
        gptq(matrices(), (2,), hessian)


def test_refitting_scales_never_raises_the_error_it_looks_at() -> None:
    weights, hessian = matrices(), hessians()
    damped = hessian + 0.01 * torch.diag_embed(hessian.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).expand(-1, 192))
    for bits in (1, 2, 3):
        errors = [
            layer_error(
                weights,
                gptq(weights, (bits,), hessian, Settings(rounds=1, refit=r, never_above_rtn=False))[bits].dequantize(),
                damped,
            ).sum()
            for r in (0, 1, 3)
        ]
        assert errors[2] <= errors[1] < errors[0]


def test_the_released_variant_is_worse_where_it_withholds_feedback() -> None:
    weights, hessian = matrices(), hessians()
    released = METHODS.get("gptq")(variant="mcmoe").quantize(weights, (2, 3), hessian)  # type: ignore[call-arg]
    for bits, stack in METHODS.get("gptq")().quantize(weights, (2, 3), hessian).items():
        ours = layer_error(weights, stack.dequantize(), hessian).sum()
        assert ours < 0.9 * layer_error(weights, released[bits].dequantize(), hessian).sum()


@pytest.mark.parametrize("name", ["gptq", "binary"])
def test_a_missing_hessian_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="none was given"):
        METHODS.get(name)().quantize(matrices(), (1,), None)


def test_binary_refuses_to_make_two_bits() -> None:
    with pytest.raises(BadInput, match="binary makes 1 bit only, not 2"):
        quantized("binary", matrices(), (1, 2))


def test_sixteen_bits_are_no_codes() -> None:
    with pytest.raises(BadInput, match="no codes of 16 bits"):
        quantized("rtn", matrices(), (16,))
