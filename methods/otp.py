"""OTP (our re-implementation): a small head in each layer learns how many of the chosen experts a token needs.

https://arxiv.org/abs/2510.10962 (MC#). Its code was never released, and what is public says: a light router predicts a
mask over the top-k experts, sampled by Gumbel-softmax, trained by distillation with a sparsity term. Everything else
here, teacher, candidates, sizes, schedule, is our choice; do not take its scores for the authors'.

- Teacher: the same, compressed model without masks. Student: the same weights with masks. Only the heads learn.
- Masks are hard in the forward pass and soft in the backward pass (straight-through); the temperature falls. What runs
  afterwards is the most likely mask, without noise.
- `skip` is not in the paper either: it adds one constant per expert kept to the scores of every mask, solved for on
  calibration text, so that trained heads can be compared with other policies at the same share.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from mcbench.bounds import Between, Layers, Seed, Share
from mcbench.errors import BadInput
from mcbench.method import Method
from mcbench.policy import missed_share, sequences_per_batch
from mcbench.progress import track
from mcbench.routing import Choices, Learnt, Routed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mcbench.model import MoEModel
    from mcbench.text import CalibrationData

MOST_IN_SUBSETS = 4  # chosen experts of which every subset is a candidate
LOGGED = 20  # steps that the training record holds
ROUNDS, CLOSE, MISSED = 8, 0.002, 0.01  # of the search for a share: passes, good enough, not met


@dataclass(frozen=True)
class OTP(Method):
    """Our re-implementation of OTP: heads on hidden state and top-k weights choose a mask over the chosen experts.

    sparsity: weight of the mean share of experts kept in the loss, beside the KL divergence in nats per token.
    candidates: "prefix" keeps the m heaviest, m from 1 to k; "subset" is every non-empty subset (up to 4 chosen);
    "independent" is a gate for each expert but the first, which always runs.
    steps, batch: optimiser steps, and calibration sequences in each. rate: of AdamW. hot, cold: temperature of the
    first and the last step, falling exponentially. skip: share of all pairs to skip, solved for after training; as
    trained where None. layers: those pruned. fitted: folder of trained heads to use. seed: `--seed` where not given.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2510.10962"
    seed_field: ClassVar[str] = "seed"
    layers_field: ClassVar[str] = "layers"
    fitted_field: ClassVar[str] = "fitted"

    sparsity: Annotated[float, Between(0, 1000)] = 1.0
    candidates: Literal["prefix", "subset", "independent"] = "prefix"
    steps: Annotated[int, Between(1, 100_000)] = 150
    batch: Annotated[int, Between(1, 4096)] = 8
    rate: Annotated[float, Between(1e-8, 10)] = 0.01
    hot: Annotated[float, Between(1e-3, 1000)] = 2.0
    cold: Annotated[float, Between(1e-3, 1000)] = 0.1
    skip: Share | None = None
    layers: Layers | None = None
    fitted: str = ""
    seed: Seed | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cold > self.hot:
            raise BadInput(f"the temperature falls from hot to cold, not from {self.hot:g} to {self.cold:g}")

    @property
    def sees(self) -> tuple[str, ...]:
        return ("hidden",)

    def learn(self, model: MoEModel, data: CalibrationData) -> Learnt:
        import torch

        if model.top_k < 2:
            raise BadInput(f"{model.name!r} runs one expert for each token, so there is none to skip")
        if self.candidates == "subset" and model.top_k > MOST_IN_SUBSETS:
            raise BadInput(f"subsets of {model.top_k} chosen experts are too many; use the prefix candidates")
        started = time.monotonic()
        heads, log = self._train(model, data)
        facts: dict[str, Any] = {
            "training": log,
            "seconds": round(time.monotonic() - started, 1),
            "head_parameters": sum(heads[name].numel() for name in ("into", "out", "bias")),
        }
        shift = torch.zeros(1)
        notes: tuple[str, ...] = ()
        if self.skip is not None:
            shift, facts["rounds"] = self._solve(model, data, heads, self.skip)
        tables = {name: table.detach().cpu() for name, table in heads.items()} | {"shift": shift}
        facts["skipped"] = self._scores(model, data, tables)[1]
        if self.skip is not None:
            notes = missed_share(self.skip, facts["skipped"])
        return Learnt(tables, facts, notes)

    def route(self, choices: Choices, learnt: Mapping[str, Tensor]) -> Routed:
        here = {name: table.to(choices.weight.device) for name, table in learnt.items()}
        return choices.keep(self._masks(_head(choices, here), here["shift"]))

    def _masks(self, scores: Tensor, shift: Tensor) -> Tensor:
        """[T, K] bool from the scores [T, C] of the candidates, each expert kept worth `shift` more."""
        if self.candidates == "independent":
            return _with_first(scores + shift > 0)
        candidates = _candidates(self.candidates, scores)  # [C, K]
        return candidates[(scores + shift * candidates.sum(-1)).argmax(-1)].bool()

    def _sampled(self, scores: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """[T, K] masks of 0 and 1 drawn with Gumbel noise, with the gradient of their soft form."""
        import torch
        from torch.nn import functional as F

        uniform = torch.rand(scores.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(scores.device)
        if self.candidates == "independent":
            noise = uniform.log() - (-uniform).log1p()  # logistic, the difference of two Gumbels
            soft = torch.sigmoid((scores + noise) / temperature)
            return _with_first((soft > 0.5).to(soft.dtype) - soft.detach() + soft)
        noise = -(-uniform.log()).log()
        soft = ((scores.log_softmax(-1) + noise) / temperature).softmax(-1)
        hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        return (hard - soft.detach() + soft) @ _candidates(self.candidates, scores)

    def _train(self, model: MoEModel, data: CalibrationData) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        """The trained heads and a record of how loss, divergence and share kept went."""
        import torch

        generator = torch.Generator().manual_seed(self.seed or 0)
        heads = _untrained(model, self.candidates, generator)
        trained = [heads["into"], heads["out"], heads["bias"]]
        optimiser = torch.optim.AdamW(trained, lr=self.rate, weight_decay=0.0)
        masks: list[Tensor] = []
        temperature: list[float] = []  # empty while the teacher runs

        def sample(choices: Choices) -> Routed:
            if not temperature:
                return choices.keep(choices.chosen)
            mask = self._sampled(_head(choices, heads), temperature[0], generator) * choices.chosen
            masks.append((mask.sum(-1) / mask.shape[-1])[choices.real])
            return Routed(choices.chosen, _reweighted(choices, mask))

        order = _batches(len(data.input_ids), self.batch, generator)
        log = []
        with _frozen(model), model.route(sample, sees=self.sees, layers=self.layers):
            for step in track(range(self.steps), self.steps, "training heads"):
                rows = next(order)
                ids, mask = data.input_ids[rows].to(model.device), data.attention_mask[rows].to(model.device)
                teacher = model.logits(ids, mask)
                temperature.append(self.hot * (self.cold / self.hot) ** (step / max(1, self.steps - 1)))
                with torch.enable_grad():
                    student = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                    divergence = _divergence(teacher[mask.bool()], student[mask.bool()])
                    kept = torch.stack([part.mean() for part in masks]).mean()
                    (divergence + self.sparsity * kept).backward()
                optimiser.step()
                optimiser.zero_grad()
                if step % max(1, self.steps // LOGGED) == 0 or step == self.steps - 1:
                    numbers = {"divergence": float(divergence.detach()), "kept": float(kept.detach())}
                    log.append({"step": step, "temperature": temperature[0], **numbers})
                masks.clear()
                temperature.clear()
        if not all(bool(torch.isfinite(table).all()) for table in trained):
            raise BadInput(f"training the heads of {model.name!r} gave NaN or infinity; lower the rate")
        return heads, log

    def _scores(
        self, model: MoEModel, data: CalibrationData, tables: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], float]:
        """The scores [n, C] of each pruned layer's tokens under these heads, and the share of pairs then skipped."""
        import torch

        found: dict[int, list[Tensor]] = {}

        def note(choices: Choices) -> Routed:
            found.setdefault(choices.layer, []).append(_head(choices, tables)[choices.real].cpu())
            return self.route(choices, tables)

        with torch.no_grad(), model.route(note, sees=self.sees, layers=self.layers) as counts:
            for ids, mask in data.batches(sequences_per_batch(data)):
                model.logits(ids, mask)
        return [torch.cat(found[layer]) for layer in sorted(found)], counts.skipped()

    def _solve(
        self, model: MoEModel, data: CalibrationData, heads: Mapping[str, Tensor], skip: float
    ) -> tuple[Tensor, int]:
        """The shift under which that share of all pairs is skipped, and after how many rounds it was found."""
        import torch

        tables = {name: table.detach().cpu() for name, table in heads.items()}
        pruned = model.layers if self.layers is None else len(self.layers)
        most = (1 - 1 / model.top_k) * pruned / model.layers
        if skip > most + MISSED:
            raise BadInput(
                f"a skip of {skip:g} cannot be met: this policy keeps one expert of each token, so that it skips at "
                f"most {most:.3f} of all pairs of {model.name!r}; ask for less, or prune more layers"
            )
        shift, aim = torch.zeros(1), skip
        best = (math.inf, shift)
        rounds = 0
        while rounds < ROUNDS and best[0] > CLOSE:
            rounds += 1
            scores, _ = self._scores(model, data, tables | {"shift": shift})
            shift = self._shift(scores, aim, pruned / model.layers)
            _, really = self._scores(model, data, tables | {"shift": shift})
            best = min(best, (abs(really - skip), shift), key=lambda pair: pair[0])
            aim = min(max(aim + skip - really, 0.0), most)
        if best[0] > MISSED:
            raise BadInput(
                f"a skip of {skip:g} cannot be met: the heads score many tokens alike, and the nearest share is "
                f"{best[0]:.3f} away; train them longer, or with another sparsity"
            )
        return best[1], rounds

    def _shift(self, scores: Sequence[Tensor], skip: float, pruned: float) -> Tensor:
        """By bisection: the greater the shift, the more is kept."""
        import torch

        low, high = -1e3, 1e3
        for _ in range(50):
            middle = (low + high) / 2
            kept = [self._masks(part, torch.tensor([middle])).float().mean() for part in scores]
            if (1 - float(torch.stack(kept).mean())) * pruned > skip:
                low = middle
            else:
                high = middle
        return torch.tensor([high])


def _head(choices: Choices, heads: Mapping[str, Tensor]) -> Tensor:
    """[T, C] a score for each candidate mask, from what the experts read and the weights of the chosen."""
    import torch

    assert choices.hidden is not None
    into, out, bias = (heads[name][choices.layer].to(choices.weight.device) for name in ("into", "out", "bias"))
    return torch.cat([choices.hidden.float() @ into.T, choices.weight.float()], dim=-1) @ out.T + bias


def _untrained(model: MoEModel, candidates: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Heads that keep everything: into [L, K, D], out [L, C, 2K], bias [L, C]."""
    import torch

    width, top_k = model.weight(0, "gate").shape[-1], model.top_k
    count = {"prefix": top_k, "subset": 2**top_k - 1, "independent": top_k}[candidates]
    into = torch.randn(model.layers, top_k, width, generator=generator) / math.sqrt(width)
    out = torch.randn(model.layers, count, 2 * top_k, generator=generator) / math.sqrt(2 * top_k)
    bias = torch.zeros(model.layers, count)
    # the mask that keeps all, which is the last; or every gate
    bias[:, slice(None) if candidates == "independent" else slice(-1, None)] = 4.0
    heads = {"into": into, "out": 0.1 * out, "bias": bias}
    return {name: table.to(model.device).requires_grad_() for name, table in heads.items()}


def _candidates(kind: str, scores: Tensor) -> Tensor:
    """[C, K] the masks of 0 and 1 that the scores [T, C] are about, the one that keeps all last."""
    import torch

    count = scores.shape[-1]
    if kind == "prefix":
        return torch.ones(count, count, device=scores.device).tril()
    top_k = (count + 1).bit_length() - 1
    masks = sorted(itertools.product((0.0, 1.0), repeat=top_k), key=sum)[1:]
    return torch.tensor(masks, device=scores.device)


def _with_first(mask: Tensor) -> Tensor:
    """The same with a first column of ones."""
    import torch

    return torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], dim=-1)


def _reweighted(choices: Choices, mask: Tensor) -> Tensor:
    """[T, K] the weights under a mask of 0 and 1, renormalised where the model does so; differentiable in the mask."""
    weight = choices.weight.float() * mask
    if choices.normalizes:
        total = choices.weight.float().sum(-1, keepdim=True)
        weight = weight * (total / weight.sum(-1, keepdim=True).clamp(min=1e-6))
    return weight.to(choices.weight.dtype)


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean KL divergence of the student from the teacher, in nats per token; logits [n, vocabulary]."""
    log_p, log_q = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of `size` sequences without end, every epoch in another order."""
    import torch

    left = torch.zeros(0, dtype=torch.long)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:size]
        left = left[size:]


@contextmanager
def _frozen(model: MoEModel) -> Iterator[None]:
    """No weight of the model gets a gradient while this is open."""
    learning = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
