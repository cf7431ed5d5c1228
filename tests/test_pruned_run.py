"""A run with a routing policy says what was skipped, what that cost, and where the thresholds come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from records import sample_record, with_routing
from tiny import VOCABULARY, tiny_folder, tiny_text, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from mcbench.cli import main
from mcbench.errors import BadInput
from mcbench.pipeline import run
from mcbench.record import Record
from mcbench.report import table

TASKS = "mini-perplexity,mini-piqa,mini-gsm8k"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text(tmp_path_factory.mktemp("text"))


def ask(model: Path, text: Path, out: Path, **changes: Any) -> Record:
    asked: dict[str, Any] = {"method": "uniform+rtn+odp(skip=0.2, protect=0.05)", "expert_bits": 3, "model": str(model)}
    asked |= {"calibration": text, "samples": 8, "length": 64, "tasks": TASKS, "limit": 4, "out": out}
    return run(**(asked | changes))


@pytest.fixture(scope="module")
def first(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    out = tmp_path_factory.mktemp("runs")
    return ask(model, text, out), out


def test_the_record_says_what_ran_in_prefill_and_decode(first: tuple[Record, Path]) -> None:
    record, out = first
    routing = record.routing
    assert routing is not None
    assert (routing.policy, routing.causal, routing.layers) == ("odp(skip=0.2, protect=0.05)", False, (0, 1, 2))
    for pairs in (routing.prefill, routing.decode):
        assert pairs.tokens and pairs.chosen == (2 * pairs.tokens,) * 3
        assert all(0.5 * c <= e < c for c, e in zip(pairs.chosen, pairs.executed, strict=True))
    assert min(routing.prefill.protected) > 0 and routing.decode.protected == (0, 0, 0)
    assert routing.facts["skipped"] == pytest.approx(0.2, abs=0.01)
    assert len(routing.tables["threshold"]) == 3 and routing.provenance["data"]
    assert not routing.uncounted
    assert set(record.stages) >= {"evaluate", "calibrate routing", "evaluate pruned"}
    (path,) = out.glob("*odp*/record.json")
    assert Record.load(path) == record


def test_bytes_per_token_are_the_pairs_times_the_bytes_of_an_expert(first: tuple[Record, Path]) -> None:
    record, _ = first
    routing = record.routing
    assert routing is not None
    assert routing.router_bytes_per_token is not None and routing.active_bytes_per_token is not None
    one_expert = record.bits.bytes["experts"] / (3 * 6)  # all at the same width
    rest = sum(record.bits.bytes[name] for name in ("attention", "shared", "router"))
    assert routing.router_bytes_per_token == pytest.approx(rest + 3 * 2 * one_expert)
    assert routing.share is not None
    assert routing.active_bytes_per_token == pytest.approx(rest + routing.share * 3 * 2 * one_expert)


def test_the_pruned_model_stands_beside_the_unpruned_one(first: tuple[Record, Path], model: Path, text: Path) -> None:
    record, out = first
    plain = ask(model, text, out, method="uniform+rtn")
    routing = record.routing
    assert routing is not None and plain.routing is None
    assert [u.value for u in routing.unpruned] == [r.value for r in plain.results]
    for unpruned, pruned in zip(routing.unpruned, record.results, strict=True):
        assert unpruned.difference is not None and pruned.value is not None and unpruned.value is not None
        assert unpruned.difference == pytest.approx(pruned.value - unpruned.value)
    assert record.baseline == plain.baseline


def test_the_same_call_goes_on_and_still_knows_the_pairs(first: tuple[Record, Path], model: Path, text: Path) -> None:
    record, out = first
    again = ask(model, text, out)
    assert again.routing == record.routing
    assert [r.value for r in again.results] == [r.value for r in record.results]


def test_samples_whose_pairs_are_gone_are_answered_anew_and_counted(
    first: tuple[Record, Path], model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(model, text, tmp_path)
    (samples,), (pairs,) = (list(tmp_path.glob(f"*odp*/mini-piqa*.{end}")) for end in ("jsonl", "pairs.json"))
    before = samples.read_bytes(), pairs.read_bytes()
    pairs.unlink()
    assert ask(model, text, tmp_path).routing == first[0].routing
    assert (samples.read_bytes(), pairs.read_bytes()) == before
    assert (
        f"the pairs of the 4 samples in {str(samples)!r} are not known, so it is asked anew" in capsys.readouterr().err
    )


def test_a_policy_runs_on_the_uncompressed_model(model: Path, text: Path, tmp_path: Path) -> None:
    record = ask(model, text, tmp_path, method="none+topk(k=1)", expert_bits=None)
    routing = record.routing
    assert routing is not None and routing.share == 0.5
    assert record.bits.expert == 16 and record.baseline
    assert [u.value for u in routing.unpruned] == [r.baseline for r in record.results]
    everything = ask(model, text, tmp_path, method="none+topk(k=2)", expert_bits=None)
    assert [r.difference for r in everything.results] == [0, 0, 0]


def test_a_saved_model_brings_its_policy(first: tuple[Record, Path], model: Path, text: Path, tmp_path: Path) -> None:
    record, out = first
    ask(model, text, out, save=tmp_path / "packed")
    method = f"none+odp(skip=0.2, protect=0.05, fitted={tmp_path / 'packed' / 'routing'})"
    again = ask(tmp_path / "packed", text, out, method=method, expert_bits=None)
    assert again.routing is not None and record.routing is not None
    assert again.routing.tables == record.routing.tables
    assert [r.value for r in again.results] == [r.value for r in record.results]


def test_the_table_shows_what_ran(first: tuple[Record, Path]) -> None:
    lines = table(first[0]).splitlines()
    assert max(map(len, lines[1:])) <= 100  # the first one holds a long path
    (head,) = (at for at, line in enumerate(lines) if line.startswith("pairs executed"))
    assert lines[head].split()[-2:] == ["layer", "2"]
    assert lines[head + 2].startswith("prefill") and lines[head + 3].startswith("decode")
    assert any(line.startswith("not causal") for line in lines)
    assert any(line.startswith("active") and "under the router alone" in line for line in lines)


def test_a_record_of_a_pruned_run_comes_back_equal_and_prints() -> None:
    record = with_routing(sample_record())
    assert Record.from_json(record.to_json()) == record
    shown = table(record)
    assert "prefill            600      83.3 %             2.0 %   83.3 %   83.3 %" in shown
    assert "mini-perplexity              7.100   7.500     +0.400 ± 0.050" in shown


def test_a_dense_model_and_a_share_out_of_reach_are_refused(model: Path, text: Path, tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    with pytest.raises(BadInput, match="is a dense model, so 'topk' has no experts to prune"):
        ask(tmp_path / "dense", text, tmp_path, method="none+topk", expert_bits=None)
    with pytest.raises(BadInput, match="cannot be met"):
        ask(model, text, tmp_path, method="none+naee(skip=0.9)", expert_bits=None)
    assert main(["run", "--method", "none+naee(skip=2)", "--model", str(model)]) == 2
