"""The tokenizer of the reference world: whole words, single digits, and bytes for everything else."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import get_args

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from mcbench.reference.curriculum import CURRICULUM, mixture_of
from mcbench.reference.world import Split, World, documents

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
# a word, digit or sign takes the one space before it along; four spaces are one indentation
PIECES = r'\n| {4}| ?[A-Za-z_]+| ?[0-9]| ?(?:"""|####|==|//)| ?[^\sA-Za-z_0-9]|\s'
LONGEST = 4096


def build(world: World, seed: int = 0, count: int = 30_000) -> Tokenizer:
    """A tokenizer whose words are those of the world's documents."""
    pieces = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    rng = random.Random(f"tokenizer {seed}")
    seen: Counter[str] = Counter()
    mixture = mixture_of(CURRICULUM[-1].mixture)
    for split in get_args(Split):
        for document in documents(world, rng, mixture, split, count // 3):
            seen.update(piece for piece, _ in pieces.pre_tokenize_str(document.text))
    always = ["\n", " ", "    ", *"0123456789", *(f" {digit}" for digit in "0123456789")]
    words = always + sorted(set(seen) - set(always))
    vocabulary = [PAD, BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(vocabulary)}, [], byte_fallback=True, ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    return tokenizer


def beginning(tokenizer: Tokenizer) -> int:
    """The id of the token that opens a text."""
    found = tokenizer.token_to_id(BOS)
    if found is None:
        raise ValueError(f"the tokenizer has no {BOS}")
    return found


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json for transformers; a text opens with BOS, as in training."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = Tokenizer.from_str(tokenizer.to_str())
    start = (BOS, shipped.token_to_id(BOS))
    shipped.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[start])
    shipped.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": LONGEST,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
