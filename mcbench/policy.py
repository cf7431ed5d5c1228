"""Routing policies: what they have in common, how they learn their thresholds, and how one is put into a model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcbench.bounds import Between, Layers, Share
from mcbench.errors import BadInput
from mcbench.fallbacks import require_remarks
from mcbench.method import Method, declared
from mcbench.progress import track
from mcbench.routing import Choices, Learnt, PairCounts, Routed, rank_in_sequence
from mcbench.sealed import (
    Damaged,
    content_digest,
    read_json,
    read_tensors,
    unless_damaged,
    write_json,
    write_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mcbench.model import MoEModel
    from mcbench.text import CalibrationData

BATCH_TOKENS = 8192  # tokens of one forward pass while thresholds are learnt
ROUNDS = 6  # passes over the calibration text until the share that is really skipped is the one asked for
CLOSE = 0.001  # of that share
MISSED = 0.01  # a share further off than this was not met
TABLES, DESCRIPTION = "learnt.safetensors", "policy.json"
KIND = "routing policy 1"  # what its files say that they are


@dataclass(frozen=True)
class ThresholdPolicy(Method):
    """Drops the pairs whose score is below a threshold; the first expert of a token always stays.

    A subclass says what the score is. Thresholds, one for each layer and rank, are quantiles of the scores that
    calibration tokens have in the model that will run, as it is compressed.

    skip: the share of all (token, expert) pairs over all MoE layers that shall not run; the quantile that gives it, the
    same for every layer and rank, is solved for. Without it `quantile` is taken, or `threshold`, one fixed number.
    layers: the MoE layers that are pruned, counted from 0; all by default.
    fitted: a folder with thresholds found by an earlier run; they are used instead of learning some.
    """

    layers_field: ClassVar[str] = "layers"
    fitted_field: ClassVar[str] = "fitted"

    skip: Share | None = None
    quantile: Annotated[float, Between(0, 1)] = 0.5
    threshold: Annotated[float | None, Between(-1e9, 1e9)] = None
    layers: Layers | None = None
    fitted: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip is not None and self.threshold is not None:
            raise BadInput("give a skip share or a fixed threshold, not both")
        if self.layers is not None and (
            not self.layers or not all(isinstance(n, int) and not isinstance(n, bool) for n in self.layers)
        ):
            raise BadInput(f"layers are numbers of MoE layers such as (0, 2), not {self.layers}")

    def score(self, choices: Choices) -> Tensor:
        """[T, K] how much each pair is worth running; the first column is not looked at."""
        raise NotImplementedError

    def spared(self, choices: Choices) -> Tensor | None:
        """[T] bool: tokens that keep all their experts; None where there is no such rule."""
        return None

    def emptied(self, choices: Choices) -> Tensor | None:
        """[T] bool: tokens that lose all their experts, the first one too; None where there is no such rule."""
        return None

    def learn(self, model: MoEModel, data: CalibrationData) -> Learnt:
        """The threshold [L, K] of each layer and rank, minus infinity where nothing is dropped."""
        import torch

        if self.skip is not None:
            return self._solve(model, data, self.skip)
        facts: dict[str, Any] = {}
        if self.threshold is not None:
            table = _only(torch.full((model.layers, model.top_k), self.threshold), self._pruned(model))
        else:
            table = _Scores(self, model, data, None).thresholds(self.quantile)
            facts["quantile"] = self.quantile
        return Learnt({"threshold": table}, {**facts, "skipped": _Scores(self, model, data, table).really})

    def route(self, choices: Choices, learnt: Mapping[str, Tensor]) -> Routed:
        threshold = learnt["threshold"][choices.layer].to(choices.weight.device)  # [K]
        keep = self.score(choices).float() >= threshold  # [T, K]; strictly below is dropped, as released
        keep[:, 0] = True
        spared, emptied = self.spared(choices), self.emptied(choices)
        if spared is not None:
            keep = keep | spared[:, None]
        if emptied is not None:
            keep = keep & ~emptied[:, None]
        return choices.keep(keep, spared)

    def _pruned(self, model: MoEModel) -> tuple[int, ...]:
        return tuple(range(model.layers)) if self.layers is None else self.layers

    def _solve(self, model: MoEModel, data: CalibrationData, skip: float) -> Learnt:
        """Thresholds that skip the share asked for while they are in place.

        Dropping experts changes the scores in later layers, so the quantile that fits the untouched model is corrected
        by what was really skipped, until that is close.
        """
        scores = _Scores(self, model, data, None)
        least, most = scores.skipped(0.0), scores.skipped(1.0)
        if not least - MISSED <= skip <= most + MISSED:
            raise BadInput(
                f"a skip of {skip:g} cannot be met: this policy skips from {least:.3f} to {most:.3f} of all pairs of "
                f"{model.name!r}; ask for a share between, or prune more layers"
            )
        aim, best = skip, None
        for round_ in range(ROUNDS):
            quantile = scores.quantile(aim)
            table = scores.thresholds(quantile)
            reached = _Scores(self, model, data, table)
            if best is None or abs(reached.really - skip) < abs(best[0] - skip):
                best = (reached.really, quantile, table, round_ + 1)
            if abs(reached.really - skip) <= CLOSE:
                break
            aim = min(most, max(least, aim + skip - reached.really))
        assert best is not None
        really, quantile, table, rounds = best
        if abs(really - skip) > MISSED:
            raise BadInput(
                f"a skip of {skip:g} cannot be met: scores of many pairs are equal, and the nearest share is "
                f"{really:.3f}; ask for that one, or use another policy"
            )
        facts = {"quantile": quantile, "skipped": really, "rounds": rounds}
        return Learnt({"threshold": table}, facts, missed_share(skip, really))


@dataclass(frozen=True)
class ProtectingPolicy(ThresholdPolicy):
    """Drops by the ratio of routing weights, but keeps what belongs to important tokens.

    protect: share of the tokens of each sequence, the most important ones, that keep all their experts; rounded down to
    whole tokens, as released, so that sequences shorter than 1 / protect protect none.
    drop_all: share of the least important tokens that lose all their experts (figure 8 of the paper); 0 as released.

    While decoding, a pass holds one token of each sequence; its share rounds down to none, so the weights decide alone.
    """

    protect: Annotated[float, Between(0, 1)] = 0.02
    drop_all: Annotated[float, Between(0, 1)] = 0.0

    @property
    def ranks_tokens(self) -> bool:
        """Whether a token's experts depend on the importance of the other tokens of its sequence."""
        return self.protect > 0 or self.drop_all > 0

    @property
    def causal(self) -> bool:
        return not self.ranks_tokens

    def importance(self, choices: Choices) -> Tensor:
        """[T] what tokens of one sequence are ranked by."""
        raise NotImplementedError

    def score(self, choices: Choices) -> Tensor:
        return weight_ratio(choices)

    def spared(self, choices: Choices) -> Tensor | None:
        if not self.protect:
            return None
        return rank_in_sequence(self.importance(choices), choices) < _whole(self.protect, choices.length)

    def emptied(self, choices: Choices) -> Tensor | None:
        if not self.drop_all:
            return None
        return rank_in_sequence(-self.importance(choices), choices) < _whole(self.drop_all, choices.length)


def missed_share(asked: float, reached: float) -> tuple[str, ...]:
    """What to note where another share of the pairs is skipped on the calibration text than was asked for."""
    if abs(asked - reached) <= CLOSE:
        return ()
    return (f"a skip of {reached:.4f} instead of {asked:g}, the nearest that was found on the calibration text",)


def weight_ratio(choices: Choices) -> Tensor:
    """[T, K] each weight divided by the greatest of its token; nothing runs where the router chose nothing."""
    import torch

    weight = choices.weight.float()
    return weight / weight[:, :1].clamp(min=torch.finfo(weight.dtype).tiny)


@dataclass(frozen=True)
class RoutingPolicy:
    """A policy ready to run in one model: the method, what it learnt there, and where that comes from.

    model names the weights that it was learnt on; provenance: what else it depends on, for the record.
    """

    name: str
    method: Method
    learnt: Learnt
    model: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """SHA-256 of all that decides what it does."""
        import torch

        digest = hashlib.sha256(f"{self.name} {self.model}".encode())
        for name, table in sorted(self.learnt.tables.items()):
            digest.update(f"{name} {tuple(table.shape)} {table.dtype}".encode())
            digest.update(table.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def layers(self) -> tuple[int, ...] | None:
        """The MoE layers that it prunes; None means all."""
        layers: tuple[int, ...] | None = declared(self.method, "layers_field")
        return layers

    def __call__(self, choices: Choices) -> Routed:
        return self.method.route(choices, self.learnt.tables)

    @contextmanager
    def applied(self, model: MoEModel, identity: str | None = None) -> Iterator[PairCounts]:
        """Puts the policy into the model; yields the counts of what ran.

        identity: that of the model's weights, their digest by default. Raises BadInput for a model that the policy was
        not learnt on, or that cannot show what the policy sees.
        """
        there = model.digest() if identity is None else identity
        if there != self.model:
            raise BadInput(
                f"the policy {self.name!r} was calibrated on another model ({self.model[:12]}) than the one to run "
                f"({there[:12]}); calibrate it again on this one"
            )
        with model.route(self, sees=self.method.sees, layers=self.layers) as counts:
            yield counts

    def save(self, folder: str | Path) -> Path:
        """Writes tables and description to a folder, each sealed; `load_policy` reads them back."""
        folder = Path(folder)
        tables = {name: table.detach().cpu().contiguous() for name, table in self.learnt.tables.items()}
        content = {"policy": self.name, "model": self.model, "key": self.key, "facts": dict(self.learnt.facts)}
        content |= {"provenance": dict(self.provenance), "notes": list(self.learnt.notes)}
        write_tensors(folder / TABLES, KIND, {"description": content_digest(content)}, tables)
        write_json(folder / DESCRIPTION, KIND, self._learnt_from(), content)
        return folder

    def _learnt_from(self) -> dict[str, Any]:
        return _learnt_from(self.name, self.model, self.provenance)


def load_policy(folder: str | Path, name: str, method: Method) -> RoutingPolicy:
    """The policy that was saved in a folder; BadInput where there is none, it is damaged or it is another method's."""
    folder = Path(folder)
    try:
        policy = _kept(folder, method)
    except Damaged as error:
        raise Damaged(f"{error}; calibrate it again") from None
    if policy is None:
        raise BadInput(f"there is no fitted policy in {str(folder)!r}; leave it out to calibrate one")
    kind = policy.name.partition("(")[0]
    if kind != name.partition("(")[0]:
        raise BadInput(f"the fitted policy in {str(folder)!r} is one of {kind!r}, not of {name!r}")
    return RoutingPolicy(name, method, policy.learnt, policy.model, policy.provenance)


def _kept(folder: Path, method: Method, learnt_from: Mapping[str, Any] | None = None) -> RoutingPolicy | None:
    """The policy in a folder, None where there is none; Damaged where it is not as written, or learnt from else."""
    content = read_json(folder / DESCRIPTION, KIND, learnt_from)
    if content is None:
        return None
    found = read_tensors(folder / TABLES, KIND, {"description": content_digest(content)})
    if found is None:
        raise Damaged.of(folder / TABLES, KIND, f"it is missing beside {DESCRIPTION}")
    try:
        notes = require_remarks(content.get("notes", ()), "the policy")
        learnt = Learnt(found[0], content["facts"], notes)
        policy = RoutingPolicy(content["policy"], method, learnt, content["model"], content["provenance"])
        problem = "" if content["key"] == policy.key else "it was changed after it was written"
        if any(bool(table.isnan().any()) for table in found[0].values()):
            problem = "a table holds NaN"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = str(error) or type(error).__name__
    if problem:
        raise Damaged.of(folder / TABLES, KIND, problem)
    return policy


def _learnt_from(name: str, model: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a policy depends on, as its file says it."""
    return {
        "method": name,
        "model": model,
        "text": provenance.get("data", ""),
        "source": provenance.get("source", ""),
    }


def fit(
    name: str,
    method: Method,
    model: MoEModel,
    data: CalibrationData,
    *,
    identity: str | None = None,
    source: str = "",
    folder: Path | None = None,
) -> RoutingPolicy:
    """The policy of a method for this model, learnt on the data, or read where it was learnt before.

    name: the method with its hyper-parameters, as in a method string. identity: of the model's weights, their digest by
    default. source: digest of the file that defines the method. With a `folder`, what was learnt is kept under it and
    found there again. Raises BadInput where the method cannot have what it asks for in this model.
    """
    there = model.digest() if identity is None else identity
    if given := declared(method, "fitted_field"):
        policy = load_policy(given, name, method)
        if policy.model != there:
            raise BadInput(
                f"the policy in {given!r} was calibrated on another model ({policy.model[:12]}) than the one to run "
                f"({there[:12]}); leave {method.fitted_field} out to calibrate one here"
            )
        return policy
    provenance = {
        "data": data.digest,
        "data_source": data.source,
        "tokens": data.tokens,
        "source": source,
        "model_name": model.name,
    }
    key = hashlib.sha256(json.dumps([name, there, data.digest, source]).encode()).hexdigest()[:16]
    home = None if folder is None else folder / f"policy-{key}"
    if home is not None:
        kept = unless_damaged(partial(_kept, home, method, _learnt_from(name, there, provenance)))
        if kept is not None:
            return kept
    learnt = method.learn(model, data)
    require_remarks(learnt.notes, f"the policy {name!r}")
    policy = RoutingPolicy(name, method, learnt, there, provenance)
    if home is not None:
        policy.save(home)
    return policy


def sequences_per_batch(data: CalibrationData) -> int:
    """How many calibration sequences go through the model at once."""
    return max(1, BATCH_TOKENS // data.input_ids.shape[1])


class _Scores:
    """The scores of the calibration tokens, with or without thresholds in place while they are collected."""

    def __init__(
        self, policy: ThresholdPolicy, model: MoEModel, data: CalibrationData, threshold: Tensor | None
    ) -> None:
        import torch

        self.model, self.pruned = model, policy._pruned(model)
        self._parts: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {layer: [] for layer in self.pruned}

        def note(choices: Choices) -> Routed:
            real = choices.real
            nobody = torch.zeros_like(real)
            spared, emptied = policy.spared(choices), policy.emptied(choices)
            score = policy.score(choices).float().masked_fill(~choices.chosen, torch.inf)
            kept, dropped = nobody if spared is None else spared, nobody if emptied is None else emptied
            self._parts[choices.layer].append((score[real].cpu(), kept[real].cpu(), dropped[real].cpu()))
            if threshold is None:
                return choices.keep(choices.chosen)
            return policy.route(choices, {"threshold": threshold})

        batches = list(data.batches(sequences_per_batch(data)))
        with torch.no_grad(), model.route(note, sees=policy.sees, layers=self.pruned) as counts:
            for ids, mask in track(batches, len(batches), "routing thresholds"):
                model.logits(ids, mask)
        self.pairs = int(counts.chosen.sum())
        self.really = counts.skipped()
        # per layer: score [n, K], spared [n], emptied [n]
        self.layers = [
            tuple(torch.cat(column) for column in zip(*self._parts.pop(layer), strict=True)) for layer in self.pruned
        ]
        self._sorted = [score.sort(dim=0).values for score, _, _ in self.layers]

    def thresholds(self, quantile: float) -> Tensor:
        """[L, K] so that this share of the scores of each layer and rank lies strictly below; ties may make it less."""
        import torch

        table = torch.full((self.model.layers, self.model.top_k), -torch.inf)
        for layer, ordered in zip(self.pruned, self._sorted, strict=True):
            at = math.floor(quantile * len(ordered))
            table[layer] = torch.inf if at >= len(ordered) else ordered[at]
        table[:, 0] = -torch.inf
        return table

    def skipped(self, quantile: float) -> float:
        """The share of all pairs that those thresholds would skip if later scores did not change."""
        import torch

        table = self.thresholds(quantile)
        lost = 0
        for layer, (score, spared, emptied) in zip(self.pruned, self.layers, strict=True):
            exists = score != torch.inf
            below = (score < table[layer]) & exists & ~spared[:, None]
            lost += int((below | (emptied[:, None] & exists)).sum())
        return lost / max(1, self.pairs)

    def quantile(self, share: float) -> float:
        """The least quantile that skips that share, by bisection: more of it never skips less."""
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            if self.skipped(middle) < share:
                low = middle
            else:
                high = middle
        return high


def _only(table: Tensor, layers: tuple[int, ...]) -> Tensor:
    """The rows of those layers; minus infinity in the others and in the first column. Refuses layers out of range."""
    import torch

    if wrong := [layer for layer in layers if not 0 <= layer < len(table)]:
        raise BadInput(f"there is no MoE layer {wrong[0]}; choose from 0 to {len(table) - 1}")
    kept = torch.full_like(table, -torch.inf)
    kept[list(layers)] = table[list(layers)]
    kept[:, 0] = -torch.inf
    return kept


def _whole(share: float, length: Tensor) -> Tensor:
    """How many whole tokens a share of each length is, in spite of binary fractions."""
    return (share * length.double() + 1e-9).floor()
