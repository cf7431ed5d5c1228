"""Calibration text becomes blocks of tokens, and says in one sentence why where it cannot."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_mixtral, tiny_transformer

from mcbench.errors import BadInput
from mcbench.model import MoEModel
from mcbench.text import CalibrationData, calibration_data

MODEL = tiny_mixtral()  # one token a byte, BOS is 1
LINES = [f"document {i} speaks of {i * 7} apples and {i * 3} pears." for i in range(40)]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"text.{kind}"
    rows = [{"text": line} for line in LINES]
    content = {"txt": "\n".join(LINES), "json": json.dumps(rows), "jsonl": "\n".join(map(json.dumps, rows))}[kind]
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["txt", "json", "jsonl"])
def test_a_file_becomes_whole_blocks_without_padding(tmp_path: Path, kind: str) -> None:
    data = calibration_data(MODEL, written(tmp_path, kind), samples=5, length=64)
    assert data.input_ids.shape == data.attention_mask.shape == (5, 64)
    assert data.tokens == 5 * 64
    assert data.source.endswith(kind)


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_equal_seeds_give_equal_digests_and_others_do_not(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    digests = [calibration_data(MODEL, path, samples=5, length=64, seed=seed).digest for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_sees_ids_mask_and_shape() -> None:
    data = CalibrationData(tiny_ids(), torch.ones(2, 4), "test")
    masked = dataclasses.replace(data, attention_mask=data.attention_mask * 0)
    reshaped = CalibrationData(data.input_ids.view(4, 2), data.attention_mask.view(4, 2), "test")
    assert len({data.digest, masked.digest, reshaped.digest}) == 3


def tiny_ids() -> torch.Tensor:
    return torch.arange(8).view(2, 4)


def test_every_document_opens_with_one_bos_token(tmp_path: Path) -> None:
    data = calibration_data(MODEL, written(tmp_path, "jsonl"), samples=20, length=64)
    assert data.input_ids[0, 0] == 1
    assert 20 * 64 / 50 < int((data.input_ids == 1).sum()) <= len(LINES)  # a line has fewer than 50 bytes


def test_the_reference_text_is_the_default() -> None:
    data = calibration_data(MODEL, samples=3, length=64)
    assert (data.source, data.tokens) == ("reference", 3 * 64)
    assert data.digest == calibration_data(MODEL, samples=3, length=64).digest


def test_a_short_text_says_how_many_tokens_it_has_and_how_many_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("a" * 200)
    with pytest.raises(BadInput, match=r"has 201 tokens and 640 are needed.*at most 3 samples"):
        calibration_data(MODEL, path, samples=10, length=64)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\t\n", "is empty"),
        ("blank.json", b"[]", "is empty"),
        ("latin.txt", "caf\u00e9".encode("latin-1"), "is not UTF-8"),
        ("broken.json", b'["a", ', "is not valid json"),
        ("broken.jsonl", b'{"text": "a"}\n{"text"', "is not valid jsonl"),
        ("fields.jsonl", b'{"text": "a"}\n{"content": "b"}', "entry 2"),
        ("object.json", b'{"text": "a"}', "entry 1"),
        ("table.csv", b"a,b", "ending in .txt"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as error:
        calibration_data(MODEL, path, samples=2, length=8)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_missing_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.txt"):
        calibration_data(MODEL, tmp_path / "nowhere.txt")
    with pytest.raises(BadInput, match="no tokenizer"):
        calibration_data(MoEModel(tiny_transformer("mixtral")), written(tmp_path, "txt"))


@pytest.mark.parametrize(("samples", "length"), [(0, 64), (4, 1), (4, 100_000)])
def test_impossible_sizes_are_refused(tmp_path: Path, samples: int, length: int) -> None:
    with pytest.raises(BadInput):
        calibration_data(MODEL, written(tmp_path, "txt"), samples=samples, length=length)
