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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from mcbench.reference import tokenizer as tokens
from mcbench.reference import world as told
from mcbench.reference.curve import accuracies
from mcbench.reference.network import Network, Shape, compile_pieces, mixtral_config, to_mixtral


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    people: int = 1200
    steps: int = 12_600
    tokens_per_step: int = 4096
    learning_rate: float = 3e-3
    last_learning_rate: float = 3e-5
    warmup: int = 200
    decay_from: int = 3150  # facts are learned while the rate falls
    decay_to: int = 9000
    retrieval: int = 600  # first steps with nothing but copies, keys and values, in short rows
    mixed: int = 1500  # until then half of the documents are of that kind
    clozes_from: int = 3600  # from this step on, most letter questions end in the statement: four layers suffice
    later_from: int = 5200  # from this step on, less of what is known and more of what is hard
    review_from: int = 9000  # from this step on, what is hard in easier portions, at a rate that falls anew
    review_rate: float = 2e-3
    weight_decay: float = 0.02
    balance: float = 0.003  # small: real routers are uneven
    width: int = 128
    layers: int = 4
    expert_width: int = 224
    compute: str = "bfloat16"

    def rate(self, step: int) -> float:
        """The learning rate at a step: warm-up, flat, cosine fall; then the review and a second fall."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if step < self.review_from:
            top, first, last = self.learning_rate, self.decay_from, self.decay_to
        else:
            top, first, last = self.review_rate, self.review_from, self.steps
        fall = (1 + math.cos(math.pi * max(step - first, 0) / (last - first))) / 2
        return self.last_learning_rate + (top - self.last_learning_rate) * fall

    def length(self, step: int) -> int:
        """The context of a step: mostly short, some longer, at the end some much longer."""
        if step < self.retrieval:
            return 64 if step < 2 * self.retrieval // 3 else 128
        if step >= 3000 and step % 32 == 0:
            return 2048
        return 512 if step % 8 == 4 else 256

    def mixture(self, step: int) -> dict[told.Writer, float]:
        """What is written at a step."""
        length = self.length(step)
        keys: told.Writer = functools.partial(told.key_values, largest=max(2, min(10, length // 24)))
        if step < self.retrieval:
            return {keys: 0.5, told.copies: 0.5}
        mixture = dict(told.MIXTURE)
        mixture[keys] = mixture.pop(told.key_values)
        if step < self.mixed:
            mixture[keys] += 0.5
            mixture[told.copies] += 0.4
        if step >= self.clozes_from:
            exams = mixture.pop(told.exams)
            if step < self.later_from:
                mixture[functools.partial(told.exams, clozes=0.85)] = exams
            else:
                mixture[functools.partial(told.exams, clozes=0.9, spelled=0.4)] = 2 * exams
                for writer, factor in LATER.items():
                    mixture[writer] *= factor
        if step >= self.review_from:
            for writer in (told.biographies, told.facts, told.questions, told.handicraft):
                mixture[writer] *= 0.6
            for writer in (told.drills, told.reasoning, told.quick_sums):
                mixture[functools.partial(writer, easy=True)] = 1.5 * mixture.pop(writer)
            mixture[functools.partial(told.passages, easy=0.5)] = 1.3 * mixture.pop(told.passages)
            mixture[told.nature] *= 2
        needles = mixture.pop(told.needles)
        # needles that fit into the row, and more of them where rows are long
        mixture[functools.partial(told.needles, longest=int(0.66 * length))] = needles * (3 if length == 2048 else 1)
        return mixture


LATER: dict[told.Writer, float] = {
    told.biographies: 0.45,
    told.facts: 0.6,
    told.questions: 0.5,
    told.handicraft: 0.6,
    told.comparison: 1.5,
    told.passages: 2.0,
    told.drills: 1.5,
    told.quick_sums: 1.6,
}
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
    start = tokens.beginning(tokenizer)
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
    """The loss to minimise; loss per token and accuracy on weighty tokens; every expert's share of choices [L, E]."""
    logits, uneven, shares = network(ids, dtype)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), following.flatten(), reduction="none")
    weights = weight.flatten()
    weighty = (weights >= told.VALUE).float()
    hits = (logits.flatten(0, 1).argmax(-1) == following.flatten()) * weighty
    seen = torch.stack((losses.detach().mean(), hits.sum() / weighty.sum().clamp(min=1)))
    return (losses * weights).sum() / weights.sum() + balance * uneven, seen, shares


def export(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, model.safetensors (bf16) and the tokenizer as transformers reads them."""
    tokens.save(tokenizer, folder)
    (folder / "config.json").write_text(json.dumps(mixtral_config(network.shape), indent=2) + "\n")
    weights = {name: value.to(torch.bfloat16) for name, value in to_mixtral(network).items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


@dataclass
class Progress:
    """A run under way: everything a checkpoint holds."""

    network: Network
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)

    def save(self, recipe: Recipe, work: Path) -> None:
        state = {
            "recipe": asdict(recipe),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        torch.save(state, work / "checkpoint.new")
        (work / "checkpoint.new").replace(work / "checkpoint.pt")
        self.write_curve(work)

    def restore(self, recipe: Recipe, work: Path) -> None:
        """Go on from the checkpoint, if there is one."""
        path = work / "checkpoint.pt"
        if not path.exists():
            return
        saved = torch.load(path, weights_only=True)
        if saved["recipe"] != asdict(recipe):
            raise ValueError(f"{path} belongs to another recipe; remove it or choose another --work")
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds, self.curve = saved["step"], saved["seconds"], saved["curve"]

    def write_curve(self, folder: Path) -> None:
        names = list(dict.fromkeys(name for row in self.curve for name in row))
        with (folder / "curve.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.curve)


def begin(recipe: Recipe, tokenizer: Tokenizer) -> Progress:
    """A fresh network and its optimiser; norms and other vectors do not decay."""
    shape = Shape(
        tokenizer.get_vocab_size(), width=recipe.width, layers=recipe.layers, expert_width=recipe.expert_width
    )
    network = Network(shape, recipe.seed)
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return Progress(network, torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True))


def train(
    recipe: Recipe,
    out: Path,
    work: Path,
    compiled: bool = True,
    every: int = 100,
    judged: int = 1000,
    tokenizer: Tokenizer | None = None,
    log: Callable[[str], None] = print,
) -> Network:
    """Train, or go on from the checkpoint in `work`, and export to `out`.

    A row of the curve and a checkpoint come `every` so many steps, accuracies by family at `judged` steps and at the
    end (0: never). The tokenizer is built from the world where none is given.
    """
    world = told.World(recipe.seed, recipe.people)
    tokenizer = tokenizer or tokens.build(world, recipe.seed)
    run = begin(recipe, tokenizer)
    work.mkdir(parents=True, exist_ok=True)
    run.restore(recipe, work)
    step_loss = loss_of
    if compiled:
        compile_pieces()
        step_loss = torch.compile(loss_of, dynamic=False)
    began = time.monotonic() - run.seconds
    gathered: list[tuple[Tensor, Tensor]] = []
    while run.step < recipe.steps:
        for group in run.optimizer.param_groups:
            group["lr"] = recipe.rate(run.step)
        ids, following, weight = batch(recipe, world, tokenizer, run.step)
        loss, seen, shares = step_loss(
            run.network, ids, following, weight, recipe.balance, getattr(torch, recipe.compute)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        gathered.append((seen, shares))
        run.step += 1
        last = run.step == recipe.steps
        if run.step % every == 0 or last:
            row = _row(recipe, run.step, time.monotonic() - began, gathered)
            gathered.clear()
            if judged and (run.step % judged == 0 or last):
                row |= accuracies(lambda ids: run.network(ids)[0], tokenizer, world)
            run.curve.append(row)
            run.seconds = time.monotonic() - began
            left = (recipe.steps - run.step) * run.seconds / run.step
            log(" ".join(f"{key}={value}" for key, value in row.items()) + f" minutes_left={left / 60:.1f}")
            run.save(recipe, work)
    export(run.network, tokenizer, out)
    run.write_curve(out)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    return run.network


def _row(recipe: Recipe, step: int, seconds: float, gathered: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    seen = torch.stack([values for values, _ in gathered]).mean(0)
    share = torch.stack([values for _, values in gathered]).mean(0)  # [L, E]
    return {
        "step": step,
        "tokens": step * recipe.tokens_per_step,
        "seconds": round(seconds),
        "learning_rate": round(recipe.rate(step - 1), 6),
        "loss": round(float(seen[0]), 4),
        "answer_accuracy": round(float(seen[1]), 4),
        "least_expert_share": round(float(share.min()), 4),
        "greatest_expert_share": round(float(share.max()), 4),
    }


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
