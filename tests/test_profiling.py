"""Time and memory of prefill and decode: what is counted equals its closed form, and what does not fit says so."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from records import sample_record
from tiny import tiny_folder

from mcbench.cli import main
from mcbench.composition import compose
from mcbench.errors import BadInput
from mcbench.leaderboard import leaderboard, tabulate_records
from mcbench.model import load_model
from mcbench.pipeline import Bench, Exam, run
from mcbench.profiling import Meter, Stopwatch, _compressed, _load, packed_bytes, profile, weight_bytes
from mcbench.record import FILE_NAME, Environment, Record
from mcbench.speed import (
    PHASES,
    PROFILE,
    UNFINISHED,
    Arm,
    ArmName,
    Cell,
    Memory,
    Phase,
    Profile,
    find_profiles,
    profile_table,
    read_grid,
    speed_tables,
)

FEW: dict[str, Any] = {"samples": 4, "length": 64}  # calibration that takes no time


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plain(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    out = tmp_path_factory.mktemp("runs")
    return profile(model=str(tiny), grid="1x24+4,3x24+4,1x512+1,1x513+1", repeats=3, out=out)


def made(seconds: dict[ArmName, tuple[float, ...]]) -> Cell:
    """A cell of 100 tokens a phase whose arms took these seconds for either."""
    phases = {arm: Phase(100, "eager", times) for arm, times in seconds.items()}
    return Cell(1, 100, 100, tuple(Arm(arm, phase, phase) for arm, phase in phases.items()))


def sample_profile(record: Record, seconds: float = 1.0, **changes: Any) -> Profile:
    cell = made({"eager": (2.0,), "best": (1.0,), "subject": (seconds,), "again": (seconds * 1.1,)})
    settings: dict[str, Any] = {
        "method": record.method, "model": "reference", "architecture": "MixtralForCausalLM", "asked_bits": 2.4,
        "fingerprint": record.fingerprint, "baseline": "uncompressed weights", "environment": record.environment,
        "attention": "sdpa", "memory_measure": "counted", "text": "t" * 64, "warmup": 1, "repeats": 1,
        "load": Memory(10, 12), "stored_bytes": {"experts": 1_000_000}, "weight_bytes": 4_000_000,
        "active_stored_bytes": 1.5, "active_weight_bytes": 6.0, "grid": ("1x100+100",), "cells": (cell,),
    }  # fmt: skip
    return Profile(**{**settings, **changes})


def saved(folder: Path, record: Record, found: Profile) -> Path:
    record.save(folder / FILE_NAME)
    found.save(folder / PROFILE)
    return folder


def test_a_grid_is_the_product_of_its_values() -> None:
    assert list(map(str, read_grid("1/8x16/32+4, 2x7+3,1x16+4"))) == [
        "1x16+4", "1x32+4", "8x16+4", "8x32+4", "2x7+3"
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "1x2", "1x2+", "ax2+3", "0x2+3", "1x2+3,", "1x2/+3", "-1x2+3"])
def test_a_cell_that_is_none_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(BadInput, match="BATCHxPROMPT|1 or more|must lie between 1 and"):
        read_grid(text)


@pytest.mark.parametrize("shape", ["1x24+4", "3x24+4"])
def test_the_cache_takes_what_its_shape_says(plain: Profile, shape: str) -> None:
    cell = plain.cell(shape)
    assert cell is not None
    per_token = 2 * 3 * 2 * 8 * 4  # keys and values, layers, heads, width of a head, bytes of a float
    for arm in cell.arms:
        assert arm.prefill.kv_bytes == cell.batch * cell.prompt * per_token
        assert arm.decode.kv_bytes == cell.batch * (cell.prompt + cell.output) * per_token


def test_a_speed_is_tokens_over_the_median_of_the_repeats(plain: Profile) -> None:
    cell = plain.cell("3x24+4")
    assert cell is not None
    for arm in cell.arms:
        for phase, tokens in ((arm.prefill, 72), (arm.decode, 12)):
            assert phase.tokens == tokens and len(phase.seconds) == 3 and min(phase.seconds) > 0
            assert phase.tokens_per_second == pytest.approx(tokens / statistics.median(phase.seconds))


def test_stored_bytes_are_those_of_the_file(plain: Profile, tiny: Path) -> None:
    file = (tiny / "model.safetensors").read_bytes()
    tensors = len(file) - 8 - int.from_bytes(file[:8], "little")
    assert plain.weight_bytes == tensors
    ones = 7 * 32  # weights of norms, which a packed file keeps in 16 bits as nothing is lost
    assert sum(plain.stored_bytes.values()) - plain.stored_bytes["header"] == tensors - 2 * ones


def test_a_token_reads_attention_router_and_its_two_experts(plain: Profile) -> None:
    attention, router, expert = 3 * (2 * 32 * 32 + 2 * 32 * 16), 3 * 6 * 32, 3 * 32 * 48
    moe_bytes = 4 * (attention + router + 3 * 2 * expert)
    inner = plain.active_weight_bytes
    assert inner == plain.active_stored_bytes
    assert inner is not None and inner == pytest.approx(moe_bytes)


def test_what_is_longer_than_the_window_is_a_cell_with_a_reason(plain: Profile) -> None:
    full, over = plain.cell("1x512+1"), plain.cell("1x513+1")
    assert full is not None and over is not None and plain.complete
    assert full.phase("subject", "prefill").seconds and not full.phase("subject", "decode").seconds
    assert "512 + 1 tokens are longer than the window of 512" in full.phase("subject", "decode").reason
    assert all("513 tokens are longer" in over.phase(arm.name, phase).reason for arm in over.arms for phase in PHASES)
    assert "513 tokens are longer" in profile_table(plain)


def test_the_best_implementation_is_the_fastest_of_the_trial(plain: Profile) -> None:
    (best,) = (arm for arm in plain.cells[0].arms if arm.name == "best")
    for phase in PHASES:
        took = {name.split()[1]: float(t.split()[0]) for name, t in best.tried.items() if name.startswith(phase)}
        assert took[best.phase(phase).implementation] == min(took.values())


def test_a_packed_folder_is_counted_to_the_byte(tiny: Path, tmp_path: Path) -> None:
    bench = Bench(load_model(str(tiny)), Exam((), tmp_path, None, False))
    composition = compose("frequency+rtn")
    budget = bench.budget(composition, None, 2.0, (1, 2, 3))
    assert budget is not None
    with bench.compress(composition, budget, bench.data(None, 4, 64, 0))[1] as compressed:
        compressed.save(tmp_path / "packed")
        sizes, each = compressed.sizes.bytes, compressed.expert_bytes()
    found, experts = packed_bytes(tmp_path / "packed", load_model(str(tmp_path / "packed")))
    assert found == sizes and np.allclose(experts, each)
    assert sum(found.values()) == (tmp_path / "packed" / "model.safetensors").stat().st_size
    again = profile(model=str(tmp_path / "packed"), grid="1x8+2", repeats=1, out=tmp_path / "runs")
    assert again.stored_bytes == sizes and again.baseline == "the same weights"


@pytest.mark.parametrize("architecture", ["qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_any_architecture_is_profiled(architecture: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", architecture)
    found = profile("uniform+rtn", expert_bits=3, model=str(folder), grid="2x16+2", repeats=1, out=tmp_path, **FEW)
    cell = found.cells[0]
    assert all(arm.phase(phase).seconds for arm in cell.arms for phase in PHASES)
    assert len({arm.decode.kv_bytes for arm in cell.arms}) == 1 and cell.phase("subject", "decode").kv_bytes


def test_a_dense_model_is_profiled_too(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "llama")
    found = profile(model=str(folder), grid="2x16+2", repeats=1, out=tmp_path)
    assert found.cells[0].phase("subject", "decode").seconds and found.active_weight_bytes is None


def test_weights_are_exchanged_bit_for_bit(tiny: Path, tmp_path: Path) -> None:
    bench = Bench(load_model(str(tiny)), Exam((), tmp_path, None, False))
    composition = compose("uniform+rtn")
    budget = bench.budget(composition, None, 2.0, (1, 2, 3))
    assert budget is not None
    subject = _compressed(bench, composition, budget, bench.data(None, 4, 64, 0), 0)
    for compressed in (False, True, True, False):
        subject.use(compressed=compressed)
        bench.moe._digest = None
        assert bench.moe.digest() == (subject.identity if compressed else bench.digest)


def test_a_policy_runs_in_the_subject_alone_and_lowers_what_is_read(tiny: Path, tmp_path: Path) -> None:
    kept = profile("none+topk(k=1)", model=str(tiny), grid="1x16+2", repeats=1, out=tmp_path, **FEW)
    whole = profile("none", model=str(tiny), grid="1x16+2", repeats=1, out=tmp_path)
    assert kept.active_weight_bytes is not None and whole.active_weight_bytes is not None
    assert whole.active_weight_bytes - kept.active_weight_bytes == pytest.approx(3 * 3 * 32 * 48 * 4)
    assert kept.fingerprint != whole.fingerprint


def test_memory_that_runs_out_is_a_reason(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Stopwatch._forward

    def small(self: Stopwatch, ids: torch.Tensor, implementation: str, cache: Any) -> Any:
        if len(ids) > 1 and (ids.shape[1] > 16 or cache is not None):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids, implementation, cache)

    monkeypatch.setattr(Stopwatch, "_forward", small)
    found = profile(model=str(tiny), grid="1x24+2,2x24+2,1x8+2", repeats=1, out=tmp_path)
    assert [cell.phase("subject", "prefill").reason for cell in found.cells] == ["", "out of memory in prefill", ""]
    assert found.complete and found.cells[1].ratio("prefill", "eager") is None


def test_an_error_that_is_not_about_memory_is_raised(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Stopwatch, "_forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        profile(model=str(tiny), grid="1x8+2", repeats=1, out=tmp_path)


def test_a_cell_that_would_end_the_process_is_not_begun(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meter, "peak", lambda self: (self.weights + 26_000, None))  # 1000 bytes a token
    monkeypatch.setattr(Meter, "free", lambda self: 40_000)
    found = profile(model=str(tiny), grid="1x24+2,2x24+2", repeats=1, out=tmp_path)
    first, second = (cell.phase("eager", "decode") for cell in found.cells)
    assert first.seconds and "GB of memory" in second.reason


def test_an_interrupted_profile_goes_on(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Stopwatch.cell
    done: list[str] = []

    def interrupted(self: Stopwatch, shape: Any, warmup: int, repeats: int) -> Cell:
        if len(done) == 1:
            done.append("interrupted")
            raise KeyboardInterrupt
        done.append(str(shape))
        return measure(self, shape, warmup, repeats)

    monkeypatch.setattr(Stopwatch, "cell", interrupted)
    asked: dict[str, Any] = {"model": str(tiny), "grid": "1x8+1,2x8+1", "repeats": 1, "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        profile(**asked)
    (kept,) = tmp_path.rglob(UNFINISHED)
    first = Profile.from_json(kept.read_text())
    assert not first.complete and not list(tmp_path.rglob(PROFILE))
    whole = profile(**asked)
    assert done == ["1x8+1", "interrupted", "2x8+1"] and whole.complete
    assert whole.cells[0] == first.cells[0] and not kept.exists()
    assert Profile.load_file(kept.parent) == whole


def test_the_meter_sees_memory_that_came_and_went(tiny: Path) -> None:
    meter = Meter(load_model(str(tiny)))
    if not meter.how:
        pytest.skip("the peak memory of a process cannot be read and reset here (Linux: /proc/self/clear_refs)")
    meter.open()
    torch.ones(30_000_000)  # 120 MB, gone at once
    peak = meter.peak()[0]
    assert peak is not None and 119e6 < peak - meter.weights < 140e6
    meter.again()
    later = meter.peak()[0]
    assert later is not None and later - meter.weights < 20e6


def test_loading_takes_no_less_than_the_weights_where_another_model_was_before() -> None:
    for _ in range(2):  # the second could lie in memory that the first has left
        moe, load, how = _load("reference", "auto", "cpu")
        if not how.startswith("weights"):
            pytest.skip("the memory of a process cannot be read here (Linux: /proc/self/status)")
        assert load.held_bytes is not None and load.held_bytes >= 0.9 * weight_bytes(moe)
        del moe


@pytest.mark.parametrize("times", [(1.0, 1.0), (1.0, 1.1), (3.0, 0.5)])
def test_noise_is_the_same_from_either_side(times: tuple[float, float]) -> None:
    one, other = times
    there = made({"subject": (one,), "again": (other,)}).noise("decode")
    back = made({"subject": (other,), "again": (one,)}).noise("decode")
    assert there is not None and back is not None
    assert there == pytest.approx(back) == pytest.approx(max(times) / min(times) - 1)


def test_a_profile_comes_back_as_it_was_written(plain: Profile) -> None:
    assert Profile.from_json(plain.to_json()) == plain


@pytest.mark.parametrize("damage", ["edited", "cut", "newer", "another thing"])
def test_a_profile_that_is_not_what_was_written_is_refused(damage: str) -> None:
    text = sample_profile(sample_record()).to_json()
    content = json.loads(text)
    broken = {
        "edited": text.replace('"weight_bytes": 4000000', '"weight_bytes": 3000000'),
        "cut": text[:-40],
        "newer": json.dumps({**content, "schema": 99}),
        "another thing": "{}",
    }[damage]
    with pytest.raises(BadInput, match="changed after|cut short|upgrade|not a profile"):
        Profile.from_json(broken)


def test_a_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    record = sample_record()
    saved(tmp_path, record, sample_profile(record, fingerprint="0" * 64))
    with pytest.raises(BadInput, match="is of another model"):
        find_profiles([tmp_path])


def test_a_record_gets_its_profile_beside_it(tiny: Path, tmp_path: Path) -> None:
    run("uniform+rtn", expert_bits=2, model=str(tiny), tasks="mini-piqa", limit=2, out=tmp_path, **FEW)
    (path,) = (p for p in tmp_path.rglob(FILE_NAME) if Record.load(p).bits.expert == 2)
    with pytest.raises(BadInput, match="give it with --model"):  # no folder is read because a record names it
        profile(record=path.parent, grid="1x8+2", repeats=1, out=tmp_path)
    found = profile(record=path.parent, model=str(tiny), grid="1x8+2", repeats=1, out=tmp_path)
    assert find_profiles([tmp_path]) == {Record.load(path).fingerprint: found}
    assert found.baseline == "uncompressed weights" and found.asked_bits == 2
    with pytest.raises(BadInput, match="give it or the record"):
        profile(bits=2, record=path, out=tmp_path)
    with pytest.raises(BadInput, match="is not the model of the record"):
        profile(model="reference", record=path, out=tmp_path)
    dataclasses.replace(Record.load(path), fingerprint="0" * 64).save(path)
    with pytest.raises(BadInput, match="is another"):
        profile(record=path, model=str(tiny), grid="1x8+2", repeats=1, out=tmp_path)


@pytest.mark.parametrize("policy", ["odp", "naee"])  # one sees attention, the other only what the router says
def test_the_record_of_a_policy_is_profiled(policy: str, tiny: Path, tmp_path: Path) -> None:
    method = f"uniform+rtn+{policy}"
    run(method, expert_bits=2, model=str(tiny), tasks="mini-piqa", limit=2, out=tmp_path, **FEW)
    (path,) = (p for p in tmp_path.rglob(FILE_NAME) if Record.load(p).asked == method)
    found = profile(record=path, model=str(tiny), grid="1x64+2", repeats=1, out=tmp_path)
    assert found.fingerprint == Record.load(path).fingerprint and (path.parent / PROFILE).is_file()
    whole = profile("uniform+rtn", expert_bits=2, model=str(tiny), grid="1x64+2", repeats=1, out=tmp_path, **FEW)
    assert found.active_weight_bytes is not None and whole.active_weight_bytes is not None
    assert found.active_weight_bytes < whole.active_weight_bytes


def test_a_whole_run_and_its_profile_share_a_folder(tiny: Path, tmp_path: Path) -> None:
    moe = load_model(str(tiny))
    bench = Bench(moe, Exam((), tmp_path, None, False))
    expected = bench.exam.take(moe, moe.digest(), "uncompressed").folder
    profile(model=str(tiny), grid="1x8+2", repeats=1, out=tmp_path)
    assert (expected / PROFILE).is_file()


def test_speeds_of_two_machines_never_share_a_table() -> None:
    records = [sample_record(seed=seed, fingerprint=str(seed) * 64) for seed in range(3)]
    profiles = {record.fingerprint: sample_profile(record) for record in records}
    assert [len(table.rows) for table in speed_tables(records, profiles)] == [3]
    other = dataclasses.replace(records[1].environment, threads=8)
    profiles[records[1].fingerprint] = sample_profile(records[1], environment=other)
    assert sorted(len(table.rows) for table in speed_tables(records, profiles)) == [1, 2]


def test_the_leaderboard_shows_speed_and_memory(tmp_path: Path) -> None:
    record = sample_record()
    out = tmp_path / "board"
    record.save(tmp_path / "runs" / FILE_NAME)
    leaderboard([tmp_path / "runs"], out)
    assert not (out / "speed.csv").exists() and "Speed" not in (out / "README.md").read_text()
    saved(tmp_path / "runs", record, sample_profile(record))
    leaderboard([tmp_path / "runs"], out)
    leaderboard([tmp_path / "runs"], out, check=True)
    text = (out / "README.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| pmq+gptq") and "2.00" in line and "~" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:6] == ["100", "2.00", "1.00~", "10.0 %"]  # 100 tokens in 1 s, eager 2 s, best 1 s, again 1.1 s
    assert cells[-2:] == ["4.00", "1.00"]  # MB of weights in memory and of the file
    assert len((out / "speed.csv").read_text().splitlines()) == 1 + 2 * 4
    assert "\\div" in (out / "leaderboard.tex").read_text()


def test_tables_without_profiles_are_what_they_were() -> None:
    tables, _ = tabulate_records([sample_record()])
    assert not tables[0].profiles


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "1x2"], "'1x2' is no cell"),
        (["--repeats", "0"], "the repeats must lie between 1 and 1,000, not 0"),
        (["--warmup", "0"], "the warmup must lie between 1 and 1,000, not 0"),
        (["--method", "pmp", "--bits", "2"], "did you mean"),
        (["--bits", "2"], "compresses nothing"),
        (["--method", "pmq"], "needs a budget"),
        (["--method", ""], "method is empty"),
        (["--model", "./absent"], "'./absent'"),
        (["--record", "absent"], "absent"),
        (["--device", "cudaa"], "cudaa"),
        (["--calibration", "absent.txt"], "absent.txt"),
        (["--seed", "-1"], "not -1"),
        (["--widths", "x"], "'x'"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "--quiet", "--out", str(tmp_path), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_environment_names_the_machine() -> None:
    here = Environment({"torch": "2", "transformers": "5"}, "Linux", "a processor", 2, 1, "cpu", "float32", 1)
    found = sample_profile(sample_record(), environment=here).machine
    assert found == "a processor, 2 cores, 1 thread, float32, torch 2, transformers 5"
