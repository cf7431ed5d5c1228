"""Statistics of a calibration run obey their laws and equal the expensive way of getting them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from sealing import rewrite_json
from tiny import random_tokens, tiny_mixtral, tiny_model
from torch import Tensor

from mcbench.activations import Activations
from mcbench.calibration import (
    CalibrationSettings,
    CalibrationStats,
    calibrate,
    hutchinson_trace,
    known_needs,
    predicted_cosine,
)
from mcbench.errors import BadInput, UnknownName
from mcbench.model import MoEModel
from mcbench.quantization import QuantizedTensor, round_to_nearest
from mcbench.store import PROJECTIONS, Candidates, ExpertStore, MinMax
from mcbench.text import CalibrationData

SMALL = CalibrationSettings(error_batch=2, divergence_sequences=2, divergence_length=10, predictor_steps=20)
SEVERAL = ["mixtral", "qwen2_moe", "deepseek_v3", "granitemoeshared", "gpt_oss", "glm4_moe", "olmoe"]


class Rounding:
    """A small real quantiser: round to nearest."""

    needs_hessian: ClassVar[bool] = False

    def quantize(self, weights: Tensor, widths: Sequence[int], hessian: Tensor | None) -> dict[int, QuantizedTensor]:
        return {bits: round_to_nearest(weights, bits) for bits in widths}


def text(sequences: int = 6, length: int = 20, *, padded: bool = False) -> CalibrationData:
    ids = random_tokens(sequences, length)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(sequences):
            mask[row, length - 2 * row :] = 0
    return CalibrationData(ids, mask, "random tokens")


def final_store(model: MoEModel, data: CalibrationData, widths: tuple[int, ...] = (1, 2, 3)) -> ExpertStore:
    return ExpertStore(model, data, Rounding(), "rounding", widths)


def with_expert_replaced(
    model: MoEModel, candidates: Candidates, layer: int, expert: int, width: int, measure: Callable[[], Tensor]
) -> Tensor:
    kept = {p: model.weight(layer, p)[expert].clone() for p in PROJECTIONS}
    for p in PROJECTIONS:
        model.set_weight(layer, expert, p, candidates.dequantized(layer, expert, p, width))
    try:
        return measure()
    finally:
        for p, weight in kept.items():
            model.set_weight(layer, expert, p, weight)


def block_outputs(model: MoEModel, data: CalibrationData, layer: int) -> Tensor:
    """[n, D] of the real tokens: the whole block run once, as one batch."""
    found: list[Tensor] = []

    def keep(batch: object) -> None:
        if batch.layer == layer:  # type: ignore[attr-defined]
            found.append(batch.output.reshape(batch.hidden.shape)[batch.mask].clone())  # type: ignore[attr-defined]

    with torch.no_grad(), model.observe(keep):
        model.logits(data.input_ids, data.attention_mask)
    return found[0]


@pytest.mark.parametrize("architecture", SEVERAL)
def test_counts_and_weights_add_up(architecture: str) -> None:
    model, data = tiny_model(architecture), text(padded=True)
    stats = calibrate(model, data, ["token_count"])
    assert stats.tokens == data.tokens < data.input_ids.numel()
    assert (stats.token_count.sum(axis=1) == data.tokens * model.top_k).all()
    np.testing.assert_allclose(stats.frequency.sum(axis=1), model.top_k)
    np.testing.assert_allclose(stats.renormalized_weight.sum(axis=1), data.tokens, rtol=1e-5)
    assert ((stats.weight_ratio > 0) & (stats.weight_ratio <= 1)).all()
    assert stats.weight_ratio.shape == (model.layers, model.top_k - 1)
    assert (np.abs(stats.block_cosine) <= 1).all()


def test_the_routing_weight_is_the_softmax_before_top_k_renormalisation() -> None:
    stats = calibrate(tiny_mixtral(), data := text(), ["routing_weight"])
    totals = stats.routing_weight.sum(axis=1)
    assert (totals < data.tokens).all()  # two of six experts hold less than all of the probability
    assert (totals > data.tokens * 2 / 6).all()


def test_padding_changes_nothing() -> None:
    model, data = tiny_mixtral(), text(padded=True)
    other = CalibrationData(data.input_ids.clone(), data.attention_mask, "other padding")
    other.input_ids[other.attention_mask == 0] = 99
    needs = [n for n in known_needs() if "final" not in n]
    first, second = (calibrate(model, d, needs, settings=SMALL) for d in (data, other))
    for name, values in first.tables.items():
        np.testing.assert_allclose(values, second.tables[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_the_batch_size_changes_nothing_beyond_rounding() -> None:
    model, data = tiny_mixtral(), text()
    needs = ["quantization_error:minmax", "hessian_trace", "block_cosine"]
    alone, together = (
        calibrate(model, data, needs, activations=Activations(model, data, batch_tokens=size)) for size in (1, 10_000)
    )
    for name, values in alone.tables.items():
        np.testing.assert_allclose(values, together.tables[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("architecture", SEVERAL)
def test_the_error_from_routed_tokens_equals_replaying_the_block(architecture: str) -> None:
    model, data = tiny_model(architecture), text()
    stats = calibrate(model, data, ["quantization_error:minmax"], widths=(1, 3))
    for layer in range(model.layers):
        before = block_outputs(model, data, layer)
        for expert in range(0, model.experts, 2):
            for column, width in enumerate(stats.widths):
                outputs = partial(block_outputs, model, data, layer)
                after = with_expert_replaced(model, MinMax(model), layer, expert, width, outputs)
                replayed = float((after - before).double().norm())
                if stats.token_count[layer, expert]:
                    found = stats.quantization_error("minmax")[layer, expert, column]
                    assert found == pytest.approx(replayed, rel=2e-3)
                else:
                    assert replayed == 0


def test_the_released_aggregation_is_a_sum_of_one_norm_per_batch() -> None:
    model, data = tiny_mixtral(), text()
    needs = ["quantization_error:minmax:batch-sum", "quantization_error:minmax"]
    stats = calibrate(model, data, needs, settings=SMALL)
    released = stats.quantization_error("minmax", aggregation="batch-sum")
    parts = []
    for first in range(0, 6, 2):
        part = CalibrationData(data.input_ids[first : first + 2], data.attention_mask[first : first + 2], "part")
        own = calibrate(model, part, ["quantization_error:minmax"])
        parts.append(own.quantization_error("minmax") * (own.token_count > 0)[..., None])
    np.testing.assert_allclose(released, sum(parts), rtol=1e-4)
    np.testing.assert_allclose(stats.quantization_error("minmax"), np.sqrt(sum(p**2 for p in parts)), rtol=1e-4)


@pytest.mark.parametrize("architecture", SEVERAL)
def test_the_output_divergence_equals_a_whole_forward_pass(architecture: str) -> None:
    model, data = tiny_model(architecture), text()
    data.attention_mask[1, 6:] = 0
    needs = ["output_divergence:kl:minmax", "output_divergence:fnorm:minmax"]
    stats = calibrate(model, data, needs, widths=(2,), settings=SMALL)
    ids, mask = data.input_ids[:2, :10], data.attention_mask[:2, :10]
    with torch.no_grad():
        before = model.logits(ids, mask)[mask.bool()].double()
        for layer in range(model.layers):
            for expert in range(model.experts):
                after = with_expert_replaced(model, MinMax(model), layer, expert, 2, lambda: model.logits(ids, mask))
                after = after[mask.bool()].double()
                log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
                kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
                norm = float((after - before).norm())
                found = [stats.output_divergence(name, "minmax")[layer, expert, 0] for name in ("kl", "fnorm")]
                if norm:
                    assert found == pytest.approx([kl, norm], rel=1e-3, abs=1e-7)
                else:  # nobody chose it in this text
                    assert min(found) > 0
                    assert any(f"expert {expert} of layer {layer} is not used" in w for w in stats.fallbacks)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model, data = tiny_mixtral(), text()
    digest, before = model.digest(), model.logits(data.input_ids, data.attention_mask)
    calibrate(model, data, [n for n in known_needs() if "final" not in n], settings=SMALL)
    assert model.digest() == digest
    assert torch.equal(model.logits(data.input_ids, data.attention_mask), before)


def test_more_bits_hurt_less() -> None:
    model, data = tiny_mixtral(), text()
    needs = [f"{name}:final" for name in ("quantization_error", "output_divergence:kl", "weight_error")]
    stats = calibrate(model, data, needs, store=final_store(model, data, (1, 2, 4)), widths=(1, 2, 4), settings=SMALL)
    for table in (stats.quantization_error("final"), stats.weight_error("final")):
        assert (np.diff(table, axis=-1) < 0).all()
    assert (np.diff(stats.output_divergence("kl", "final").mean(axis=(0, 1))) < 0).all()


def test_the_weight_error_is_the_squared_distance() -> None:
    model, data = tiny_mixtral(), text()
    stats = calibrate(model, data, ["weight_error:minmax"], widths=(2,))
    wanted = sum(
        (MinMax(model).dequantized(1, 3, p, 2) - model.weight(1, p)[3]).double().square().sum() for p in PROJECTIONS
    )
    assert stats.weight_error("minmax")[1, 3, 0] == pytest.approx(float(wanted), rel=1e-6)


def test_hutchinson_converges_to_the_closed_form() -> None:
    rows = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    hessian = 2 * rows.T @ rows / len(rows)
    off_diagonal = float((hessian - hessian.diag().diag()).square().sum())
    for probes in (16, 256, 4096):
        found = hutchinson_trace(lambda v: hessian @ v, 30, probes, torch.Generator().manual_seed(1))
        assert abs(found - float(hessian.trace())) < 4 * (2 * off_diagonal / probes) ** 0.5
    assert hutchinson_trace(lambda v: 3 * v, 30, 1, torch.Generator()) == pytest.approx(90)


def test_the_trace_is_that_of_the_layerwise_squared_error() -> None:
    model, data = tiny_mixtral(), text()
    needs = ["hessian_trace", "hessian_trace:hutchinson"]
    stats = calibrate(model, data, needs, settings=CalibrationSettings(hutchinson_probes=2000))
    np.testing.assert_allclose(stats.hessian_trace, stats.table("hessian_trace:hutchinson"), rtol=0.05)
    inputs = Activations(model, data).layer(1)
    x = inputs.hidden[inputs.routed(2)[0]]
    weight = model.weight(1, "gate")[2].clone().requires_grad_()
    own = [torch.autograd.functional.hessian(  # the diagonal of d2 mean ||dW x||^2 / dW2, one row of W at a time
        lambda row: (x @ row).square().mean(), weight[0].detach()).diagonal().sum()]  # fmt: skip
    inner = model.expert_hidden(1, 2, x)
    down = 2 * inner.square().sum(-1).mean() * model.weight(1, "down").shape[1]
    total = own[0] * weight.shape[0] * 2 + down
    count = sum(model.weight(1, p)[2].numel() for p in PROJECTIONS)
    assert stats.hessian_trace[1, 2] == pytest.approx(float(total) / count, rel=1e-4)


def test_the_predictor_learns_the_cosine_and_repeats_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2000, 16, generator=generator)
    cosine = torch.tanh(hidden[:, 0] * 0.3 + 0.4)
    found = [predicted_cosine(hidden, cosine, CalibrationSettings(predictor_width=32)) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] == pytest.approx(float(cosine.mean()), abs=0.03)


def test_unseen_experts_are_listed_and_get_an_estimate_that_is_recorded() -> None:
    model, data = tiny_mixtral(), text(sequences=1, length=3)
    needs = ["quantization_error:minmax", "hessian_trace"]
    stats = calibrate(model, data, needs)
    assert stats.unseen
    assert set(stats.unseen) | set(stats.starved) == {
        (la, e) for la in range(3) for e in range(6)
    }  # 3 tokens starve all
    for layer, expert in stats.unseen:
        assert stats.token_count[layer, expert] == 0
        assert (stats.quantization_error("minmax")[layer, expert] > 0).all()
        assert stats.hessian_trace[layer, expert] > 0
        assert any(f"expert {expert} of layer {layer} saw no token" in line for line in stats.fallbacks)


def test_experts_outside_the_small_text_are_estimated_from_their_block_error() -> None:
    model, data = tiny_mixtral(), text(sequences=20)
    needs = ["output_divergence:kl:minmax", "quantization_error:minmax"]
    tiny_text = CalibrationSettings(divergence_sequences=1, divergence_length=4)
    stats = calibrate(model, data, needs, settings=tiny_text)
    alone = calibrate(model, data, needs[:1], settings=tiny_text)
    assert stats.fallbacks == alone.fallbacks != ()
    together, separately = (s.output_divergence("kl", "minmax") for s in (stats, alone))
    np.testing.assert_allclose(together, separately, rtol=1e-12)
    ratio = stats.output_divergence("kl", "minmax") / stats.quantization_error("minmax") ** 2
    for layer in range(model.layers):
        used = [
            f"expert {e} of layer {layer} is not used" not in " ".join(stats.fallbacks) for e in range(model.experts)
        ]
        unused = ratio[layer][~np.array(used)]
        np.testing.assert_allclose(unused, unused.flat[0] if unused.size else 0)
        assert ((ratio[layer].min() <= unused) & (unused <= ratio[layer].max())).all()


def test_only_what_is_asked_for_is_collected() -> None:
    stats = calibrate(tiny_mixtral(), text(), ["token_count"])
    assert stats.missing(["token_count", "hessian_trace"]) == ("hessian_trace",)
    with pytest.raises(BadInput, match="holds no 'quantization_error:final'"):
        stats.quantization_error("final")


def test_saved_statistics_are_equal_and_load_in_milliseconds(tmp_path: Path) -> None:
    model, data = tiny_mixtral(), text()
    stats = calibrate(model, data, ["quantization_error:minmax", "predicted_cosine"], settings=SMALL)
    stats.save(tmp_path)
    started = time.perf_counter()
    loaded = CalibrationStats.load(tmp_path)
    assert time.perf_counter() - started < 0.1
    assert loaded == stats
    assert loaded.provenance["model"] == model.digest()
    assert loaded.provenance["data"] == data.digest
    changed = {**stats.tables, "token_count": stats.token_count + 1}
    assert CalibrationStats(**{**vars(stats), "tables": changed}) != stats


@pytest.mark.parametrize("damage", ["stats.json", "stats.safetensors", "schema"])
def test_damaged_statistics_are_refused(tmp_path: Path, damage: str) -> None:
    calibrate(tiny_mixtral(), text(), ["token_count"]).save(tmp_path)
    if damage == "schema":
        path = tmp_path / "stats.json"
        rewrite_json(path, lambda whole: whole.update(kind="calibration statistics 99"))
    else:
        (tmp_path / damage).write_bytes(b"{")
    with pytest.raises(BadInput):
        CalibrationStats.load(tmp_path)
    with pytest.raises(BadInput, match="no calibration"):
        CalibrationStats.load(tmp_path / "nowhere")


def test_an_interrupted_calibration_goes_on_and_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny_mixtral(), text()
    needs = ["quantization_error:minmax", "output_divergence:kl:minmax"]
    whole = calibrate(model, data, needs, settings=SMALL)
    from mcbench import calibration

    measured: list[tuple[int, int]] = []
    real = calibration.OutputDivergence.of

    def interrupted_after(limit: int) -> None:
        def of(self, layer, expert, candidates, width):  # type: ignore[no-untyped-def]
            if len(measured) >= limit:
                raise KeyboardInterrupt
            measured.append((layer, expert))
            return real(self, layer, expert, candidates, width)

        monkeypatch.setattr(calibration.OutputDivergence, "of", of)

    interrupted_after(20)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, data, needs, settings=SMALL, folder=tmp_path)
    with (tmp_path / "calibration.jsonl").open("a") as file:
        file.write('["divergence 1 1", {"minm')  # and the last line was cut off
    interrupted_after(1000)
    resumed = calibrate(model, data, needs, settings=SMALL, folder=tmp_path)
    assert resumed == whole
    assert len(measured) == 3 * 6 * 3 + 2  # the two widths of the expert that was cut off are measured again
    monkeypatch.setattr(Activations, "layer", None)
    assert calibrate(model, data, needs, settings=SMALL, folder=tmp_path) == whole  # only read
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stats.json", "stats.safetensors"]


def test_unknown_needs_missing_stores_and_dense_models_are_refused() -> None:
    model, data = tiny_mixtral(), text()
    with pytest.raises(UnknownName, match="known: token_count"):
        calibrate(model, data, ["temperature"])
    with pytest.raises(BadInput, match="calibrate with the store"):
        calibrate(model, data, ["quantization_error:final"])
    with pytest.raises(BadInput, match="dense"):
        calibrate(tiny_model("llama"), data, ["token_count"])
