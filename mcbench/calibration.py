"""Calibration: what a run over some text tells about every expert, measured once and read by every method.

Where tokens are summed and where they are averaged:

- token_count, routing_weight, renormalized_weight are sums over the calibration tokens that chose the expert.
- quantization_error is a Frobenius norm over those tokens (a root of a sum): frequency and routing weight are in it.
- output_divergence:kl is a mean over all real tokens of a small text, output_divergence:fnorm a norm over them.
- hessian_trace is a mean over the routed tokens (and over the weights): frequency is not in it. Multiplied by
  token_count it becomes the sum that GPTQ's 2XX^T without division would give.
- block_cosine, block_norm, predicted_cosine are means, weight_ratio is a median over all real tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mcbench.activations import CHUNK_TOKENS, Activations, LayerInputs
from mcbench.errors import BadInput, UnknownName
from mcbench.progress import track
from mcbench.sealed import Damaged, Lines, note, unless_damaged
from mcbench.stats import CalibrationStats
from mcbench.store import PROJECTIONS, Candidates, ExpertStore, MinMax

if TYPE_CHECKING:
    from mcbench.model import MoEModel
    from mcbench.text import CalibrationData

__all__ = ["CalibrationSettings", "CalibrationStats", "calibrate", "hutchinson_trace", "known_needs"]

CHEAP = (
    "token_count",
    "routing_weight",
    "renormalized_weight",
    "weight_ratio",
    "block_cosine",
    "block_norm",
)
QUANTIZERS = ("minmax", "final")
JOURNAL = "calibration journal 1"  # what its file says that it is
DIVERGENCE_TOKENS = 256  # rows of logits compared at a time, in fp64


@dataclass(frozen=True)
class CalibrationSettings:
    """What the numbers depend on besides model, text and quantiser.

    error_batch: sequences per norm in quantization_error:...:batch-sum (8 in MC-MoE's release).
    divergence_sequences, divergence_length: how much of the text output_divergence is measured on.
    hutchinson_probes: Rademacher probes per expert matrix in hessian_trace:hutchinson.
    predictor_width, predictor_steps, predictor_tokens: hidden width, training steps and tokens a step of the learned
    block score predictor (2406.08155 trains 1024 wide for up to 100 epochs; a mean needs less).
    starved_share: an expert counts as starved below this many tokens per input feature.
    """

    error_batch: int = 8
    divergence_sequences: int = 8
    divergence_length: int = 256
    hutchinson_probes: int = 64
    predictor_width: int = 128
    predictor_steps: int = 300
    predictor_tokens: int = 512
    starved_share: float = 0.25
    seed: int = 0


def known_needs() -> tuple[str, ...]:
    """Every name that a method may put among its `needs`."""
    names = [*CHEAP, "predicted_cosine", "hessian_trace", "hessian_trace:hutchinson"]
    for quantizer in QUANTIZERS:
        names += [f"quantization_error:{quantizer}", f"quantization_error:{quantizer}:batch-sum"]
        names += [f"output_divergence:{measure}:{quantizer}" for measure in ("kl", "fnorm")]
        names += [f"weight_error:{quantizer}"]
    return tuple(names)


def calibrate(
    model: MoEModel,
    data: CalibrationData,
    needs: Collection[str],
    *,
    store: ExpertStore | None = None,
    widths: Sequence[int] = (1, 2, 3),
    settings: CalibrationSettings = CalibrationSettings(),
    folder: Path | None = None,
    activations: Activations | None = None,
    measured: dict[tuple[object, ...], Any] | None = None,
) -> CalibrationStats:
    """Collects `needs` and the cheap statistics that any run over the text yields, and no more.

    One run of the model serves everything but output_divergence, as far as memory allows. `store` holds the experts as
    the quantiser finally used makes them; needs that end in "final" read it. With a `folder`, what is finished is kept
    there, an interrupted calibration goes on where it stopped, and a finished one is only read. Calls that share
    `measured` take what one of them has measured from there: model, text, widths and settings have to be the same.

    Raises UnknownName for a need that does not exist, BadInput for a dense model, NaN in weights or activations, or a
    need that lacks its store.
    """
    names = known_needs()
    for need in needs:
        if need not in names:
            raise UnknownName(f"no calibration statistic is called {need!r} (known: {', '.join(names)})")
        if ":final" in need and store is None:
            raise BadInput(
                f"{need!r} is measured on the experts finally used; calibrate with the store that holds them"
            )
    if not model.layers:
        raise BadInput(f"{model.name!r} is a dense model, so there are no experts to calibrate; use the method 'none'")
    run = _Run(model, data, needs, store, tuple(widths), settings, activations, measured)
    if folder is not None:
        finished = unless_damaged(partial(CalibrationStats.kept, folder, run.key))
        if finished is not None:
            return finished
    journal = Journal(None if folder is None else Path(folder) / "calibration.jsonl", run.key)
    stats = run.stats(journal)
    if folder is not None:
        stats.save(folder)
        journal.delete()
    return stats


class Journal:
    """Finished pieces of a long measurement, one sealed line each; a line that was cut off counts as not finished.

    A file that is damaged, or belongs to another measurement, is begun anew, which is said.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path = path
        self._done: dict[str, Any] = {}
        if path is None:
            return
        self._lines = Lines(path, JOURNAL, {"calibration": key})
        try:
            rows = self._lines.read()
            if not all(isinstance(row.get("piece"), str) and "value" in row for row in rows):
                raise Damaged.of(path, JOURNAL, "a line names no piece")
            self._done = {row["piece"]: row["value"] for row in rows}
        except Damaged as error:
            note(f"{error}; it is made anew")
            self._lines.begin()

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value kept under `name`, or the one that `measure` finds now, kept from here on."""
        if name not in self._done:
            self._done[name] = measure()
            if self.path is not None:
                self._lines.append([{"piece": name, "value": self._done[name]}])
        return self._done[name]

    def delete(self) -> None:
        """Forgets everything: the measurement is complete and saved elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class _Run:
    """One calibration: the pieces that the statistics are put together from."""

    def __init__(
        self,
        model: MoEModel,
        data: CalibrationData,
        needs: Collection[str],
        store: ExpertStore | None,
        widths: tuple[int, ...],
        settings: CalibrationSettings,
        activations: Activations | None,
        measured: dict[tuple[object, ...], Any] | None,
    ) -> None:
        self.measured = {} if measured is None else measured
        self.model, self.data, self.needs, self.widths, self.settings = model, data, frozenset(needs), widths, settings
        if activations is None:
            shared = store.activations if store is not None else None
            same_text = shared is not None and shared.data.digest == data.digest
            activations = shared if same_text else Activations(model, data)
        assert activations is not None
        self.activations = activations
        self.candidates: dict[str, Candidates] = {"minmax": MinMax(model)}
        if store is not None:
            self.candidates["final"] = store
        self.provenance = {
            "model": model.digest(),
            "model_name": model.name,
            "data": data.digest,
            "data_source": data.source,
            "quantizer": store.quantizer_name if store is not None else "",
            "store": store.key if store is not None and any(":final" in need for need in needs) else "",
            "widths": list(widths),
            "needs": sorted(needs),
            "settings": asdict(settings),
        }
        # the names are for people; the digests are what the numbers depend on
        content = {k: v for k, v in self.provenance.items() if k not in ("model_name", "data_source", "quantizer")}
        self.key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def stats(self, journal: Journal) -> CalibrationStats:
        model = self.model
        rows = [
            journal.get(f"layer {layer}", partial(self._layer, layer))
            for layer in track(range(model.layers), model.layers, "calibrating")
        ]
        tables = {name: np.array([row["tables"][name] for row in rows]) for name in rows[0]["tables"]}
        tables["token_count"] = tables["token_count"].astype(np.int64)
        tables["weight_ratio"] = tables["weight_ratio"].reshape(model.layers, model.top_k - 1)
        fallbacks = [line for row in rows for line in row["fallbacks"]]
        divergences = [need for need in sorted(self.needs) if need.startswith("output_divergence")]
        if divergences:
            tables |= self._divergences(divergences, journal, tables, fallbacks)
        features = max(model.weight(0, projection).shape[-1] for projection in PROJECTIONS)
        return CalibrationStats(
            count=model.weight_count(),
            widths=self.widths,
            tokens=self.data.tokens,
            top_k=model.top_k,
            tables=tables,
            starved_below=math.ceil(self.settings.starved_share * features),
            provenance={**self.provenance, "key": self.key, "fallbacks": fallbacks},
        )

    def _once(self, name: str, quantizer: str, measure: Callable[[], Any], *place: int) -> Any:
        """What `measure` gives for a place, or gave before; of the experts finally used for each store apart."""
        candidates = self.candidates.get(quantizer)
        maker = candidates.key if isinstance(candidates, ExpertStore) else quantizer
        key = (name, maker, self.widths, *place)
        if key not in self.measured:
            self.measured[key] = measure()
        return self.measured[key]

    # ---- one layer, from what enters it

    def _layer(self, layer: int) -> dict[str, Any]:
        """The statistics of one layer as plain lists, and the fallbacks behind them."""
        inputs = self.activations.layer(layer)
        tables = dict(self._once("routing", "", partial(_routing, inputs, self.model.experts), layer))
        if "predicted_cosine" in self.needs:
            predicted = partial(predicted_cosine, inputs.hidden, inputs.cosine, self.settings)
            tables["predicted_cosine"] = self._once("predicted_cosine", "", predicted, layer)
        replayed = [_replayed(inputs, expert) for expert in range(self.model.experts)]
        measured = []  # what rests on the tokens of each expert
        for name, exact in (("hessian_trace", True), ("hessian_trace:hutchinson", False)):
            if name in self.needs:
                tables[name] = [
                    self._once(name, "", partial(self._mean_trace, layer, e, tokens, exact), layer, e)
                    for e, tokens in enumerate(replayed)
                ]
                measured.append(name)
        for quantizer, candidates in self.candidates.items():
            error, weight_error = f"quantization_error:{quantizer}", f"weight_error:{quantizer}"
            if self.needs & {error, f"{error}:batch-sum"}:
                squares = np.stack(
                    [
                        self._once("squares", quantizer, partial(self._squares, layer, e, t, candidates), layer, e)
                        for e, t in enumerate(replayed)
                    ]
                )  # [E, W, B]
                tables[error] = np.sqrt(squares.sum(-1)).tolist()
                tables[f"{error}:batch-sum"] = np.sqrt(squares).sum(-1).tolist()
                measured.append(error)
            if weight_error in self.needs:
                distances = partial(self._weight_errors, layer, candidates)
                tables[weight_error] = self._once("weight_error", quantizer, distances, layer)
        fallbacks = [
            f"expert {e} of layer {layer} saw no token: {', '.join(measured)} as if one average token had chosen it"
            for e, tokens in enumerate(replayed)
            if tokens.unseen and measured
        ]
        tables = {name: values for name, values in tables.items() if name in CHEAP or name in self.needs}
        return {"tables": tables, "fallbacks": fallbacks}

    def _squares(self, layer: int, expert: int, tokens: Replayed, candidates: Candidates) -> np.ndarray[Any, Any]:
        """[W, B] squared norm of the change of the block's output, per width and batch of sequences.

        Only this expert's term of the block's sum changes, so its own tokens say all: the change at token t is
        weight(t) x (E(x_t) - E_quantised(x_t)), with shared experts and the other experts cancelling out.
        """
        batches = math.ceil(len(self.data.input_ids) / self.settings.error_batch)
        squares = np.zeros((len(self.widths), batches))
        changed = [{p: candidates.dequantized(layer, expert, p, width) for p in PROJECTIONS} for width in self.widths]
        for hidden, weight, batch in tokens.chunks(self.settings.error_batch):
            before = self.model.expert_output(layer, expert, hidden)
            for row, matrices in enumerate(changed):
                after = self.model.expert_output(layer, expert, hidden, **matrices)
                change = ((after - before).double() * weight[:, None]).square().sum(-1)  # [n]
                squares[row] += np.bincount(batch.numpy(), change.cpu().numpy(), minlength=batches)
        return squares * tokens.share

    def _weight_errors(self, layer: int, candidates: Candidates) -> list[list[float]]:
        """[E, W] squared distance between the expert's weights and the quantised ones."""
        table = np.zeros((self.model.experts, len(self.widths)))
        for projection in PROJECTIONS:
            own = self.model.weight(layer, projection)
            for expert in range(self.model.experts):
                for column, width in enumerate(self.widths):
                    change = (
                        candidates.dequantized(layer, expert, projection, width).to(own.device) - own[expert].float()
                    )
                    table[expert, column] += float(change.double().square().sum())
        rows: list[list[float]] = table.tolist()
        return rows

    def _mean_trace(self, layer: int, expert: int, tokens: Replayed, exact: bool) -> float:
        """Mean diagonal of the Hessian of the layer-wise squared error, over all weights of the expert.

        A matrix [out, in] has `out` copies of H = 2 mean(x x^T) as its Hessian, with trace out x 2 mean ||x||^2.
        """
        own = {projection: self.model.weight(layer, projection)[expert] for projection in PROJECTIONS}
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + layer * 1009 + expert)
        probes = self.settings.hutchinson_probes
        traces = dict.fromkeys(PROJECTIONS, 0.0)
        for rows, _, _ in tokens.chunks(1):
            inner = self.model.expert_hidden(layer, expert, rows).float()
            for projection, x in (("gate", rows.float()), ("up", rows.float()), ("down", inner)):
                if exact:
                    moment = float(x.double().square().sum())
                else:
                    moment = hutchinson_trace(partial(_gram_product, x), x.shape[1], probes, generator)
                traces[projection] += 2 * own[projection].shape[0] * moment / len(tokens.hidden)
        return sum(traces.values()) / sum(weight.numel() for weight in own.values())

    # ---- the model's output, expert by expert

    def _divergences(
        self, needs: Sequence[str], journal: Journal, tables: dict[str, Any], fallbacks: list[str]
    ) -> dict[str, Any]:
        """[L, E, W] tables of output_divergence:MEASURE:QUANTIZER."""
        data = self.data.head(self.settings.divergence_sequences, self.settings.divergence_length)
        quantizers = sorted({need.split(":")[2] for need in needs})
        places = [(layer, expert) for layer in range(self.model.layers) for expert in range(self.model.experts)]
        output: list[OutputDivergence] = []  # made when a place is not in the journal yet

        def measure(layer: int, expert: int) -> dict[str, list[list[float]]]:
            if not output:
                output.append(OutputDivergence(self.model, data))
            if not output[0].touches(layer, expert):
                return {}
            return {
                quantizer: [
                    self._once(
                        "divergence",
                        quantizer,
                        partial(output[0].of, layer, expert, self.candidates[quantizer], width),
                        layer,
                        expert,
                        width,
                    )
                    for width in self.widths
                ]
                for quantizer in quantizers
            }

        found = [
            journal.get(f"divergence {layer} {expert}", partial(measure, layer, expert))
            for layer, expert in track(places, len(places), "output divergence")
        ]
        shape = (self.model.layers, self.model.experts)
        touched = np.array([bool(row) for row in found]).reshape(shape)
        nothing = [[0.0, 0.0]] * len(self.widths)
        divergences = {}
        for quantizer in quantizers:
            measured = np.array([row.get(quantizer, nothing) for row in found]).reshape(*shape, -1, 2)  # [L, E, W, 2]
            if not touched.all():
                squares = self._squared_errors(quantizer, journal, tables)  # [L, E, W]
                measured[..., 0] = _estimated(measured[..., 0], squares, touched)
                measured[..., 1] = np.sqrt(_estimated(measured[..., 1] ** 2, squares, touched))
            for need in needs:
                if need.endswith(f":{quantizer}"):
                    divergences[need] = measured[..., ("kl", "fnorm").index(need.split(":")[1])]
        fallbacks += [
            f"expert {expert} of layer {layer} is not used in the text of the output divergence: estimated from its "
            "block error over the whole calibration text"
            for layer, expert in np.argwhere(~touched)
        ]
        return divergences

    def _squared_errors(self, quantizer: str, journal: Journal, tables: dict[str, Any]) -> np.ndarray[Any, Any]:
        """[L, E, W] squared quantisation error, measured now where no method needed it before."""
        name = f"quantization_error:{quantizer}"
        if name in tables:
            return np.asarray(tables[name]) ** 2

        def measure(layer: int) -> list[list[float]]:
            inputs, candidates = self.activations.layer(layer), self.candidates[quantizer]
            replayed = [_replayed(inputs, expert) for expert in range(self.model.experts)]
            return [self._squares(layer, e, tokens, candidates).sum(-1).tolist() for e, tokens in enumerate(replayed)]

        layers = range(self.model.layers)
        return np.array([journal.get(f"squares {quantizer} {layer}", partial(measure, layer)) for layer in layers])


def _estimated(
    measured: np.ndarray[Any, Any], squares: np.ndarray[Any, Any], touched: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """[L, E, W] with the rows that were not `touched` [L, E] in proportion to their squared block error.

    A small change of a block moves the output's divergence with its square; the factor is that of the layer's other
    experts, all widths together.
    """
    seen = touched[..., None]
    factor = (measured * seen).sum((1, 2)) / np.maximum((squares * seen).sum((1, 2)), np.finfo(float).tiny)  # [L]
    estimate: np.ndarray[Any, Any] = np.where(seen, measured, factor[:, None, None] * squares)
    return estimate


class OutputDivergence:
    """How far the model's output moves when one expert is replaced, on a text small enough to run again and again.

    Only the decoder layers from the expert's own upwards are computed, and only for the sequences in which some token
    chose it; where a model cannot be resumed in the middle, all of its layers are.
    """

    def __init__(self, model: MoEModel, data: CalibrationData) -> None:
        self.model, self.data = model, data
        chosen: list[Tensor] = []  # per layer, [S, T * K]
        with model.observe(lambda batch: chosen.append(batch.index.where(batch.mask[:, None], -1).view(len(ids), -1))):
            ids, mask = data.input_ids, data.attention_mask
            try:
                self.logits, self.entering = model.trace(ids, mask)
            except BadInput:
                chosen.clear()
                self.logits, self.entering = model.logits(ids, mask), ()
        self.chosen = chosen[: model.layers]

    def touches(self, layer: int, expert: int) -> bool:
        """Whether any real token of the text chose the expert."""
        return bool((self.chosen[layer] == expert).any())

    def of(self, layer: int, expert: int, candidates: Candidates, width: int) -> list[float]:
        """Mean over all real tokens of KL(original || changed) in nats, and Frobenius norm of the logits' change."""
        touched = (self.chosen[layer] == expert).any(-1).nonzero()[:, 0].cpu()
        ids, mask = self.data.input_ids[touched], self.data.attention_mask[touched]
        with self._replaced(layer, expert, candidates, width):
            if self.entering:
                changed = self.model.forward_from(layer, self.entering[layer][touched], ids, mask)
            else:
                changed = self.model.logits(ids, mask)
        real = mask.bool().to(changed.device)
        divergence, squares = 0.0, 0.0
        for before, after in zip(
            self.logits[touched][real].split(DIVERGENCE_TOKENS), changed[real].split(DIVERGENCE_TOKENS), strict=True
        ):
            before, after = before.double(), after.double()  # a divergence of 1e-6 is a difference of sums near 1
            log_p = before.log_softmax(-1)
            divergence += float((log_p.exp() * (log_p - after.log_softmax(-1))).sum())
            squares += float((after - before).square().sum())
        return [max(divergence, 0.0) / self.data.tokens, math.sqrt(squares)]

    @contextmanager
    def _replaced(self, layer: int, expert: int, candidates: Candidates, width: int) -> Iterator[None]:
        kept = {p: self.model.weight(layer, p)[expert].clone() for p in PROJECTIONS}
        try:
            for projection in PROJECTIONS:
                matrix = candidates.dequantized(layer, expert, projection, width)
                self.model.set_weight(layer, expert, projection, matrix)
            yield
        finally:
            for projection, matrix in kept.items():
                self.model.set_weight(layer, expert, projection, matrix)


@dataclass(frozen=True)
class Replayed:
    """The tokens on which an expert is replayed: those routed to it or, where there are none, the layer's average one.

    hidden: [n, D]. weight: [n] as applied. sequence: [n]. share: what a token counts, 1 or 1/n for the average one.
    """

    hidden: Tensor
    weight: Tensor
    sequence: Tensor
    share: float
    unseen: bool

    def chunks(self, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Hidden states, fp64 weights, and which batch of `batch` sequences each is of; a few tokens at a time."""
        columns = (self.hidden, self.weight, self.sequence)
        for hidden, weight, sequence in zip(*(c.split(CHUNK_TOKENS) for c in columns), strict=True):
            yield hidden, weight.double(), sequence.cpu() // batch


def _replayed(inputs: LayerInputs, expert: int) -> Replayed:
    token, slot = inputs.routed(expert)
    if len(token):
        return Replayed(inputs.hidden[token], inputs.weight[token, slot], inputs.sequence[token], 1.0, unseen=False)
    weight = inputs.weight.mean().expand(len(inputs.hidden))
    return Replayed(inputs.hidden, weight, inputs.sequence, 1 / len(inputs.hidden), unseen=True)


def _routing(inputs: LayerInputs, experts: int) -> dict[str, Any]:
    """The cheap statistics of one layer: counts, weights, cosine and norms."""
    chosen = inputs.index.flatten().cpu()
    probability = inputs.probability.double().cpu()
    ranked = probability.sort(dim=-1, descending=True).values  # [n, K]
    renormalized = probability / probability.sum(-1, keepdim=True)
    return {
        "token_count": torch.bincount(chosen, minlength=experts)[:experts].tolist(),
        "routing_weight": torch.bincount(chosen, probability.flatten(), minlength=experts)[:experts].tolist(),
        "renormalized_weight": torch.bincount(chosen, renormalized.flatten(), minlength=experts)[:experts].tolist(),
        "weight_ratio": np.median((ranked[:, 1:] / ranked[:, :1]).numpy(), axis=0).tolist(),
        "block_cosine": float(inputs.cosine.double().mean()),
        "block_norm": [float(norm.double().mean()) for norm in (inputs.input_norm, inputs.output_norm)],
    }


def _gram_product(x: Tensor, vectors: Tensor) -> Tensor:
    """x^T x applied to [in, probes], without forming it."""
    return (x.T @ (x @ vectors.to(x.device))).cpu()


def hutchinson_trace(product: Callable[[Tensor], Tensor], size: int, probes: int, generator: torch.Generator) -> float:
    """Trace of a symmetric [size, size] matrix from v -> H v alone: the mean of v^T H v over Rademacher probes v.

    Hutchinson's estimator as HAWQ-V2 uses it: unbiased, with the standard error
    sqrt(2 x sum of squared off-diagonal entries / probes), which is zero for a diagonal matrix.
    """
    signs = torch.randint(0, 2, (size, probes), generator=generator).double() * 2 - 1
    probed = signs.to(torch.float32)
    return float((probed * product(probed)).double().sum(0).mean())


def predicted_cosine(hidden: Tensor, cosine: Tensor, settings: CalibrationSettings) -> float:
    """Mean over all tokens of the block score that a small MLP learns to predict from the block input.

    2406.08155: D -> width -> 1 without bias, ReLU then tanh, mean squared error to the token's cosine between block
    input and output, AdamW 1e-4 with weight decay 1e-2, 10 % of the tokens held out to stop early. Here the training
    budget is a fixed number of steps at 1e-3 and the weights with the lowest held-out error are kept. Its training
    there used the residual stream and its evaluation the bare MoE input and output; here both use the latter.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    hidden, cosine = hidden.detach().float().cpu(), cosine.detach().float().cpu()
    order = torch.randperm(len(hidden), generator=generator)
    held_out, train = order[: max(1, len(order) // 10)], order[len(order) // 10 :]
    width, features = settings.predictor_width, hidden.shape[1]
    first = (torch.randn(features, width, generator=generator) / features**0.5).requires_grad_()
    second = (torch.randn(width, 1, generator=generator) / width**0.5).requires_grad_()

    def predict(rows: Tensor) -> Tensor:
        return torch.tanh(torch.relu(rows @ first) @ second)[:, 0]

    optimizer = torch.optim.AdamW([first, second], lr=1e-3, weight_decay=1e-2)
    best, kept = math.inf, (first.detach().clone(), second.detach().clone())
    for step in range(settings.predictor_steps + 1):
        if step % 25 == 0:
            with torch.no_grad():
                error = float((predict(hidden[held_out]) - cosine[held_out]).square().mean())
            if error < best:
                best, kept = error, (first.detach().clone(), second.detach().clone())
        rows = train[torch.randint(0, len(train), (settings.predictor_tokens,), generator=generator)]
        loss = (predict(hidden[rows]) - cosine[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        first.copy_(kept[0])
        second.copy_(kept[1])
        return float(torch.cat([predict(rows) for rows in hidden.split(CHUNK_TOKENS)]).double().mean())
