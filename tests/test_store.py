"""Every expert is quantised once per width, from the tokens that chose it, whatever the batch size or the memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny import random_tokens, tiny_mixtral, tiny_model
from torch import Tensor

from mcbench.activations import Activations
from mcbench.composition import METHODS
from mcbench.errors import BadInput
from mcbench.model import MoEModel
from mcbench.quantization import QuantizedTensor, round_to_nearest
from mcbench.store import PROJECTIONS, ExpertStore, MinMax, minmax
from mcbench.text import CalibrationData


class Rounding:
    """A small real quantiser: round to nearest in groups; remembers the Hessians that it was given."""

    needs_hessian: ClassVar[bool] = True

    def __init__(self) -> None:
        self.hessians: list[Tensor] = []
        self.calls = 0

    def quantize(self, weights: Tensor, widths: Sequence[int], hessian: Tensor | None) -> dict[int, QuantizedTensor]:
        self.calls += 1
        if hessian is not None:
            self.hessians.append(hessian)
        return {bits: round_to_nearest(weights, bits) for bits in widths}


def text(sequences: int = 8, length: int = 24, *, padded: bool = False) -> CalibrationData:
    ids = random_tokens(sequences, length)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(sequences):
            mask[row, length - row :] = 0
    return CalibrationData(ids, mask, "random tokens")


def hessians(model: MoEModel, data: CalibrationData, **options: int) -> list[Tensor]:
    quantizer = Rounding()
    activations = Activations(model, data, linears=list(model.attention_linears()), **options)
    ExpertStore(model, data, quantizer, "rounding", (2,), activations=activations).prepare()
    return quantizer.hessians


def test_the_hessian_is_twice_the_mean_outer_product_of_the_routed_tokens() -> None:
    model, data = tiny_mixtral(), text()
    store = ExpertStore(model, data, quantizer := Rounding(), "rounding", (2,), starved_share=0)
    store.prepare()
    inputs = Activations(model, data).layer(0)
    into, hidden = quantizer.hessians[:2]  # gate and up share one, and one call
    for expert in range(model.experts):
        x = inputs.hidden[(inputs.index == expert).any(-1)].double()
        h = model.expert_hidden(0, expert, x.float()).double()
        torch.testing.assert_close(into[expert].double(), 2 * x.T @ x / len(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(hidden[expert].double(), 2 * h.T @ h / len(h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_hessians_do_not_depend_on_the_batch_size(architecture: str) -> None:
    model, data = tiny_model(architecture), text()
    one_by_one = hessians(model, data, batch_tokens=1)
    for alone, together in zip(one_by_one, hessians(model, data), strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_padding_never_counts() -> None:
    model, padded = tiny_mixtral(), text(padded=True)
    other = CalibrationData(padded.input_ids.clone(), padded.attention_mask, "other padding")
    other.input_ids[other.attention_mask == 0] = 77
    for first, second in zip(hessians(model, padded), hessians(model, other), strict=True):
        torch.testing.assert_close(first, second)
    assert len(Activations(model, padded).layer(1).hidden) == padded.tokens < padded.input_ids.numel()


def test_a_small_memory_budget_means_more_runs_and_the_same_result() -> None:
    model, data = tiny_mixtral(), text()
    rich, poor = (Activations(model, data, memory_bytes=size) for size in (1 << 30, 1))
    for layer in range(model.layers):
        assert torch.equal(rich.layer(layer).hidden, poor.layer(layer).hidden)
    assert (rich.passes, poor.passes) == (1, model.layers)
    generous = ExpertStore(model, data, Rounding(), "rounding", (2, 3), memory_bytes=1 << 30)
    frugal = ExpertStore(model, data, Rounding(), "rounding", (2, 3), memory_bytes=1)
    assert same_codes(generous, frugal)


def test_one_run_serves_all_layers_and_linears() -> None:
    model, data = tiny_mixtral(), text()
    store = ExpertStore(model, data, Rounding(), "rounding", (2,))
    store.prepare()
    assert store.activations is not None
    assert store.activations.passes == 1


def test_experts_without_enough_tokens_are_recorded_and_never_zeroed() -> None:
    model, data = tiny_mixtral(), text(sequences=1, length=3)  # 3 tokens x top-2 cannot reach 6 experts well
    store = ExpertStore(model, data, quantizer := Rounding(), "rounding", (2,))
    store.prepare()
    inputs = Activations(model, data)
    for layer in range(model.layers):
        counts = torch.bincount(inputs.layer(layer).index.flatten(), minlength=model.experts)
        for expert in range(model.experts):
            records = [f for f in store.fallbacks if (f.layer, f.expert) == (layer, expert)]
            assert [f.projection for f in records] == list(PROJECTIONS)
            assert {f.tokens for f in records} == {int(counts[expert])}
            expected = "round-to-nearest" if counts[expert] == 0 else "all tokens"
            assert all(expected in str(f) for f in records)
            assert all(store.dequantized(layer, expert, p, 2).abs().sum() > 0 for p in PROJECTIONS)
    assert any(f.tokens == 0 for f in store.fallbacks)
    everyone = inputs.layer(0).hidden
    for expert, count in enumerate(torch.bincount(inputs.layer(0).index.flatten(), minlength=model.experts)):
        wanted = 2 * everyone.T @ everyone / len(everyone)
        torch.testing.assert_close(quantizer.hessians[0][expert], wanted if count else 0 * wanted)


def test_gptq_rounds_an_unseen_expert_to_nearest_and_treats_each_row_as_if_alone() -> None:
    gptq, rtn = METHODS.get("gptq")(), METHODS.get("rtn")()
    model, data = tiny_mixtral(), text(sequences=1, length=3)
    store = ExpertStore(model, data, gptq, "gptq", (1, 2, 3))
    store.prepare()
    unseen = next(f for f in store.fallbacks if not f.tokens)
    for width in store.widths:
        for projection in PROJECTIONS:
            weight = model.weight(unseen.layer, projection)[unseen.expert][None]
            nearest = rtn.quantize(weight, (width,), None)[width].dequantize()[0]
            assert torch.equal(store.dequantized(unseen.layer, unseen.expert, projection, width), nearest)
    weights = torch.randn(3, 40, 24, generator=(generator := torch.Generator().manual_seed(0)))
    rows = torch.randn(3, 100, 24, generator=generator)
    hessian = rows.transpose(1, 2) @ rows
    together = gptq.quantize(weights, (2,), hessian)[2].dequantize()
    assert torch.equal(together[:, :16], gptq.quantize(weights[:, :16], (2,), hessian)[2].dequantize())


def test_an_interrupted_run_goes_on_and_ends_with_the_same_codes(tmp_path: Path) -> None:
    model, data = tiny_mixtral(), text()
    whole = ExpertStore(model, data, Rounding(), "rounding", (2, 3))
    first = ExpertStore(model, data, Rounding(), "rounding", (2, 3), folder=tmp_path)
    first.tensor(0, 0, "gate", 2)  # then interrupted
    again = ExpertStore(model, data, quantizer := Rounding(), "rounding", (2, 3), folder=tmp_path)
    assert same_codes(whole, again)
    assert quantizer.calls == 2 * (model.layers - 1)
    again.prepare()
    finished = ExpertStore(model, data, quantizer := Rounding(), "rounding", (2, 3), folder=tmp_path)
    finished.prepare()
    assert quantizer.calls == 0
    assert finished.fallbacks == again.fallbacks == first.fallbacks + again.fallbacks[len(first.fallbacks) :]
    for name in model.attention_linears():
        assert torch.equal(finished.linear(name, 4).dequantize(), again.linear(name, 4).dequantize())
    assert not list(tmp_path.rglob("*.part"))


def test_codes_of_another_key_are_not_taken(tmp_path: Path) -> None:
    first = ExpertStore(tiny_mixtral(seed=1), text(), Rounding(), "rounding", (2,), folder=tmp_path)
    first.prepare()
    other = ExpertStore(tiny_mixtral(), text(), Rounding(), "rounding", (2,), folder=tmp_path)
    assert first.folder is not None
    assert other.folder is not None
    first.folder.rename(other.folder)
    assert same_codes(other, ExpertStore(tiny_mixtral(), text(), Rounding(), "rounding", (2,)))


def test_the_key_changes_with_model_text_quantiser_and_widths() -> None:
    model, data = tiny_mixtral(), text()
    keys = [
        ExpertStore(model, data, Rounding(), "rounding", (2,)).key,
        ExpertStore(tiny_mixtral(seed=1), data, Rounding(), "rounding", (2,)).key,
        ExpertStore(model, text(7), Rounding(), "rounding", (2,)).key,
        ExpertStore(model, data, Rounding(), "rounding(group_size=64)", (2,)).key,
        ExpertStore(model, data, Rounding(), "rounding", (2, 3)).key,
    ]
    assert len(set(keys)) == len(keys)
    assert ExpertStore(model, data, Rounding(), "rounding", (2,)).key == keys[0]


def test_sixteen_bits_are_the_weights_as_they_are() -> None:
    model = tiny_mixtral()
    store = ExpertStore(model, text(), Rounding(), "rounding", (2, 16))
    assert torch.equal(store.dequantized(1, 2, "down", 16), model.weight(1, "down")[2])
    with pytest.raises(BadInput, match="nothing was quantised to 3 bits"):
        store.tensor(0, 0, "gate", 3)


@pytest.mark.parametrize("where", ["weights", "activations", "attention"])
def test_nan_ends_the_run_with_the_layer_named(where: str) -> None:
    model = tiny_mixtral()
    if where == "weights":
        model.set_weight(1, 0, "down", torch.full_like(model.weight(1, "down")[0], torch.nan))
    if where == "activations":
        with torch.no_grad():
            model.model.get_input_embeddings().weight[5] = torch.inf
    if where == "attention":
        next(iter(model.attention_linears().values())).weight.data[0] = torch.nan
    data = text()
    data.input_ids[0, 0] = 5
    with pytest.raises(BadInput, match="NaN"):
        ExpertStore(model, data, Rounding(), "rounding", (2,)).prepare()


def test_a_quantiser_with_a_hessian_needs_text() -> None:
    with pytest.raises(BadInput, match="no calibration text"):
        ExpertStore(tiny_mixtral(), None, Rounding(), "rounding", (2,))


def test_minmax_keeps_extremes_and_signs() -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4, 8):
        error = minmax(weight, bits, 32) - weight
        steps = torch.cat([(g.amax(1) - g.amin(1)) / (2**bits - 1) for g in weight.split(32, 1)]).max()
        assert error.abs().max() <= steps
    one = minmax(weight, 1, 32)
    assert torch.equal(one.sign(), weight.sign())
    torch.testing.assert_close(one[:, :32].abs().mean(1), weight[:, :32].abs().mean(1))
    model = tiny_mixtral()
    assert torch.equal(MinMax(model, 32).dequantized(1, 2, "up", 3), minmax(model.weight(1, "up")[2], 3, 32))


def same_codes(one: ExpertStore, other: ExpertStore) -> bool:
    return all(
        torch.equal(one.dequantized(layer, expert, p, width), other.dequantized(layer, expert, p, width))
        for layer in range(one.model.layers)
        for expert in range(one.model.experts)
        for p in PROJECTIONS
        for width in one.widths
    )
