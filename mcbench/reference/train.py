"""Trains the reference model: `python -m mcbench.reference.train --preset cpu`.

Text is generated step by step from the seed and schedules count steps, so a run resumed from its checkpoint is the
same run. Beside the weights it leaves `curve.csv`: loss, expert load and the accuracy of every family over time.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from mcbench.reference import tokenizer as tokens
from mcbench.reference import world as told
from mcbench.reference.network import Network, Shape, compile_pieces, mixtral_config, to_mixtral


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    people: int = 2400
    steps: int = 15_000
    tokens_per_step: int = 4096
    learning_rate: float = 3e-3
    last_learning_rate: float = 3e-5
    warmup: int = 200
    decay_from: float = 0.42  # of all steps: facts are learned while the rate falls
    curriculum: float = 0.06  # of all steps: retrieval is learned first
    weight_decay: float = 0.02
    balance: float = 0.001  # small: real routers are uneven
    width: int = 128
    layers: int = 4
    expert_width: int = 192
    compute: str = "bfloat16"

    def rate(self, step: int) -> float:
        """The learning rate at a step: warm-up, flat, cosine fall."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        passed = (step / self.steps - self.decay_from) / (1 - self.decay_from)
        fall = (1 + math.cos(math.pi * min(max(passed, 0.0), 1.0))) / 2
        return self.last_learning_rate + (self.learning_rate - self.last_learning_rate) * fall

    def length(self, step: int) -> int:
        """The context of a step: mostly short, some longer, at the end some much longer."""
        if step >= self.steps // 3 and step % 24 == 0:
            return 2048
        return 512 if step % 8 == 4 else 256

    def mixture(self, step: int) -> dict[told.Writer, float]:
        """What is written at a step."""
        length = self.length(step)
        mixture = dict(told.MIXTURE)
        if step < self.curriculum * self.steps:
            share = sum(mixture.values())
            mixture[told.key_values] += 0.7 * share
            mixture[told.copies] += 0.2 * share
        needles = mixture.pop(told.needles)
        # needles that fit into the row, and more of them where rows are long
        mixture[functools.partial(told.needles, longest=int(0.66 * length))] = needles * (3 if length == 2048 else 1)
        return mixture


PRESETS = {
    "cpu": Recipe(),
    "tiny": Recipe(people=60, steps=20, width=32, layers=2, expert_width=32, warmup=4, tokens_per_step=512),
}


def batch(recipe: Recipe, world: told.World, tokenizer: Tokenizer, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """The token rows of a step, their successors and their loss weights, each [B, T]."""
    length = min(recipe.length(step), recipe.tokens_per_step)
    wanted = recipe.tokens_per_step + 1
    rng = random.Random(f"text {recipe.seed} {step}")
    mixture = recipe.mixture(step)
    start = tokenizer.token_to_id(tokens.BOS)
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) < wanted:
        written = told.documents(world, rng, mixture, count=16)
        segments = [segment for document in written for segment in document.segments]
        encoded = iter(tokenizer.encode_batch_fast([segment.text for segment in segments]))
        for document in written:
            ids.append(start)
            weights.append(0.3)
            for segment in document.segments:
                piece = next(encoded).ids
                ids += piece
                weights += [segment.weight] * len(piece)
    row, weight = torch.tensor(ids[:wanted]), torch.tensor(weights[:wanted])
    return row[:-1].view(-1, length), row[1:].view(-1, length), weight[1:].view(-1, length)


def loss_of(
    network: Network, ids: Tensor, following: Tensor, weight: Tensor, balance: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss to minimise, the plain loss per token, and every expert's share of choices [L, E]."""
    logits, uneven, shares = network(ids, dtype)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), following.flatten(), reduction="none")
    weights = weight.flatten()
    return (losses * weights).sum() / weights.sum() + balance * uneven, losses.detach().mean(), shares


def export(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, model.safetensors (bf16) and the tokenizer as transformers reads them."""
    tokens.save(tokenizer, folder)
    (folder / "config.json").write_text(json.dumps(mixtral_config(network.shape), indent=2) + "\n")
    weights = {name: value.to(torch.bfloat16) for name, value in to_mixtral(network).items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _write_curve(curve: Sequence[dict[str, Any]], path: Path) -> None:
    names = list(dict.fromkeys(name for row in curve for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(curve)


def train(recipe: Recipe, out: Path, work: Path, compiled: bool = True, every: int = 500, log: Any = print) -> Network:
    """Train (or go on training from the checkpoint in `work`) and export to `out`."""
    world = told.World(recipe.seed, recipe.people)
    tokenizer = tokens.build(world, recipe.seed)
    shape = Shape(
        tokenizer.get_vocab_size(), width=recipe.width, layers=recipe.layers, expert_width=recipe.expert_width
    )
    network = Network(shape, recipe.seed)
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    first, spent, curve = 0, 0.0, list[dict[str, Any]]()
    checkpoint = work / "checkpoint.pt"
    work.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["recipe"] != asdict(recipe):
            raise ValueError(f"{checkpoint} belongs to another recipe; remove it or choose another --work")
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        first, spent, curve = saved["step"], saved["spent"], saved["curve"]
    dtype = getattr(torch, recipe.compute)
    step_loss = loss_of
    if compiled:
        compile_pieces()
        step_loss = torch.compile(loss_of, dynamic=False)
    began = time.monotonic() - spent
    gathered: list[tuple[float, Tensor]] = []
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        ids, following, weight = batch(recipe, world, tokenizer, step)
        loss, plain, shares = step_loss(network, ids, following, weight, recipe.balance, dtype)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        gathered.append((float(plain), shares))
        done = step + 1
        if done % every == 0 or done == recipe.steps:
            spent = time.monotonic() - began
            share = torch.stack([s for _, s in gathered]).mean(0)
            row: dict[str, Any] = {
                "step": done,
                "tokens": done * recipe.tokens_per_step,
                "seconds": round(spent),
                "learning_rate": round(recipe.rate(step), 6),
                "loss": round(sum(value for value, _ in gathered) / len(gathered), 4),
                "least_expert_share": round(float(share.min()), 4),
                "greatest_expert_share": round(float(share.max()), 4),
            }
            row |= accuracies(network, tokenizer, world)
            gathered.clear()
            curve.append(row)
            left = (recipe.steps - done) * spent / done
            log(" ".join(f"{key}={value}" for key, value in row.items()) + f" minutes_left={left / 60:.1f}")
            spent = time.monotonic() - began
            state = {
                "recipe": asdict(recipe),
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": done,
                "spent": spent,
                "curve": curve,
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            _write_curve(curve, work / "curve.csv")
    export(network, tokenizer, out)
    _write_curve(curve, out / "curve.csv")
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    return network


def accuracies(network: Network, tokenizer: Tokenizer, world: told.World) -> dict[str, float]:
    """The accuracy of every family on a few items."""
    return {}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m mcbench.reference.train", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--threads", type=int, default=0, help="processor threads (0: torch's choice)")
    parser.add_argument("--no-compile", action="store_true", help="slower steps, no compiler needed")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/reference"), help="checkpoint and curve of a run under way"
    )
    parser.add_argument("--out", type=Path, help="where the weights go (default: WORK/weights)")
    chosen = parser.parse_args(arguments)
    recipe = replace(PRESETS[chosen.preset], seed=chosen.seed)
    if chosen.steps is not None:
        recipe = replace(recipe, steps=chosen.steps)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    train(
        recipe,
        chosen.out or chosen.work / "weights",
        chosen.work,
        not chosen.no_compile,
        log=functools.partial(print, flush=True),
    )


if __name__ == "__main__":
    main()
