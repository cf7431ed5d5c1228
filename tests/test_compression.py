"""Promises of compression: what is evaluated is stored, nothing is forgotten, sizes are exact, all can be undone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny import (
    ARCHITECTURES,
    random_tokens,
    tiny_folder,
    tiny_mixtral,
    tiny_model,
    tiny_seeing_folder,
    tiny_transformer,
)
from transformers import AutoModelForCausalLM

from mcbench.allocation import BitAllocation
from mcbench.checkpoint import write_explained
from mcbench.compression import COMPONENTS, CompressedModel, compress, load_compressed, uncompressed_sizes
from mcbench.errors import BadInput, CheckFailed
from mcbench.model import PROJECTIONS, MoEModel, load_model
from mcbench.quantization import QuantizedTensor, round_to_nearest

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


class Rounded:
    """Codes of a model's weights as they were when this was made, each matrix rounded to the nearest."""

    def __init__(self, model: MoEModel) -> None:
        self.experts: dict[tuple[int, str], torch.Tensor] = {
            (layer, p): model.weight(layer, p).float().clone() for layer in range(model.layers) for p in PROJECTIONS
        }
        modules = {**model.attention_linears(), **model.shared_linears()}
        self.linears = {name: module.weight.detach().float().clone() for name, module in modules.items()}

        self.stacks: dict[tuple[int, str, int], QuantizedTensor] = {}

    def tensor(self, layer: int, expert: int, projection: str, width: int) -> QuantizedTensor:
        key = (layer, projection, width)
        if key not in self.stacks:
            self.stacks[key] = quickly_rounded(self.experts[layer, projection], width)
        return self.stacks[key][expert]

    def linear(self, name: str, width: int) -> QuantizedTensor:
        return quickly_rounded(self.linears[name][None], width)


def quickly_rounded(weights: torch.Tensor, width: int) -> QuantizedTensor:
    """Each of [N, out, in] between its group's minimum and maximum, no search for a better range."""
    return round_to_nearest(weights, width, clip=(1.0,), refine=0)


def mixed(model: MoEModel, widths: tuple[int, ...] = (1, 2, 3, 16)) -> BitAllocation:
    """Every width somewhere, differently in every layer."""
    turns = np.add.outer(np.arange(model.layers), np.arange(model.experts)) % len(widths)
    return BitAllocation(np.array(widths)[turns])


def all_kept(model: MoEModel) -> BitAllocation:
    return BitAllocation(np.full((model.layers, model.experts), 16), attention=16, shared=16)


def compressed(model: MoEModel) -> CompressedModel:
    return compress(model, mixed(model), Rounded(model), method="uniform+rtn")


@every_architecture
def test_a_16_bit_compression_changes_no_bit(architecture: str) -> None:
    model = tiny_model(architecture)
    expected, digest = model.logits(random_tokens()), model.digest()
    with compress(model, all_kept(model), Rounded(model)):
        assert torch.equal(model.logits(random_tokens()), expected)
        assert model.digest() == digest


@every_architecture
def test_every_matrix_is_at_its_width_and_comes_back(architecture: str) -> None:
    model = tiny_model(architecture)
    expected, digest, codes = model.logits(random_tokens()), model.digest(), Rounded(model)
    with compressed(model) as result:
        for layer in range(model.layers):
            for projection in PROJECTIONS:
                for expert, width in enumerate(result.allocation.widths[layer].tolist()):
                    matrix = model.weight(layer, projection)[expert]
                    original = codes.experts[layer, projection][expert]
                    if width != 16:
                        original = quickly_rounded(original[None], width).dequantize()[0]
                    assert torch.equal(matrix, original)
        for name, module in (model.attention_linears() | model.shared_linears()).items():
            assert torch.equal(module.weight, codes.linear(name, 4).dequantize()[0])
        assert not torch.equal(model.logits(random_tokens()), expected)
        assert result.digest() != digest
    assert torch.equal(model.logits(random_tokens()), expected)
    assert model.digest() == digest


@every_architecture
def test_a_saved_model_loads_bit_for_bit_and_has_the_predicted_size(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    with compressed(model) as result:
        folder = result.save(tmp_path / "packed")
        expected, digest, sizes = model.logits(random_tokens()), result.digest(), result.sizes
    again = load_compressed(folder)
    assert torch.equal(again.logits(random_tokens()), expected)
    assert again.digest() == digest
    assert (folder / "model.safetensors").stat().st_size == sizes.total
    assert again.tokenizer("ab")["input_ids"] == model.tokenizer("ab")["input_ids"]


def test_sizes_count_what_they_say() -> None:
    model = tiny_mixtral()
    count = model.weight_count()
    with compressed(model) as result:
        sizes = result.sizes
    assert tuple(sizes.bytes) == COMPONENTS
    assert sizes.expert == result.allocation.expert_average
    assert sizes.label == count.label(sizes.expert)
    assert sizes.whole_model == count.whole_model(sizes.expert)
    assert sizes.stored == sizes.total * 8 / count.parameters
    packed = sum(codes.nbytes for codes in result.experts.values())
    kept = sum(4 * count.per_expert for width in result.allocation.widths.flat if width == 16)
    assert sizes.bytes["experts"] == packed + kept
    assert sizes.bytes["attention"] == sum(codes.nbytes for codes in result.linears.values())
    assert sizes.bytes["router"] == 4 * count.router
    norms = sum(p.numel() for name, p in model.model.named_parameters() if "norm" in name)  # all ones: 16 bits suffice
    assert sizes.bytes["other"] == 4 * count.other - 2 * norms
    assert uncompressed_sizes(model).bytes["experts"] == 4 * count.routed
    assert uncompressed_sizes(model).expert == 16


def test_kept_tensors_take_16_bits_where_that_loses_nothing(tmp_path: Path) -> None:
    own = tiny_transformer("mixtral")
    for parameter in own.parameters():
        parameter.data = parameter.data.bfloat16().float()
    model = MoEModel(own, name="once bfloat16")
    assert uncompressed_sizes(model).bytes["other"] == 2 * model.weight_count().other
    with compressed(model) as result:
        folder = result.save(tmp_path / "packed")
        expected = model.logits(random_tokens())
    again = load_compressed(folder)
    assert again.model.dtype == torch.float32
    assert torch.equal(again.logits(random_tokens()), expected)


def test_a_half_precision_model_is_saved_as_it_was_evaluated(tmp_path: Path) -> None:
    model = load_model(str(tiny_folder(tmp_path / "whole")), dtype="bfloat16")
    with compressed(model) as result:
        folder = result.save(tmp_path / "packed")
        expected = model.logits(random_tokens())
    again = load_model(str(folder))
    assert again.model.dtype == torch.bfloat16
    assert load_model(str(folder), dtype="float32").model.dtype == torch.float32
    assert torch.equal(again.logits(random_tokens()), expected)


def test_a_model_that_also_sees_is_compressed_and_saved(tmp_path: Path) -> None:
    model = load_model(str(tiny_seeing_folder(tmp_path / "whole")))
    with compressed(model) as result:
        folder = result.save(tmp_path / "packed")
        expected, total = model.logits(random_tokens()), result.sizes.total
    assert torch.equal(load_compressed(folder).logits(random_tokens()), expected)
    assert (folder / "model.safetensors").stat().st_size == total


def test_tied_embeddings_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model = tiny_mixtral(tie_word_embeddings=True)
    with compressed(model) as result:
        folder = result.save(tmp_path / "packed")
        expected, total = model.logits(random_tokens()), result.sizes.total
    again = load_compressed(folder)
    assert torch.equal(again.logits(random_tokens()), expected)
    assert again.model.lm_head.weight is again.model.model.embed_tokens.weight
    with compressed(tiny_mixtral()) as untied:
        assert untied.sizes.total - total > 4 * 259 * 32


def test_the_file_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    model = tiny_mixtral()
    with compressed(model) as result, safe_open(result.save(tmp_path / "m") / "model.safetensors", "pt") as file:
        codes = result.experts[0, "gate", 2]
        assert torch.equal(file.get_tensor("model.layers.0.mlp.experts.gate.2.packed"), codes.packed)
        router = file.get_tensor("model.layers.0.mlp.gate.weight")
        assert torch.equal(router, model.router_parameters()["model.layers.0.mlp.gate.weight"])


def test_several_allocations_follow_each_other_in_one_process() -> None:
    model = tiny_mixtral()
    codes, expected = Rounded(model), model.logits(random_tokens())
    outcomes = []
    for width in (3, 2, 3):
        with compress(model, BitAllocation(np.full((3, 6), width)), codes):
            outcomes.append(model.logits(random_tokens()))
        assert torch.equal(model.logits(random_tokens()), expected)
    assert torch.equal(outcomes[0], outcomes[2])
    assert not torch.equal(outcomes[0], outcomes[1])


def test_all_codes_are_fetched_before_a_weight_changes() -> None:
    model = tiny_mixtral()
    digest = model.digest()

    class Watchful(Rounded):
        def tensor(self, layer: int, expert: int, projection: str, width: int) -> QuantizedTensor:
            assert model.digest() == digest
            return super().tensor(layer, expert, projection, width)

        def linear(self, name: str, width: int) -> QuantizedTensor:
            assert model.digest() == digest
            return super().linear(name, width)

    compress(model, mixed(model), Watchful(model)).restore()


# ---- coverage


def test_a_matrix_that_was_not_covered_is_named() -> None:
    model = tiny_mixtral()
    with compressed(model) as result:
        model.weight(2, "up")[3].add_(1.0)
        with pytest.raises(CheckFailed, match="up of expert 3 of MoE layer 2"):
            result.verify()


def test_a_linear_that_was_not_covered_is_named() -> None:
    model = tiny_mixtral()
    with compressed(model) as result:
        model.attention_linears()["model.layers.1.self_attn.v_proj"].weight.data.mul_(2.0)
        with pytest.raises(CheckFailed, match=r"layers\.1\.self_attn\.v_proj"):
            result.verify()


def test_a_change_of_what_was_to_be_kept_is_named() -> None:
    model = tiny_mixtral()
    with compressed(model) as result:
        model.model.model.norm.weight.data.mul_(2.0)
        with pytest.raises(CheckFailed, match=r"model\.norm\.weight was to be kept"):
            result.verify()


def test_codes_of_another_width_fail_and_leave_the_model_whole() -> None:
    model = tiny_mixtral()
    digest = model.digest()

    class Forgetful(Rounded):
        def tensor(self, layer: int, expert: int, projection: str, width: int) -> QuantizedTensor:
            return super().tensor(layer, expert, projection, 3 if width == 2 else width)

    with pytest.raises(CheckFailed, match="no 2-bit codes"):
        compress(model, mixed(model), Forgetful(model))
    assert model.digest() == digest


def test_an_allocation_of_another_shape_is_refused() -> None:
    model = tiny_mixtral()
    with pytest.raises(BadInput, match="does not fit"):
        compress(model, BitAllocation(np.full((2, 6), 2)), Rounded(model))


# ---- saving and loading gone wrong


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with compressed(tiny_mixtral()) as result, pytest.raises(BadInput, match="something else"):
        result.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_earlier_compressed_model_is_replaced(tmp_path: Path) -> None:
    model = tiny_mixtral()
    (tmp_path / "m").mkdir()
    with compressed(model) as result:
        result.save(tmp_path / "m")
    with compress(model, BitAllocation(np.full((3, 6), 2)), Rounded(model)) as result:
        result.save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "compression.json").read_text())["allocation"]["widths"] == [[2] * 6] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with compressed(tiny_mixtral()) as result:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(BadInput, match="No space left"):
            result.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with compressed(tiny_mixtral()) as result, pytest.raises(BadInput, match="cannot be written"):
        result.save(tmp_path / "file" / "m")


def test_a_restored_model_is_not_saved(tmp_path: Path) -> None:
    result = compressed(tiny_mixtral())
    result.restore()
    with pytest.raises(BadInput, match="restored"):
        result.save(tmp_path / "m")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    with compressed(tiny_mixtral()) as result:
        return result.save(tmp_path / "packed")


def test_a_damaged_file_is_refused(packed: Path) -> None:
    weights = packed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadInput, match="damaged or incomplete"):
        load_model(str(packed))
    weights.unlink()
    with pytest.raises(BadInput, match="damaged or incomplete"):
        load_model(str(packed))


def test_widths_that_do_not_fit_the_file_are_refused(packed: Path) -> None:
    explained = json.loads((packed / "compression.json").read_text())
    explained["allocation"]["widths"][1] = [4] * 6
    (packed / "compression.json").write_text(json.dumps(explained))
    with pytest.raises(BadInput, match="was changed after it was written"):
        load_model(str(packed))
    del explained["seal"], explained["files"]
    (packed / "compression.json").unlink()
    write_explained(packed, explained)
    with pytest.raises(BadInput, match="has 1 matrices of 1 bits, 0 are allocated"):
        load_model(str(packed))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "compression.json"])
def test_a_packed_folder_whose_files_were_changed_is_refused_by_every_reader(packed: Path, name: str) -> None:
    data = bytearray((packed / name).read_bytes())
    at = data.rindex(b"1") if name.endswith("json") else len(data) - 5
    data[at] ^= 1
    (packed / name).write_bytes(data)
    for read in (load_model, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(BadInput, match=f"{name}.* was changed after it was written"):
            read(str(packed))


def test_a_packed_folder_of_an_older_version_is_read_and_said_to_be_unproven(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explained = json.loads((packed / "compression.json").read_text())
    del explained["seal"], explained["files"]
    (packed / "compression.json").write_text(json.dumps(explained))
    load_model(str(packed))
    assert "so its files cannot be proven" in capsys.readouterr().err


def test_a_newer_schema_is_refused(packed: Path) -> None:
    explained = json.loads((packed / "compression.json").read_text())
    (packed / "compression.json").write_text(json.dumps(explained | {"schema": 99}))
    with pytest.raises(BadInput, match="newer"):
        load_model(str(packed))


def test_an_ordinary_folder_is_no_compressed_model(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no compressed model"):
        load_compressed(tmp_path)


# ---- transformers' own door


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3", "granitemoe", "jamba"])
def test_from_pretrained_reads_a_compressed_folder(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    with compressed(model) as result:
        folder, digest = result.save(tmp_path / "packed"), result.digest()
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert MoEModel(again).digest() == digest
    again.save_pretrained(tmp_path / "dense")
    assert load_model(str(tmp_path / "dense")).digest() == digest


def test_a_reader_that_does_not_know_the_codes_fails(packed: Path) -> None:
    config = json.loads((packed / "config.json").read_text())
    del config["quantization_config"]
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(packed)
