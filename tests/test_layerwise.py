"""Layer by layer, every Hessian is that of a model whose earlier layers are quantised, however it was arrived at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_store import Rounding, text
from tiny import tiny_folder, tiny_mixtral, tiny_model, tiny_text
from torch import Tensor

from mcbench.activations import Activations
from mcbench.allocation import BitAllocation
from mcbench.composition import METHODS, compose
from mcbench.compression import compress
from mcbench.errors import BadInput, UnknownName
from mcbench.layerwise import LayerwiseStore
from mcbench.leaderboard import render, tabulate_records
from mcbench.model import MoEModel
from mcbench.pipeline import run
from mcbench.quantization import QuantizedTensor
from mcbench.record import Record
from mcbench.store import PROJECTIONS, ExpertStore
from mcbench.sweep import Grid, plan, report, sweep
from mcbench.text import CalibrationData

# dense layers below, shared experts inside and beside, biases, no attention in places, layers that cannot be resumed
SEVERAL = ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "granitemoeshared", "jamba", "qwen3_next", "minimax"]


def allocation(
    model: MoEModel, widths: Sequence[int] = (1, 2, 3), attention: int = 4, shared: int = 4
) -> BitAllocation:
    """Every width in every layer, shifted from layer to layer."""
    rows = [[widths[(e + layer) % len(widths)] for e in range(model.experts)] for layer in range(model.layers)]
    return BitAllocation(np.array(rows), attention=attention, shared=shared)


def layerwise(model: MoEModel, data: CalibrationData, given: BitAllocation, **options: Any) -> LayerwiseStore:
    return LayerwiseStore(model, data, options.pop("quantizer", None) or Rounding(), "rounding", given, **options)


def codes(store: LayerwiseStore | ExpertStore, given: BitAllocation) -> dict[str, Tensor]:
    """Everything that the allocation asks for, as values."""
    model = store.model
    found = {
        f"{layer} {expert} {p}": store.tensor(layer, expert, p, int(width)).dequantize()
        for (layer, expert), width in np.ndenumerate(given.widths)
        for p in PROJECTIONS
        if width != 16
    }
    for names, width in ((model.attention_linears(), given.attention), (model.shared_linears(), given.shared)):
        found |= {name: store.linear(name, width).dequantize() for name in names if width != 16}
    return found


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class Remembering(Rounding):
    """Knows the Hessian of each matrix by the bytes of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[bytes, Tensor] = {}

    def quantize(self, weights: Tensor, widths: Sequence[int], hessian: Tensor | None) -> dict[int, QuantizedTensor]:
        assert hessian is not None
        self.of |= {w.numpy().tobytes(): h for w, h in zip(weights, hessian, strict=True)}
        return super().quantize(weights, widths, hessian)


def keep_rows(rows: list[Tensor], real: Tensor, _: Any, args: tuple[Tensor]) -> None:
    rows.append(args[0].reshape(-1, args[0].shape[-1])[real.flatten()])


def moment(rows: list[Tensor]) -> Tensor:
    x = torch.cat(rows).double()
    return 2 * x.T @ x / len(x)


@pytest.mark.parametrize("architecture", SEVERAL)
def test_the_hessians_are_those_of_the_model_with_the_layers_below_replaced(architecture: str) -> None:
    model, data = tiny_model(architecture), text(padded=True)
    original, given = tiny_model(architecture), allocation(model)
    store = layerwise(model, data, given, quantizer=(quantizer := Remembering()), starved_share=0)
    found = codes(store, given)
    assert model.digest() == original.digest()
    real = data.attention_mask.bool()
    for moe, names in original.decoder_layers():
        inputs: dict[str, list[Tensor]] = {name: [] for name in names}
        routed: list[Any] = []
        handles = [
            original.linear(name).register_forward_pre_hook(partial(keep_rows, inputs[name], real)) for name in names
        ]
        with original.observe(routed.append):
            original.logits(data.input_ids, data.attention_mask)
        for handle in handles:
            handle.remove()
        for name, rows in inputs.items():
            known = quantizer.of[original.linear(name).weight.detach().numpy().tobytes()]
            torch.testing.assert_close(known.double(), moment(rows), rtol=1e-4, atol=1e-5)
            original.set_linear(name, found[name][0])
        for batch in (batch for batch in routed if batch.layer == moe):
            for expert in range(original.experts):
                x = batch.hidden[(batch.index == expert).any(-1) & batch.mask]
                own = {p: original.weight(batch.layer, p)[expert].clone() for p in PROJECTIONS}
                both = torch.cat([own["gate"], own["up"]]).numpy().tobytes()
                if len(x):
                    torch.testing.assert_close(quantizer.of[both].double(), moment([x]), rtol=1e-4, atol=1e-5)
                    h = original.expert_hidden(batch.layer, expert, x)
                    down = quantizer.of[own["down"].numpy().tobytes()]
                    torch.testing.assert_close(down.double(), moment([h]), rtol=1e-4, atol=1e-5)
        for expert in range(original.experts) if moe is not None else ():
            for p in PROJECTIONS:
                assert moe is not None
                original.set_weight(moe, expert, p, found[f"{moe} {expert} {p}"][0])


@pytest.mark.parametrize("architecture", SEVERAL)
def test_the_first_layer_gets_the_codes_of_the_default_mode_and_later_ones_do_not(architecture: str) -> None:
    model, data, gptq = tiny_model(architecture), text(), METHODS.get("gptq")()
    given = allocation(model)
    ours = codes(layerwise(model, data, given, quantizer=gptq), given)
    usual = codes(ExpertStore(model, data, gptq, "gptq", (1, 2, 3)), given)
    same = {name for name, value in ours.items() if torch.equal(value, usual[name])}
    first, *later = model.decoder_layers()
    assert same >= set(first.linears)
    if first.moe is not None:
        assert same >= {name for name in ours if name.startswith("0 ")}
    assert not same & {f"{model.layers - 1} {e} down" for e in range(model.experts)}
    assert not same & set(later[-1].linears)


@pytest.mark.parametrize("architecture", SEVERAL)
def test_layers_that_are_kept_below_change_no_bit_of_the_last_one(architecture: str) -> None:
    model, data, gptq = tiny_model(architecture), text(), METHODS.get("gptq")()
    given = allocation(model, attention=16, shared=16)
    kept = np.where(np.arange(model.layers)[:, None] < model.layers - 1, 16, given.widths)
    last = BitAllocation(kept, attention=16, shared=16)
    ours = codes(layerwise(model, data, last, quantizer=gptq), last)
    assert equal(ours, codes(ExpertStore(model, data, gptq, "gptq", (1, 2, 3)), last)) and ours


def test_sixteen_bits_everywhere_change_nothing_and_run_nothing() -> None:
    model, data = tiny_model("qwen2_moe"), text()
    given = allocation(model, widths=(16,), attention=16, shared=16)
    before, store = model.digest(), layerwise(model, data, given, quantizer=(quantizer := Rounding()))
    with compress(model, given, store) as compressed:
        assert compressed.digest() == before
    assert quantizer.calls == store.inputs.decoders_run == 0


def test_a_model_of_one_layer_gets_the_same_weights_in_both_modes() -> None:
    model, data, gptq = tiny_mixtral(num_hidden_layers=1), text(), METHODS.get("gptq")()
    given = allocation(model)
    stores = (layerwise(model, data, given, quantizer=gptq), ExpertStore(model, data, gptq, "gptq", (1, 2, 3)))
    digests = []
    for store in stores:
        with compress(model, given, store) as compressed:
            digests.append(compressed.digest())
    assert digests[0] == digests[1] != model.digest()
    assert stores[0].fallbacks == stores[1].fallbacks


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_little_memory_means_more_runs_and_the_same_codes(architecture: str) -> None:
    model, data = tiny_model(architecture), text()
    given, gptq = allocation(model), METHODS.get("gptq")()
    rich, poor = (layerwise(model, data, given, quantizer=gptq, memory_bytes=size) for size in (1 << 30, 1))
    assert equal(codes(rich, given), codes(poor, given)) and rich.fallbacks == poor.fallbacks
    decoders = len(model.decoder_layers())
    assert rich.inputs.decoders_run == 2 * decoders - 1  # once as it is, once quantised
    assert poor.inputs.decoders_run > decoders * (decoders + 1) // 2


@pytest.mark.parametrize("stopped_at", [0, 1, 2])
def test_an_interrupted_run_goes_on_to_the_same_codes_and_leaves_the_model_alone(
    tmp_path: Path, stopped_at: int
) -> None:
    class Stopping(Rounding):
        def quantize(
            self, weights: Tensor, widths: Sequence[int], hessian: Tensor | None
        ) -> dict[int, QuantizedTensor]:
            if self.calls == calls * stopped_at:
                raise KeyboardInterrupt
            return super().quantize(weights, widths, hessian)

    model, data = tiny_mixtral(), text()
    given, before = allocation(model), model.digest()
    whole = layerwise(model, data, given, quantizer=(counting := Rounding()))
    expected = codes(whole, given)
    calls = counting.calls // model.layers
    with pytest.raises(KeyboardInterrupt):
        layerwise(model, data, given, quantizer=Stopping(), folder=tmp_path).prepare()
    assert model.digest() == before
    again = layerwise(model, data, given, quantizer=(counting := Rounding()), folder=tmp_path)
    assert equal(codes(again, given), expected) and again.fallbacks == whole.fallbacks
    assert counting.calls == calls * (model.layers - stopped_at)
    finished = layerwise(model, data, given, quantizer=(counting := Rounding()), folder=tmp_path)
    assert equal(codes(finished, given), expected) and finished.fallbacks == whole.fallbacks
    assert counting.calls == finished.inputs.decoders_run == 0
    assert model.digest() == before


def test_the_key_knows_the_allocation_and_the_mode() -> None:
    model, data = tiny_mixtral(), text()
    given = allocation(model)
    keys = {
        layerwise(model, data, given).key,
        layerwise(model, data, allocation(model, (1, 3, 2))).key,
        layerwise(model, data, dataclasses.replace(given, attention=8)).key,
        layerwise(model, text(7), given).key,
        layerwise(tiny_mixtral(seed=1), data, given).key,
        ExpertStore(model, data, Rounding(), "rounding", (1, 2, 3)).key,
    }
    assert len(keys) == 6


def test_what_was_not_allocated_is_refused() -> None:
    model, data = tiny_mixtral(), text()
    store = layerwise(model, data, allocation(model))
    with pytest.raises(BadInput, match="no codes of 3 bits for expert 0 of MoE layer 0: it was given 1"):
        store.tensor(0, 0, "gate", 3)
    with pytest.raises(BadInput, match="it was given 4"):
        store.linear(next(iter(model.attention_linears())), 8)
    with pytest.raises(BadInput, match="does not look at inputs"):
        layerwise(model, data, allocation(model), quantizer=METHODS.get("rtn")())


def test_a_run_that_cannot_be_resumed_in_the_middle_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, gptq = tiny_mixtral(), text(), METHODS.get("gptq")()
    given = allocation(model)
    expected = codes(layerwise(model, data, given, quantizer=gptq), given)
    monkeypatch.setattr(MoEModel, "resumes", False)
    store = layerwise(model, data, given, quantizer=gptq)
    assert equal(codes(store, given), expected)
    assert store.inputs.decoders_run == 1 + 2 + 3


def test_a_model_can_be_run_in_pieces() -> None:
    model, data = tiny_model("qwen2_moe"), text(padded=True)
    entering = model.trace(data.input_ids, data.attention_mask).entering
    states: Tensor | None = None
    for place in range(model.layers):
        states = model.run_decoders(max(0, place - 1), place, states, data.input_ids, data.attention_mask)
        assert states is not None
        assert torch.equal(states, entering[place])
    assert model.run_decoders(2, 3, states, data.input_ids, data.attention_mask) is None
    assert torch.equal(
        Activations(model, data).layer(2).hidden, Activations(tiny_model("qwen2_moe"), data).layer(2).hidden
    )


def test_the_mode_stands_in_the_method_string() -> None:
    assert str(compose("pmq+gptq(inputs=quantized)")) == "pmq+gptq(inputs=quantized)"
    assert compose("pmq+gptq(inputs=quantized)").layerwise
    assert str(compose("pmq+gptq(inputs=original)")) == "pmq+gptq" and not compose("pmq").layerwise
    assert not compose("pmq+rtn").layerwise
    with pytest.raises(UnknownName, match="no hyper-parameter 'inputs'"):
        compose("pmq+rtn(inputs=quantized)")
    with pytest.raises(BadInput, match="'original' or 'quantized'"):
        compose("pmq+gptq(inputs=both)")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("layerwise")
    model = str(tiny_folder(folder / "tiny", max_position_embeddings=1024))
    calibration = {"calibration": str(tiny_text(folder)), "samples": 8, "length": 64}
    return {"model": model, "tasks": "mini-perplexity,mini-piqa", "limit": 4, **calibration}


def test_a_sweep_gives_each_cell_what_its_run_alone_gives_and_goes_on_where_it_was_killed(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ("pmq", "pmq+gptq(inputs=quantized)")
    grid = Grid(methods=methods, expert_bits=(1.5, 2.0), **settings)
    planned = plan(grid, out=tmp_path / "swept")
    assert planned.layerwise == 2 and "2 cells quantise anew" in report(planned.outcomes, planned)
    original, calls = MoEModel.run_decoders, 0

    def killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MoEModel, "run_decoders", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(grid, out=tmp_path / "swept")
    done = [Record.load(outcome.record) for outcome in sweep(grid, out=tmp_path / "swept")]
    assert [record.method for record in done] == ["pmq+gptq"] * 2 + ["pmq+gptq(inputs=quantized)"] * 2
    for record in done:
        alone = run(record.method, expert_bits=record.bits.asked, out=tmp_path / "alone", **settings)
        assert record.fingerprint == alone.fingerprint and record.fallbacks == alone.fallbacks
        assert [r.value for r in record.results] == [r.value for r in alone.results]
    for usual, layered in zip(done[:2], done[2:], strict=True):
        assert usual.allocation == layered.allocation and usual.fingerprint != layered.fingerprint
        assert layered.parts[1].parameters["inputs"] == "quantized"
    (table,), _ = tabulate_records([whole(record) for record in done])
    named = [
        line.split("|")[1].strip().removesuffix(" †")
        for line in render([table])["README.md"].splitlines()
        if "pmq" in line
    ]
    assert sorted(set(named)) == sorted({record.method for record in done}) and len(named) == 2 * len(done)


def whole(record: Record) -> Record:
    """The record as if no item had been left out."""
    return dataclasses.replace(record, results=tuple(dataclasses.replace(r, partial=False) for r in record.results))
