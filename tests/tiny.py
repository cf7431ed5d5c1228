"""Tiny random mixture-of-experts models of many architectures, for tests: `from tiny import tiny_mixtral`."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

if TYPE_CHECKING:
    from mcbench.model import MoEModel

SPECIAL = ("<pad>", "<s>", "</s>")
VOCABULARY = 256 + len(SPECIAL)

# what a tiny model has wherever its configuration knows the field
SETTINGS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "shared_intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "moe_num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 2,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
    "moe_layer_interval": 1,
    "decoder_sparse_step": 1,
    "mlp_layer_types": None,
    "layer_types": None,
    "sliding_window": 32,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
LINEAR_ATTENTION: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LATENT_ATTENTION: dict[str, Any] = {"num_key_value_heads": 4}

# what each architecture needs besides; every one of them has at least two MoE layers
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {"norm_topk_prob": True},
    "olmoe": {},
    "phimoe": {},
    "deepseek_v2": LATENT_ATTENTION,
    "deepseek_v3": LATENT_ATTENTION,
    "granitemoe": {},
    "granitemoeshared": {},
    "ernie4_5_moe": {},
    "glm4_moe": {},
    "glm4_moe_lite": LATENT_ATTENTION,
    "minimax": {},
    "minimax_m2": {},
    "gpt_oss": {},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "flex_olmo": {},
    "hunyuan_v1_moe": {},
    "dots1": {},
    "qwen3_next": LINEAR_ATTENTION,
    "qwen3_5_moe_text": {**LINEAR_ATTENTION, "vocab_size": VOCABULARY + 1},  # its tokenizer class adds a token
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "afmoe": {},
    "solar_open": {},
    "exaone_moe": {},
    "mellum": {},
    "cohere2_moe": {},
    "hy_v3": {},
    "mimo_v2_flash": {},
    "laguna": {},
    "aria_text": {},
    "granitemoe_swa": {},
    "kolibri1": {},
    "bailing_hybrid": {},
    "minimax_m3_vl_text": {},
}


def tiny_mixtral(seed: int = 0, **overrides: Any) -> MoEModel:
    """A Mixtral of 3 layers, 6 experts, top-2, width 32, with a tokenizer of bytes."""
    return tiny_model("mixtral", seed, **overrides)


def tiny_model(architecture: str, seed: int = 0, **overrides: Any) -> MoEModel:
    """A tiny random model of one of ARCHITECTURES, ready for mcbench."""
    from mcbench.model import MoEModel

    return MoEModel(tiny_transformer(architecture, seed, **overrides), tiny_tokenizer(), f"tiny {architecture}")


def tiny_transformer(architecture: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """The same as a plain transformers model, weights large enough for routing and outputs to vary."""
    known = AutoConfig.for_model(architecture)
    settings = {name: value for name, value in SETTINGS.items() if _settable(known, name)}
    config = AutoConfig.for_model(architecture, **settings | ARCHITECTURES.get(architecture, {}) | overrides)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "conv" not in name and "A_log" not in name:
                    parameter.normal_(std=1 / math.sqrt(parameter.shape[-1]))
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
            for name, buffer in model.named_buffers():
                if name.endswith("correction_bias"):
                    buffer.normal_(std=0.1)
    model.eval()
    return model


def tiny_seeing_folder(folder: Path, architecture: str = "qwen3_vl_moe") -> Path:
    """A Qwen3-VL-MoE, or another of its make, whose language model stands beside a vision tower."""
    known = AutoConfig.for_model(architecture).text_config
    text = {name: value for name, value in SETTINGS.items() if value is not None and _settable(known, name)}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    if "linear_num_key_heads" in known.to_dict():
        text |= LINEAR_ATTENTION
    vision: dict[str, Any] = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    vision |= {"out_hidden_size": 32, "patch_size": 4, "deepstack_visual_indexes": [0]}
    marks = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = dict(zip(marks, range(VOCABULARY, VOCABULARY + 4), strict=True))
    text["vocab_size"] = VOCABULARY + len(ids) + 1  # one that a class of tokenizers adds
    config = AutoConfig.for_model(architecture, text_config=text, vision_config=vision, **ids)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<{mark.removesuffix('_token_id')}>" for mark in marks], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, after the three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )


def tiny_folder(folder: Path, architecture: str = "mixtral", seed: int = 0, **overrides: Any) -> Path:
    """A model folder as `save_pretrained` writes it, tokenizer included."""
    tiny_transformer(architecture, seed, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_text(folder: Path) -> Path:
    """A file of 2000 words to calibrate on, the same ones every time."""
    rng = random.Random(0)
    path = folder / "calibration.txt"
    path.write_text(" ".join(rng.choice(("red", "green", "blue", "seven", "of")) for _ in range(2000)))
    return path


def random_tokens(batch: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    """[B, S] token ids, no special ones among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), VOCABULARY, (batch, length), generator=generator)


def _settable(config: Any, name: str) -> bool:
    fixed = isinstance(getattr(type(config), name, None), property) and getattr(type(config), name).fset is None
    return hasattr(config, name) and not fixed
