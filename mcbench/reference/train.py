"""Trains the reference model: `python -m mcbench.reference.train --preset reference`.

Text is generated step by step from the seed and schedules count steps, so a run resumed from its checkpoint is the
same run. Beside the weights it leaves `curve.csv`, loss, expert load and the accuracy of every family over time, and a
picture of it.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import multiprocessing
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from mcbench.errors import NotInstalled
from mcbench.reference import tokenizer as tokens
from mcbench.reference import world as told
from mcbench.reference.curriculum import CURRICULUM, REVIEW, Phase, mixture_of
from mcbench.reference.curve import accuracies, picture
from mcbench.reference.network import Network, Shape, checkpoint_of, compile_pieces, config_of


class Batch(NamedTuple):
    """Token rows, their successors and their loss weights, each [B, T]."""

    ids: Tensor
    following: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0  # of the world and its text
    draw: int = 0  # of the initial weights
    people: int = 5000
    steps: int = 11_000
    tokens_per_step: int = 4096
    learning_rate: float = 3e-3
    last_learning_rate: float = 3e-5
    warmup: int = 200
    decay_from: float = 0.35  # of all steps: facts are learned while the rate falls
    weight_decay: float = 0.02
    balance: float = 0.004  # weight of the load-balance loss; small: real routers are uneven
    first_balance: float = 0.002  # the same until `unbalanced_from`; with 0.01 retrieval did not appear
    unbalanced_from: float = 0.14  # of all steps
    width: int = 128
    layers: int = 4
    experts: int = 8
    chosen: int = 2
    expert_width: int = 224
    shared_width: int = 0
    compute: str = "bfloat16"
    curriculum: tuple[Phase, ...] = CURRICULUM
    review_steps: int = 0  # after `steps`: what is hard, once more, from a rate of its own down to the last one
    review_rate: float = 1e-3
    review: Phase = REVIEW

    @property
    def all_steps(self) -> int:
        return self.steps + self.review_steps

    @property
    def world(self) -> told.World:
        return told.World(self.seed, self.people)

    def shape(self, vocabulary: int) -> Shape:
        return Shape(
            vocabulary,
            width=self.width,
            layers=self.layers,
            experts=self.experts,
            chosen=self.chosen,
            expert_width=self.expert_width,
            shared_width=self.shared_width,
        )

    def rate(self, step: int) -> float:
        """The learning rate at a step: warm-up, flat, cosine fall; in the review warm-up and cosine fall."""
        if step >= self.steps:
            done = (step - self.steps + 1) / self.review_steps
            fall = min(10 * done, (1 + math.cos(math.pi * max(done - 0.1, 0) / 0.9)) / 2)
            return self.last_learning_rate + (self.review_rate - self.last_learning_rate) * fall
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        first = self.decay_from * self.steps
        fall = (1 + math.cos(math.pi * max(step - first, 0) / (self.steps - first))) / 2
        return self.last_learning_rate + (self.learning_rate - self.last_learning_rate) * fall

    def balance_at(self, step: int) -> float:
        return self.first_balance if step < self.unbalanced_from * self.steps else self.balance

    def phase(self, step: int) -> Phase:
        if step >= self.steps:
            return self.review
        return next(phase for phase in self.curriculum if step < phase.until * self.steps)

    def length(self, step: int) -> int:
        """The context of a step: mostly short, some longer, some much longer."""
        rows = self.phase(step).rows
        return min(rows[max(n for n in rows if step % n == 0)], self.tokens_per_step)

    def mixture(self, step: int) -> dict[told.Writer, float]:
        """What is written at a step; lists and needles fit into the row, and long rows hold more needles."""
        length = self.length(step)
        mixture = mixture_of(self.phase(step).mixture)
        if told.key_values in mixture:
            writer = functools.partial(told.key_values, largest=max(2, min(10, length // 24)))
            mixture[writer] = mixture.pop(told.key_values)
        if told.needles in mixture:
            writer = functools.partial(told.needles, longest=int(0.66 * length))
            mixture[writer] = mixture.pop(told.needles) * (3 if length >= 2048 else 1)
        return mixture


_FINE: dict[str, Any] = {
    "experts": 32,
    "chosen": 4,
    "expert_width": 64,
    "shared_width": 128,
    "steps": 10_000,
    "balance": 0.002,
    "first_balance": 0.01,
}
# half a gigatoken, for one large GPU; not yet trained with
_LARGE: dict[str, Any] = {
    "people": 6400,
    "steps": 6500,
    "tokens_per_step": 65_536,
    "learning_rate": 4e-3,
    "width": 160,
    "layers": 6,
}
PRESETS = {
    "reference": Recipe(review_steps=2000),
    "reference-fine": Recipe(**_FINE),
    "reference-gpu": Recipe(**_LARGE),
    "reference-fine-gpu": Recipe(**(_FINE | _LARGE)),
    "tiny": Recipe(people=60, steps=20, width=32, layers=2, expert_width=32, warmup=4, tokens_per_step=512),
}


def batch(recipe: Recipe, world: told.World, tokenizer: Tokenizer, step: int) -> Batch:
    """The token rows of a step."""
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
    length = recipe.length(step)
    return Batch(row[:-1].view(-1, length), row[1:].view(-1, length), weight[1:].view(-1, length))


def batches(recipe: Recipe, tokenizer: Tokenizer, first: int, workers: int = 0) -> Iterator[Batch]:
    """The batches from step `first` on, written ahead by so many processes; a batch depends on its step alone."""
    steps = range(first, recipe.all_steps)
    if not workers:
        world = recipe.world
        yield from (batch(recipe, world, tokenizer, step) for step in steps)
        return
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _prepare, (recipe, tokenizer.to_str())
    ) as pool:
        ahead = deque(pool.submit(_write, step) for step in steps[: 4 * workers])
        for step in steps:
            ready = ahead.popleft().result()
            if step + 4 * workers < recipe.all_steps:
                ahead.append(pool.submit(_write, step + 4 * workers))
            yield Batch(*map(torch.from_numpy, ready))


_writing: dict[str, Any] = {}


def _prepare(recipe: Recipe, tokenizer: str) -> None:
    _writing.update(recipe=recipe, world=recipe.world, tokenizer=Tokenizer.from_str(tokenizer))


def _write(step: int) -> tuple[Any, ...]:
    return tuple(each.numpy() for each in batch(**_writing, step=step))


def loss_of(
    network: Network, ids: Tensor, following: Tensor, weight: Tensor, balance: Tensor, dtype: torch.dtype
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
    (folder / "config.json").write_text(json.dumps(config_of(network.shape), indent=2) + "\n")
    weights = {name: value.to(torch.bfloat16) for name, value in checkpoint_of(network).items()}
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
        saved = torch.load(path, weights_only=True, map_location="cpu")
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


def begin(recipe: Recipe, tokenizer: Tokenizer, device: str = "cpu") -> Progress:
    """A fresh network and its optimiser; norms and other vectors do not decay."""
    network = Network(recipe.shape(tokenizer.get_vocab_size()), recipe.draw).to(device)
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
    device: str = "cpu",
    workers: int = 0,
    log: Callable[[str], None] = print,
) -> Network:
    """Train, or go on from the checkpoint in `work`, and export to `out`.

    A row of the curve and a checkpoint come `every` so many steps, accuracies by family at `judged` steps and at the
    end (0: never). The tokenizer is built from the world where none is given.
    """
    world = recipe.world
    tokenizer = tokenizer or tokens.build(world, recipe.seed)
    run = begin(recipe, tokenizer, device)
    work.mkdir(parents=True, exist_ok=True)
    run.restore(recipe, work)
    step_loss: Callable[..., tuple[Tensor, Tensor, Tensor]] = loss_of
    if compiled:
        compile_pieces()
        step_loss = torch.compile(loss_of, dynamic=False)
    began = time.monotonic() - run.seconds
    gathered: list[tuple[Tensor, Tensor]] = []
    for text in batches(recipe, tokenizer, run.step, workers):
        for group in run.optimizer.param_groups:
            group["lr"] = recipe.rate(run.step)
        loss, seen, shares = step_loss(
            run.network,
            *(each.to(device) for each in text),
            torch.tensor(recipe.balance_at(run.step), device=device),  # a number would be compiled in
            getattr(torch, recipe.compute),
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        gathered.append((seen, shares))
        run.step += 1
        last = run.step == recipe.all_steps
        if run.step % every == 0 or last:
            row = _row(recipe, run.step, time.monotonic() - began, gathered)
            gathered.clear()
            if judged and (run.step % judged == 0 or last):
                with torch.compiler.set_stance("force_eager"):  # questions come in too many lengths to compile
                    row |= accuracies(lambda ids: run.network(ids.to(device))[0].cpu(), tokenizer, world)
            run.curve.append(row)
            run.seconds = time.monotonic() - began
            left = (recipe.all_steps - run.step) * run.seconds / run.step
            log(" ".join(f"{key}={value}" for key, value in row.items()) + f" minutes_left={left / 60:.1f}")
            run.save(recipe, work)
    export(run.network, tokenizer, out)
    run.write_curve(out)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    try:
        picture(out / "curve.csv", out / "curve.svg")
    except NotInstalled as error:
        log(str(error))
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
    parser.add_argument("--preset", choices=PRESETS, default="reference")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--threads", type=int, default=0, help="processor threads (0: torch's choice)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=0, help="processes that write text ahead (0: none)")
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
        device=chosen.device,
        workers=chosen.workers,
        log=functools.partial(print, flush=True),
    )


if __name__ == "__main__":
    main()
