"""Every mixture-of-experts model type that transformers knows, made small and tried: what docs/families.md says.

python tests/families.py      tries them all and writes the table anew
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from test_compression import compressed
from tiny import (
    ARCHITECTURES,
    LATENT_ATTENTION,
    LINEAR_ATTENTION,
    SETTINGS,
    VOCABULARY,
    _settable,
    random_tokens,
    tiny_tokenizer,
)
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import configuration_auto, modeling_auto
from transformers.models.auto.configuration_auto import model_type_to_module_name

from mcbench.checkpoint import auto_class
from mcbench.compression import load_compressed
from mcbench.errors import BadInput
from mcbench.evaluation import (
    BATCHES,
    DRAFTS,
    HELD_ONCE,
    LAST_LAYER,
    ONE_LEVEL,
    TRIE,
    WRITING,
    LanguageModel,
    weights_digest,
)
from mcbench.experts import IMPLEMENTATION
from mcbench.model import MoEModel, load_model
from mcbench.routing import Choices, Routed

KNOWN: Any = vars(configuration_auto)["CONFIG_MAPPING_NAMES"]  # names of configurations by model type
PAGE = Path(__file__).parent.parent / "docs" / "families.md"
SOURCES = Path(transformers.__file__).parent / "models"
# code that holds experts: through transformers' registry, in a class of their own or in a list of modules
HAVE_EXPERTS = re.compile(
    r"use_experts_implementation|^class \w*Experts\(|experts\w* = (?:nn\.)?ModuleList", re.MULTILINE
)
# transformers' tables of classes that write text, the most able first, and of those that do something else
WRITE = ("IMAGE_TEXT_TO_TEXT", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MULTIMODAL_LM")
OTHERWISE = ("TOKEN_CLASSIFICATION", "SEQUENCE_CLASSIFICATION", "PRETRAINING")

DENSE = {"gemma4_assistant"}  # names a type that may have experts, and allows none

CONTEXT = "red green blue seven red green blue "  # what texts to score and to continue begin with
# ways of being fast, by what a row says where one is not used
WAYS = {TRIE: "beginnings in levels", ONE_LEVEL: "shared beginnings", HELD_ONCE: "beginnings held once",
        DRAFTS: "drafts", LAST_LAYER: "last layer", WRITING: "writing in batches", BATCHES: "batches"}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What a row of the table says of one model type; `refused` is the message of mcbench, of those it refuses."""

    model_type: str
    made: str
    router: str = ""
    shared: str = ""
    attention: str = ""
    experts: str = ""
    fast: str = ""
    kept: str = ""
    generates: str = ""
    policies: str = ""
    refused: str = ""

    def row(self) -> str:
        cells = [self.refused] if self.refused else [getattr(self, f.name) for f in fields(self)[2:-1]]
        return f"| `{self.model_type}` | {' | '.join([self.made, *cells])} |"


def model_types() -> dict[str, str]:
    """Every model type with experts in the installed transformers, and its class: of those that have one of their own.

    A type counts whose code holds experts, or whose configuration names one of these for its language model.
    """
    code = {path.parent.name: path.read_text(encoding="utf-8") for path in SOURCES.glob("*/modeling_*.py")}
    packages = {package for package, text in code.items() if HAVE_EXPERTS.search(text)}
    types = [name for name in KNOWN if model_type_to_module_name(name) in packages]
    names = re.compile("|".join(f'"{re.escape(name)}"' for name in types))
    for path in SOURCES.glob("*/configuration_*.py"):
        if path.parent.name not in {*packages, "auto"} and names.search(path.read_text(encoding="utf-8")):
            types += [name for name in KNOWN if model_type_to_module_name(name) == path.parent.name]
    return {name: made for name in sorted({*types} - DENSE) if (made := _class(name))}


def _class(model_type: str) -> str:
    for table in (*WRITE, *OTHERWISE):
        known = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES")
        if model_type in known:
            found: str = known[model_type]
            return found
    return ""


# a part that sees or hears, wherever its configuration knows the field
SENSES: dict[str, Any] = {
    "depth": 1,
    "num_hidden_layers": 1,
    "num_layers": 1,
    "layers": 1,
    "hidden_size": 16,
    "width": 16,
    "embed_dim": 16,
    "d_model": 16,
    "intermediate_size": 16,
    "mlp_dim": 16,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "out_hidden_size": 32,
    "output_dim": 32,
    "projector_input_dim": 16,
    "projector_output_dim": 32,
    "vision_output_dim": 32,
    "patch_size": 4,
    "image_size": 16,
    "deepstack_visual_indexes": [0],
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_layers": 1,
    "downsample_hidden_size": 16,
    "num_mel_bins": 16,
    "decoder_dim": 32,
}


MARK = ("_token_id", "_token_index")
SOME_DENSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
MIXED = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
SELECTING = {
    "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
HYBRID = {
    **MIXED,
    "num_experts_per_token": 2,
    "num_expert_group": 1,
    "topk_group": 1,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}
GEMMA = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "per_layer_config": {},
    "top_k_experts": 2,
    "num_experts": 6,
    "moe_intermediate_size": 24,
    "hidden_size_per_layer_input": 0,
}
PARTS = ["linear_attention", "moe", "full_attention", "moe"]
STATES = {
    "layers_block_type": PARTS,
    "layer_types": PARTS,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "n_groups": 1,
    "ssm_state_size": 8,
    "chunk_size": 16,
    "use_mamba_kernels": False,
    "moe_shared_expert_intermediate_size": 40,
    "num_hidden_layers": 4,
}
NOTE = {
    "per_layer_config": {},
    "layer_types": ["sliding_attention", "indexed_attention", "sliding_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 64,
    "head_dim": 16,
    "n_shared_experts": 1,
}

# what a model type needs besides
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": HYBRID,
    "kimi_linear": HYBRID,
    "qwen3_next": MIXED,
    "qwen3_5_moe_text": MIXED,
    "qwen3_5_moe": {"text_config": MIXED},
    "qwen4_exp_text": SELECTING,
    "qwen4_exp": {"text_config": SELECTING},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 24, "hidden_size": 32},
    },
    "deepseek_ocr2": {"text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse", "sparse"]}},
    "diffusion_gemma": {"text_config": GEMMA},
    "gemma4": {"text_config": {**GEMMA, "enable_moe_block": True}},
    "gemma4_text": {**GEMMA, "enable_moe_block": True},
    "dots3_note_text": NOTE,
    "dots3_note": {
        "text_config": NOTE,
        "vision_config": {
            "per_layer_config": {},
            "adapter_in_dim": 16,
            "adapter_out_dim": 32,
            "mlp_layer_types": ["dense"],
        },
        "audio_config": {"adapter_input_size": 16, "adapter_out_dim": 32},
    },
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_intermediate_size": [24, 16],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        }
    },
    "glm4v_moe": {
        "text_config": {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        }
    },
    "glm5_next": {
        "text_config": {
            "qk_rope_head_dim": 0,
            "head_dim": 0,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "index_head_dim": 8,
            "index_n_heads": 2,
            "indexer_types": ["full"] * 3,
        },
        "vision_config": {"projection_intermediate_size": 16},
    },
    "granitemoehybrid": {**MIXED, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "inkling2": {"vision_config": {"text_hidden_size": 32}},
    "mistral4": {"head_dim": 16},
    "muse_spark": {
        "audio_config": {
            "num_hidden_layers": 4,
            "out_hidden_size": 32,
            "hidden_sizes": [8, 8, 8, 8],
            "depths": [1] * 4,
        },
        "out_hidden_size": 64,
        "projector_hidden_size": 16,
        "text_config": {"moe_hidden_size": 32},
    },
    "nemotron_h": STATES,
    "nemotron_h_omni": {
        "text_config": STATES,
        "video_temporal_patch_size": 2,
        "vision_hidden_size": 16,
        "vision_config": {"video_temporal_patch_size": 2},
    },
    "nemo_speechlm": {
        "text_config": STATES,
        "audio_config": {"diarization_config": {"head_config": {"audio_hidden_size": 16}}},
    },
    "nllb-moe": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_sparse_step": 1,
        "decoder_sparse_step": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    },
    "switch_transformers": {"d_model": 32, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    "beam": SOME_DENSE,
    "step3p7": {"text_config": SOME_DENSE},
    "qwen3_omni_moe": {
        "talker_config": {"spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": 16}}
    },
    "qwen3_omni_moe_thinker": {"vision_start_token_id": VOCABULARY + 4, "vision_end_token_id": VOCABULARY + 5},
    "unlimited_ocr": {"text_config": {"num_key_value_heads": 4}},  # its eager attention knows no shared keys
    "zaya": {"num_experts_per_tok": 1},
}


MARKS = 24  # tokens beyond the bytes, for what a configuration says stands for an image or the like
ROWS = VOCABULARY + MARKS + 1  # of the embedding: some tokenizer classes add a token of their own


def small(config: PretrainedConfig, senses: bool = False) -> dict[str, Any]:
    """Settings that make a model of this kind of configuration small, its parts included."""
    settings = {name: value for name, value in (SENSES if senses else SETTINGS).items() if _knows(config, name)}
    if settings.get("sliding_window") and getattr(config, "sliding_window", None) is None:
        del settings["sliding_window"]  # of a kind that has none unless asked for
    if not senses:
        settings |= LINEAR_ATTENTION if _knows(config, "linear_num_key_heads") else {}
        settings |= LATENT_ATTENTION if _knows(config, "kv_lora_rank") else {}
        settings["vocab_size"] = ROWS
    marks = sorted(name for name, at in config.to_dict().items() if name.endswith(MARK) and isinstance(at, int))
    settings |= {name: VOCABULARY + at for at, name in enumerate(name for name in marks if name not in SETTINGS)}
    for name in config.sub_configs or {}:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            other = senses or not any(word in name for word in ("text", "thinker"))
            settings[name] = {"model_type": part.model_type, **small(part, other)}
    return settings


def _knows(config: PretrainedConfig, name: str) -> bool:
    try:
        return _settable(config, name)
    except Exception:  # a setting that differs by layer
        return True


def build(model_type: str) -> PreTrainedModel:
    """A small random model of a type, weights large enough for routing and outputs to vary."""
    known = AutoConfig.for_model(model_type)
    settings = _merged(small(known), _merged(ARCHITECTURES.get(model_type, {}), SPECIAL.get(model_type, {})))
    settings |= {"vocab_size": ROWS} if "vocab_size" in settings else {}
    config = AutoConfig.for_model(model_type, **settings)
    made: Any = getattr(transformers, _class(model_type))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = made(config).float()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "conv" not in name and "A_log" not in name:
                    parameter.normal_(std=1 / math.sqrt(parameter.shape[-1]))
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
    assert any("xperts" in type(module).__name__ or name.endswith("experts") for name, module in model.named_modules())
    model.eval()
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of bytes, with a token for each mark that stands for an image or the like."""
    made = tiny_tokenizer()
    made.add_tokens([f"<mark {at}>" for at in range(MARKS)], special_tokens=True)
    return made


def examine(model_type: str, folder: Path) -> Family:
    """Everything that a row says of a model type, tried on a small model that is saved in `folder`."""
    family = Family(model_type, _class(model_type))
    own = build(model_type)
    source, packed = folder / model_type, folder / f"{model_type}-packed"
    own.save_pretrained(source)
    tokenizer().save_pretrained(source)
    try:
        model = load_model(str(source))
    except BadInput as error:
        said = re.sub(r"(the model )?" + re.escape(repr(str(source))), "the model", str(error))
        return replace(family, refused=" ".join(said.split()))
    ids = random_tokens(2, 24)
    logits = model.logits(ids)
    _require_equal(logits, _plain(model.model, ids), "logits")
    _require_close(logits, _plain(own, ids), "logits of the saved folder")
    model.model.set_experts_implementation(IMPLEMENTATION)
    family = replace(
        family,
        router=_router(model),
        shared="yes" if model.shared_linears() else "no",
        attention=_attention(model),
        experts=_layout(model),
        policies=_policies(model, ids),
    )
    language = LanguageModel(model.model, model.tokenizer)
    written = [one.text for (one,) in language.generate([CONTEXT, f"{CONTEXT}red"], (), 8)]
    language.loglikelihoods([(CONTEXT + word, " blue") for word in ("red", "green", "of seven")])
    family = replace(family, fast=_fast(language), generates=_generates(model, written))
    with compressed(model) as result:
        result.save(packed)
        expected, digest = model.logits(ids), result.digest()
    ours = load_compressed(packed)
    assert ours.digest() == digest
    _require_close(ours.logits(ids), expected, "logits of the packed folder")
    again = auto_class(AutoConfig.from_pretrained(packed)).from_pretrained(packed).eval()
    assert weights_digest(again) == weights_digest(ours.model)
    _require_close(_plain(again, ids), expected, "logits of the packed folder in plain transformers")
    return replace(family, kept="yes")


def _plain(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[B, S, V] by transformers' own forward, with its own computation of the experts."""
    model.set_experts_implementation("eager")
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _require_equal(found: Tensor, expected: Tensor, what: str) -> None:
    assert torch.equal(found, expected), f"{what} differ by {float((found - expected).abs().max())}"


def _require_close(found: Tensor, expected: Tensor, what: str) -> None:
    """Within rounding: the same weights at other places in memory may be multiplied in another order."""
    assert torch.allclose(found, expected, atol=1e-5), f"{what} differ by {float((found - expected).abs().max())}"


def _router(model: MoEModel) -> str:
    rules = {layer.rule for layer in model._layers}
    if None in rules:
        return "not understood"
    (kind,) = {(rule.score, rule.normalizes, rule.jitter) for rule in rules if rule is not None}
    score, normalizes, jitter = kind
    if jitter is not None:
        return "sparse mixer"
    return f"{score}, renormalised" if normalizes else score


def _attention(model: MoEModel) -> str:
    """The kinds of decoder layers in transformers' own words, and how keys and values are made and chosen."""
    config = model.model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not kinds:
        kinds = ["sliding" if getattr(config, "sliding_window", None) else "full"]
    words = sorted({str(kind).removesuffix("_attention").replace("_", " ") for kind in kinds} - {"moe", "mlp"})
    names = {name.rpartition(".")[2] for part in model._mixers.values() for name, _ in part.named_modules()}
    if any(name.startswith("kv_a_proj") or name == "kv_b_proj" for name in names):
        words.append("latent (MLA)")
    if any("indexer" in name for name in names):
        words.append("sparse")
    return ", ".join(words)


def _layout(model: MoEModel) -> str:
    """How transformers stores the experts of a layer."""
    experts = model._layers[0].experts
    words = [word for word in ("transposed", "interleaved", "biased") if getattr(experts, word)]
    return ", ".join(["fused", *words])


def _policies(model: MoEModel, ids: Tensor) -> str:
    """Which routing policies run, tried with one that keeps every expert and must change no logit."""

    def everything(choices: Choices) -> Routed:
        return choices.keep(choices.chosen)

    expected, works = model.logits(ids), []
    for sees in (("hidden",), ("hidden", "logits"), ("hidden", "logits", "attention")):
        try:
            with model.route(everything, sees=sees):
                _require_equal(model.logits(ids), expected, f"logits under a policy that sees {', '.join(sees)}")
        except BadInput:
            break
        works.append(sees[-1])
    if "hidden" not in works:
        return "none"
    return "all" if "attention" in works else "all that see no attention"


def _fast(language: LanguageModel) -> str:
    """The ways of being fast that are used, after scoring and writing."""
    unused = [word for way, word in WAYS.items() if not language._uses([way])]
    return "all" if not unused else f"all but {', '.join(unused)}"


def _generates(model: MoEModel, written: list[str]) -> str:
    """Whether mcbench wrote what transformers' own `generate` writes of the same prompts."""
    for prompt, text in zip((CONTEXT, f"{CONTEXT}red"), written, strict=True):
        ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            own: Any = model.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, use_cache=False
            )
        expected = model.tokenizer.decode(own[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == expected, f"wrote {text!r}, transformers {expected!r}"
    return "yes"


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(one)
    for name, value in other.items():
        deep = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if deep else value
    return merged


# ---- the page

HEAD = """# Which model types are supported

Every model type with experts that transformers {version} knows, {total} of them, tried on a small random model of three
or four layers: {supported} are supported, {refused} are refused. `python tests/families.py` tries all and writes this
page; `pytest --slow tests/test_families.py` holds every row to it, without `--slow` one row of each kind, and in any
case every model type of the installed transformers has a row.

For a row in the first table a model was saved, loaded by mcbench and run, and its logits were those of transformers'
own forward bit for bit; its experts were quantised to 1, 2, 3 and 16 bits, attention and shared experts to 4; the
packed folder was read again by mcbench and by `from_pretrained`, with the same weights bit for bit and logits within
rounding ("saved"); and what mcbench wrote was what `generate` writes ("writes"). Other columns:

- *attention*: the kinds of layers in transformers' own words, those that the small model has; *latent (MLA)* where keys
  and values are kept compressed, *sparse* where an indexer chooses the tokens to attend to
- *experts*: how transformers stores them; *fused* is gate and up in one tensor, all experts of a layer together
- *fast ways*: what makes an evaluation fast and changed no answer here; what is left out was computed the plain way,
  as the record of an evaluation says. Drafts and beginnings in levels need a cache that keeps every token, which
  sliding windows and linear attention do not
- *policies*: which routing policies run; those that see attention (`odp`) need softmax
  attention in every layer that they prune

| model type | class | router | shared experts | attention | experts | fast ways | saved | writes | policies |
|---|---|---|---|---|---|---|---|---|---|
"""
REFUSED = """
Refused, with the message of mcbench:

| model type | class | reason |
|---|---|---|
"""


def page(rows: list[str]) -> str:
    """The whole page of these rows, which tell by their number of cells whether a type is supported."""
    supported = [row for row in rows if row.count(" | ") > 2]
    refused = [row for row in rows if row.count(" | ") == 2]
    counts = {"total": len(rows), "supported": len(supported), "refused": len(refused)}
    head = HEAD.format(version=transformers.__version__, **counts)
    return head + "".join(f"{row}\n" for row in supported) + REFUSED + "".join(f"{row}\n" for row in refused)


def rows_of(text: str) -> dict[str, str]:
    """The rows of a page by model type."""
    return {name: row for row in text.splitlines() for name in re.findall(r"^\| `([^`]+)` \|", row)}


def main() -> None:
    rows = []
    for model_type in model_types():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(examine(model_type, Path(folder)).row())
        sys.stderr.write(f"{rows[-1]}\n")
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
