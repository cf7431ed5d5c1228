"""What stands in a model folder is what is loaded, and what does not fit is refused in one sentence before the work."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    random_tokens,
    tiny_folder,
    tiny_mixtral,
    tiny_model,
    tiny_seeing_folder,
    tiny_tokenizer,
    tiny_transformer,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaTokenizer, MixtralForCausalLM, T5Config

from mcbench.compression import load_compressed, uncompressed_sizes
from mcbench.errors import BadInput
from mcbench.evaluation import LanguageModel
from mcbench.model import MoEModel, load_model
from mcbench.record import Record
from mcbench.report import table
from mcbench.source import Source, base_name, explain, refuse_impossible

TEXT = "one red apple"


def configured(folder: Path, **changes: Any) -> Path:
    """The folder with fields of its config replaced; None takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The folder with other tensors in its weights file."""
    path = folder / "model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path, metadata={"format": "pt"})
    return folder


def source_of(folder: Path) -> Source:
    found = load_model(str(folder)).source
    assert found is not None
    return found


# ---- tokenizer and model


def test_a_tokenizer_class_that_needs_no_files_is_no_tokenizer(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    assert len(LlamaTokenizer.from_pretrained(folder)) < 5  # transformers makes one of nothing
    model = load_model(str(folder))
    with pytest.raises(BadInput, match="has no tokenizer"):
        _ = model.tokenizer
    (folder / "model.safetensors").unlink()  # with text to read it is refused before a weight is looked for
    with pytest.raises(BadInput, match="has no tokenizer"):
        load_model(str(folder), text=True)


def test_a_tokenizer_that_is_a_program_is_called_that(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    mapped = {"auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]}, "tokenizer_class": "Mine"}
    (folder / "tokenizer_config.json").write_text(json.dumps(mapped))
    (folder / "tokenization_mine.py").write_text("raise SystemExit('executed')")
    with pytest.raises(BadInput, match=r"program in the model folder.*no code"):
        load_model(str(folder), text=True)


def damage_regex(content: dict[str, Any]) -> None:
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = split | {"pattern": {"Regex": "a{999999}"}}


def damage_vocabulary(content: dict[str, Any]) -> None:
    content["model"]["vocab"] = {"a": 3, "b": 4}


def damage_kind(content: dict[str, Any]) -> None:
    content["model"]["type"] = 5


@pytest.mark.parametrize("damage", [damage_regex, damage_vocabulary, damage_kind])
def test_a_damaged_tokenizer_is_called_damaged(tmp_path: Path, damage: Callable[[dict[str, Any]], None]) -> None:
    folder = tiny_folder(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    damage(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"tokenizer of .* is damaged"):
        load_model(str(folder))


@pytest.mark.parametrize("settings", ['{"tokenizer_class": 5}', "{", "[]"])
def test_damaged_settings_of_a_tokenizer_are_called_damaged(tmp_path: Path, settings: str) -> None:
    folder = tiny_folder(tmp_path)
    (folder / "tokenizer_config.json").write_text(settings)
    with pytest.raises(BadInput, match=r"tokenizer of .* is damaged"):
        load_model(str(folder))


def test_a_token_beyond_the_embedding_is_refused_wherever_model_and_tokenizer_meet(tmp_path: Path) -> None:
    folder, tokenizer = tiny_folder(tmp_path), tiny_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BadInput, match=r"gives '<more>' the id 259, and the embedding has 259 rows"):
        load_model(str(folder))
    with pytest.raises(BadInput, match="does not belong to its model"):
        LanguageModel(tiny_transformer("mixtral"), tokenizer, check=False)


def test_an_entry_that_no_text_leads_to_may_lie_beyond_the_embedding(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["abc"] = 259
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert len(load_model(str(folder)).tokenizer) == 260
    content["model"]["vocab"] |= {"ab": 260, "abc": 259}
    content["model"]["merges"] = [["a", "b"], ["ab", "c"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match="'abc' the id 259"):
        load_model(str(folder))


def test_the_tokens_that_a_config_names_exist(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "text", vocab_size=300)
    with pytest.raises(BadInput, match="eos_token_id = 280, a token that its tokenizer does not know"):
        load_model(str(configured(folder, eos_token_id=280)))
    with pytest.raises(BadInput, match="eos_token_id = 1000000, and the embedding has 300 rows"):
        load_model(str(configured(folder, eos_token_id=[2, 10**6])))
    assert load_model(str(configured(folder, eos_token_id=2))).has_tokenizer
    seeing = tiny_seeing_folder(tmp_path / "seeing")
    tiny_tokenizer().save_pretrained(seeing)
    with pytest.raises(BadInput, match="image_token_id = 259, a token that its tokenizer does not know"):
        load_model(str(seeing))


# ---- what the source is


def test_weights_of_16_and_of_32_bits_are_called_so(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "whole")
    source = source_of(folder)
    assert (source.precision, source.kind, source.files) == ("32 bits", "", ("model.safetensors",))
    assert source.total == (folder / "model.safetensors").stat().st_size
    assert source.bytes["experts"] == 4 * tiny_mixtral().weight_count().routed
    rounded = load_model(str(folder), dtype="bfloat16").source
    assert rounded is not None and rounded.precision == "16 bits"
    assert "stored in float32 and were rounded to bfloat16" in rounded.notes[0]
    rewritten(folder, lambda tensors: {k: v.bfloat16() for k, v in tensors.items()})
    assert source_of(folder).precision == "16 bits"


def fp8_folder(folder: Path) -> Path:
    """A DeepSeek-V3 as its makers ship it: matrices in float8 with a scale for each block, the rest in bfloat16."""
    tiny_folder(folder, "deepseek_v3")

    def quantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for key, value in tensors.items():
            made[key] = value.bfloat16()
            if key.endswith("proj.weight"):
                scale = value.abs().max() / 448
                made |= {key: (value / scale).to(torch.float8_e4m3fn), f"{key}_scale_inv": scale.reshape(1, 1)}
        return made

    rewritten(folder, quantized)
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    return configured(folder, quantization_config=blocks, dtype="bfloat16")


def mxfp4_folder(folder: Path) -> Path:
    """A GPT-OSS as its makers ship it: experts in blocks of 32 four-bit numbers with one exponent."""
    tiny_folder(folder, "gpt_oss", intermediate_size=64)

    def quantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for key, value in tensors.items():
            if key.endswith(("gate_up_proj", "down_proj")):
                experts, inner, outer = value.shape
                made[f"{key}_blocks"] = torch.randint(0, 255, (experts, outer, inner // 32, 16), dtype=torch.uint8)
                made[f"{key}_scales"] = torch.full((experts, outer, inner // 32), 120, dtype=torch.uint8)
            else:
                made[key] = value.bfloat16()
        return made

    rewritten(folder, quantized)
    return configured(folder, quantization_config={"quant_method": "mxfp4"}, dtype="bfloat16")


@pytest.mark.parametrize(("make", "name", "width"), [(fp8_folder, "fp8", 8), (mxfp4_folder, "mxfp4", 4)])
def test_a_source_of_8_or_4_bits_is_decoded_and_called_by_its_name(
    tmp_path: Path, make: Callable[[Path], Path], name: str, width: int
) -> None:
    model = load_model(str(make(tmp_path / "m")))
    source, sizes = model.source, uncompressed_sizes(model)
    assert model.model.dtype == torch.bfloat16 and source is not None
    assert (source.precision, source.kind) == (name, name)
    assert f"compressed already ({name})" in source.notes[0]
    assert sizes.expert == width
    assert sizes.total == source.total == (tmp_path / "m" / "model.safetensors").stat().st_size
    if name == "fp8":
        near = (model.weight(0, "up").float() - tiny_model("deepseek_v3").weight(0, "up")).abs().max()
        assert 0 < near < 0.05
        assert source.components["experts"] == "float8_e4m3fn" and source.components["router"] == "bfloat16"


def test_float8_without_a_word_in_the_config_is_seen_in_the_file(tmp_path: Path) -> None:
    folder = rewritten(
        tiny_folder(tmp_path),
        lambda tensors: {k: v.to(torch.float8_e4m3fn) if "experts" in k else v for k, v in tensors.items()},
    )
    assert source_of(folder).precision == "float8"


def test_a_packed_folder_is_named_by_its_bits_wherever_it_is_compared(tmp_path: Path, packed: Path) -> None:
    from mcbench.pipeline import run

    model = load_model(str(packed))
    assert model.source is not None and model.source.kind == "mcbench"
    named = f"packed at {uncompressed_sizes(model).expert:.2f} bits"
    assert model.source.precision == named
    record = run(
        "uniform+rtn", expert_bits=3, model=str(packed), tasks="mini-piqa", limit=4, samples=4, length=64,
        out=tmp_path / "runs", quiet=True,
    )  # fmt: skip
    again = Record.from_json(record.to_json())
    assert again.model.source == record.model.source
    shown = table(again)
    assert f" {named} " in shown and "16 bits" not in shown
    assert any("compressed already" in text for text in record.fallbacks)
    plain = run("none", model=str(packed), tasks="mini-piqa", limit=4, out=tmp_path / "runs", quiet=True)
    assert plain.bits.expert == uncompressed_sizes(model).expert < 6


@pytest.mark.parametrize("method", ["hqq", "gptq", "awq", "bitsandbytes", "modelopt", "no-such"])
def test_codes_that_cannot_be_read_as_numbers_are_refused_with_the_reason(tmp_path: Path, method: str) -> None:
    folder = configured(tiny_folder(tmp_path), quantization_config={"quant_method": method})
    with pytest.raises(BadInput, match=f"compressed already, by {method}, .* give the model that this one was made"):
        load_model(str(folder))


def test_which_of_two_sets_of_weights_was_read_is_told(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "a")
    tiny_transformer("mixtral", seed=1).save_pretrained(tmp_path / "b", max_shard_size="200KB")
    for path in (tmp_path / "b").glob("model*"):
        shutil.copy(path, folder)
    model = load_model(str(folder))
    assert model.source is not None and model.source.files == ("model.safetensors",)
    assert "two sets of weights: model.safetensors was read" in model.source.notes[0]
    assert torch.equal(model.logits(random_tokens()), tiny_mixtral().logits(random_tokens()))
    (folder / "model.safetensors").unlink()
    sharded = source_of(folder)
    assert len(sharded.files) > 1 and not sharded.notes


def test_a_seeing_model_is_loaded_as_the_class_that_its_config_names(tmp_path: Path) -> None:
    """Qwen3.5-MoE has a class of text alone and one that sees; the first drops the vision tower without a word."""
    sees = load_model(str(tiny_seeing_folder(tmp_path / "sees", "qwen3_5_moe")))
    assert type(sees.model).__name__ == "Qwen3_5MoeForConditionalGeneration"
    assert sees.source is not None and not sees.source.left_out
    configured(tmp_path / "sees", architectures=["Qwen3_5MoeForCausalLM"])
    blind = load_model(str(tmp_path / "sees"))
    assert type(blind.model).__name__ == "Qwen3_5MoeForCausalLM"
    assert blind.source is not None and any("visual" in text for text in blind.source.left_out)


# ---- layers beside the model


@pytest.mark.parametrize(
    ("architecture", "names", "config"),
    [
        ("deepseek_v3", ("model.layers.3.eh_proj.weight", "model.layers.3.mlp.experts.0.up_proj.weight"), 1),
        ("deepseek_v3", ("model.layers.3.eh_proj.weight", "model.layers.4.enorm.weight"), 2),
        ("glm4_moe", ("model.layers.3.shared_head.norm.weight",), 1),
        ("qwen3_moe", ("mtp.fc.weight", "mtp.layers.0.norm.weight"), 1),
        ("qwen3_next", ("mtp.fc.weight",), 0),
    ],
)
def test_layers_that_predict_further_tokens_are_left_out_and_named(
    tmp_path: Path, architecture: str, names: tuple[str, ...], config: int
) -> None:
    folder = tiny_folder(tmp_path, architecture)
    expected = load_model(str(folder)).logits(random_tokens())
    rewritten(folder, lambda tensors: tensors | {name: torch.ones(4, 4) for name in names})
    model = load_model(str(configured(folder, num_nextn_predict_layers=config)))
    assert torch.equal(model.logits(random_tokens()), expected)
    assert model.source is not None
    (text,) = model.source.left_out
    assert text.startswith("multi-token prediction: ") and f"{64 * len(names)} bytes" in text
    assert model.source.bytes["left out"] == 64 * len(names)


@pytest.mark.parametrize(
    ("name", "further"), [("model.layers.3.eh_proj.weight", 0), ("model.layers.4.x", 1), ("head.weight", 1)]
)
def test_weights_that_nothing_explains_are_refused(tmp_path: Path, name: str, further: int) -> None:
    folder = rewritten(tiny_folder(tmp_path, "deepseek_v3"), lambda tensors: tensors | {name: torch.ones(4)})
    with pytest.raises(BadInput, match="no place for"):
        load_model(str(configured(folder, num_nextn_predict_layers=further)))


def test_what_a_class_drops_without_a_word_is_sorted_by_its_reason() -> None:
    left = explain(["mtp.fc.weight"], ["rotary_emb.inv_freq", "model.visual.a"], {"mtp_num_layers": 1})
    assert dict(left.explained) == {
        "multi-token prediction": ("mtp.fc.weight",),
        "not part of this class of model": ("model.visual.a",),
        "computed from the configuration": ("rotary_emb.inv_freq",),
    }
    assert base_name("a.experts.gate_up_proj_blocks") == "a.experts.gate_up_proj"
    assert base_name("a.experts.up.3.scale") == "a.experts.gate_up_proj"
    assert base_name("a.q_proj.weight.4.packed") == "a.q_proj.weight"


# ---- other types, switched-off experts


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    from test_compression import compressed

    with compressed(tiny_mixtral()) as result:
        return result.save(tmp_path / "packed")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("own", ["float32", "bfloat16"])
def test_a_packed_folder_is_read_in_any_type_through_both_doors(tmp_path: Path, own: str, dtype: torch.dtype) -> None:
    from test_compression import compressed

    with compressed(load_model(str(tiny_folder(tmp_path / "whole")), dtype=own)) as result:
        folder = result.save(tmp_path / "packed")
        evaluated = {name: tensor.clone() for name, tensor in result.model.model.state_dict().items()}
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    ours = load_model(str(folder), dtype=str(dtype).removeprefix("torch."))
    for model in (theirs, ours.model):
        assert {p.dtype for p in model.parameters()} == {dtype}
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, evaluated[name].to(dtype)), name
    assert theirs(input_ids=random_tokens()).logits.dtype == dtype
    theirs.generate(random_tokens(), max_new_tokens=2)


def test_what_was_packed_in_another_type_is_read_in_its_own_by_default(packed: Path) -> None:
    assert AutoModelForCausalLM.from_pretrained(packed).dtype == load_compressed(packed).model.dtype == torch.float32


def test_an_expert_may_be_switched_off_by_an_infinite_bias(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "deepseek_v3")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"

    def biased(value: list[float]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        return lambda tensors: tensors | {name: torch.tensor(value)}

    off = -torch.inf
    model = load_model(str(rewritten(folder, biased([off, 0.0, 0.0, 0.0, 0.0, 0.0]))))
    seen: list[int] = []
    with model.observe(lambda batch: seen.extend(batch.index.flatten().tolist() if batch.layer == 0 else [])):
        model.logits(random_tokens())
    assert 0 not in seen and 1 in seen
    for wrong in ([torch.nan, 0.0, 0.0, 0.0, 0.0, 0.0], [torch.inf, 0.0, 0.0, 0.0, 0.0, 0.0], [off] * 6):
        with pytest.raises(BadInput, match="e_score_correction_bias"):
            load_model(str(rewritten(folder, biased(wrong))))


# ---- configurations that cannot be


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts_per_tok": 99}, "num_experts_per_tok = 99, more than its 6 experts"),
        ({"sliding_window": -5}, "sliding_window = -5"),
        ({"vocab_size": 0}, "vocab_size = 0"),
        ({"vocab_size": 10**12}, "vocab_size = 1000000000000"),
        ({"vocab_size": 10**7}, "which its files of .* cannot hold"),
        ({"vocab_size": 300}, "other shapes than its config says"),
        ({"num_hidden_layers": 10**5}, "100000 layers are configured, 3 stored"),
        ({"num_hidden_layers": 2}, "no place for"),
        ({"num_local_experts": 7}, "other shapes"),
        ({"num_local_experts": -1}, "num_local_experts = -1; it must be 0 or more"),
        ({"num_local_experts": 10**6}, "num_local_experts = 1000000, and no tensor of its files has as many rows"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok = 0; a token needs at least 1 expert"),
        ({"num_labels": 10**12}, "num_labels = 1000000000000; it must be from 1 to"),
        ({"num_key_value_heads": 10**400}, r"num_key_value_heads = 100000000000\.\.\. \(401 digits\)"),
        ({"n_shared_experts": 10**400}, r"n_shared_experts = 1.*\(401 digits\); no model has as many"),
        ({"vision_config": {"depth": 10**9}}, "1000000000 layers are configured, 3 stored"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, "rope_parameters = NaN"),
        ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}}, "leads to 'foo', which transformers does not"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}, "no code of a model is executed"),
        ({"max_position_embeddings": -1}, "max_position_embeddings = -1"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0"),
        ({"head_dim": 0}, "head_dim = 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = NaN"),
        ({"rope_parameters": 5}, "cannot be loaded"),
        ({"hidden_act": "foo"}, "cannot be loaded"),
        ({"dtype": 7}, "cannot be loaded"),
        ({"quantization_config": 5}, "unnamed method"),
        ({"transformers_weights": "../else.safetensors"}, "only files of the folder"),
        ({"model_type": "foo"}, "model type `foo`"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_a_sentence_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    folder = configured(tiny_folder(tmp_path), **changes)
    capfd.readouterr()
    began = time.monotonic()
    with pytest.raises(BadInput, match=said) as raised:
        load_model(str(folder))
    assert time.monotonic() - began < 5
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_latent_attention_without_a_rotated_part_may_say_that_its_head_has_no_width() -> None:
    latent = {"qk_rope_head_dim": 0, "kv_lora_rank": 16}
    refuse_impossible({"text_config": {"head_dim": 0, **latent}}, "m")
    with pytest.raises(BadInput, match="head_dim = 0"):
        refuse_impossible({"text_config": {"head_dim": 0, **latent, "qk_rope_head_dim": 8}}, "m")


def test_a_type_for_which_no_class_continues_text_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="is a t5, for which transformers has no class that continues text"):
        load_model(str(tmp_path))


def test_a_class_that_joins_several_models_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(model: Any) -> Any:
        raise NotImplementedError

    folder = tiny_folder(tmp_path)
    monkeypatch.setattr(MixtralForCausalLM, "get_input_embeddings", nothing)
    with pytest.raises(BadInput, match="a MixtralForCausalLM, which joins several models"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_local_experts": 7},
        {"num_experts_per_tok": 99},
        {"num_hidden_layers": 9},
        {"hidden_size": 64},
        {"vocab_size": 9},
        {"model_type": 5},
        {"num_attention_heads": 3},
    ],
)
def test_the_same_holds_for_a_packed_folder(packed: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        load_model(str(configured(packed, **changes)))


def without_one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if "1.block_sparse_moe.experts.3.w1" not in key}


def with_one_short(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value[:5] if "experts.3.w1" in key else value for key, value in tensors.items()}


def with_codes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.to(torch.int8) if "experts.3.w1" in key else value for key, value in tensors.items()}


def with_a_head_of_truths(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"lm_head.weight": tensors["lm_head.weight"] > 0}


def with_two_embeddings(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"embed_tokens.weight": torch.ones_like(tensors["model.embed_tokens.weight"])}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_one, r"there are 17 tensors model.layers.*w1.weight, and 18 of another kind"),
        (with_one_short, r"experts.3.w1.weight is \[5, 32\], and others of its kind are \[48, 32\]"),
        (with_codes, "experts.3.w1.weight of .* is stored in I8, which is no floating-point type"),
        (with_a_head_of_truths, "lm_head.weight of .* is stored in BOOL"),
        (with_two_embeddings, "holds the weight model.embed_tokens.weight twice, as embed_tokens.weight too"),
        (lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"}, "lm_head.weight and 0 more are"),
    ],
)
def test_weights_that_cannot_be_those_of_the_model_are_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        load_model(str(rewritten(tiny_folder(tmp_path), change)))


@pytest.mark.parametrize("part", ["scale_inv", "0.self_attn.o_proj.weight_scale_inv", "0.down_proj.weight_scale_inv"])
def test_float8_without_the_scale_that_its_format_has_is_refused(tmp_path: Path, part: str) -> None:
    folder = rewritten(fp8_folder(tmp_path / "m"), lambda t: {k: v for k, v in t.items() if not k.endswith(part)})
    with pytest.raises(BadInput, match=r"without the scale it needs|tensors .*scale_inv, and 12 of another kind"):
        load_model(str(folder))


def test_two_files_may_hold_the_same_tensor_and_not_one_name_for_two(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    head = {"lm_head.weight": tensors["lm_head.weight"]}
    save_file(tensors, folder / "a.safetensors", metadata={"format": "pt"})
    save_file(head, folder / "b.safetensors", metadata={"format": "pt"})
    index: dict[str, Any] = {
        "metadata": {},
        "weight_map": dict.fromkeys(tensors, "a.safetensors") | {"x": "b.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert source_of(folder).files == ("a.safetensors", "b.safetensors")
    save_file({"lm_head.weight": -head["lm_head.weight"]}, folder / "b.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lm_head.weight has other values in a.safetensors than in b.safetensors"):
        load_model(str(folder))
    index["weight_map"]["y"] = "c.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "b.safetensors").unlink()
    with pytest.raises(BadInput, match=r"cannot be read: b.safetensors: No such file"):
        load_model(str(folder))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"eos_token_id": "x"}', '{"eos_token_id": 9999}'])
def test_a_damaged_generation_config_is_not_passed_over(tmp_path: Path, text: str) -> None:
    folder = tiny_folder(tmp_path)
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(BadInput, match=r"generation_config.json|eos_token_id"):
        load_model(str(folder))


def test_where_a_model_is_another_than_its_config_says_the_record_will_tell(tmp_path: Path) -> None:
    folder = configured(tiny_folder(tmp_path), tie_word_embeddings=True, architectures=["MixtralModel"])
    class_, tied = source_of(folder).notes
    assert class_ == "the config names the class MixtralModel, and the model was loaded as MixtralForCausalLM"
    assert "two matrices that differ: both are used" in tied
    assert not source_of(tiny_folder(tmp_path / "as said")).notes


def around(ids: list[int]) -> dict[str, Any]:
    start = {"SpecialToken": {"id": "<z>", "type_id": 0}}
    a, b = ({"Sequence": {"id": at, "type_id": n}} for n, at in enumerate("AB"))
    special = {"<z>": {"id": "<z>", "ids": ids, "tokens": ["<z>"] * len(ids)}}
    return {"type": "TemplateProcessing", "single": [start, a], "pair": [start, a, b], "special_tokens": special}


def test_what_a_tokenizer_puts_around_a_text_is_a_few_tokens_that_have_rows(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    for ids, said in (([9999], "puts the id 9999 around a text"), ([5] * 1000, "puts 1,000 tokens around every text")):
        (folder / "tokenizer.json").write_text(json.dumps(content | {"post_processor": around(ids)}))
        with pytest.raises(BadInput, match=said):
            load_model(str(folder))
    (folder / "tokenizer.json").write_text(json.dumps(content | {"post_processor": around([1])}))
    assert load_model(str(folder)).tokenizer("a")["input_ids"][0] == 1


def test_what_stands_in_the_place_of_a_weights_file_is_called_what_it_is(tmp_path: Path) -> None:
    path = tiny_folder(tmp_path) / "model.safetensors"
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"no model.safetensors; pytorch_model.bin is not read"):
        load_model(str(tmp_path))
    path.symlink_to("nowhere")
    with pytest.raises(BadInput, match="its model.safetensors is a link to nothing"):
        load_model(str(tmp_path))
    path.unlink()
    path.mkdir()
    with pytest.raises(BadInput, match="its model.safetensors is no regular file"):
        load_model(str(tmp_path))


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/else"}')
    with pytest.raises(BadInput, match="merge it into its model"):
        load_model(str(folder))


def test_a_model_that_cannot_run_is_refused_when_it_is_wrapped() -> None:
    own = tiny_transformer("mixtral")
    own.model.layers[0].mlp.gate.top_k = 99
    with pytest.raises(BadInput, match="cannot run 16 tokens"):
        MoEModel(own)


# ---- names that might be folders


def test_without_network_a_name_is_refused_at_once_with_both_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "models").mkdir()
    began = time.monotonic()
    with pytest.raises(BadInput, match=r"no such folder, and the hub cannot be reached"):
        load_model("nobody/no-such-model")
    with pytest.raises(BadInput, match=r"\(the folder 'models' is there, but has no 'mine'\), and the hub"):
        load_model("models/mine")
    with pytest.raises(BadInput, match=r"no such folder, and it is no name that the hub could have"):
        load_model("no--such..name")
    for path in ("./mine", "models/a/b", "~/no/such", "models\\mine"):
        with pytest.raises(BadInput, match="there is no model folder"):
            load_model(path)
    assert time.monotonic() - began < 5
