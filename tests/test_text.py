"""Calibration text becomes blocks of tokens, and says in one sentence why where it cannot."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import itertools
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
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
        ("wide.txt", "text".encode("utf-16"), "text in UTF-16: save it as UTF-8"),
        ("broken.json", b'["a", ', "broken.json is no JSON, damaged or cut short"),
        ("broken.jsonl", b'{"text": "a"}\n{"text"', "broken.jsonl line 2 is no JSON, damaged or cut short"),
        ("fields.jsonl", b'{"text": "a"}\n{"content": "b"}', "line 2 has 'content' and no \"text\"; name the column"),
        ("numbers.json", b"[1, 2]", "numbers.json entry 1 is no text; give strings"),
        ("half.jsonl", b'{"text": "\\ud83d"}', "half.jsonl line 1 holds half a character"),
        ("chat.jsonl", b'{"messages": [{"content": "a"}]}', 'message 1 needs a "role" and a "content"'),
        ("chat.json", b'[{"messages": "hello"}]', "entry 1, 'messages' is no list of messages"),
        ("table.csv", b"a,b", "table.csv is no text; give plain text, JSON lines"),
        ("bytes.bin", b"ab\0c", "bytes.bin is no text: it holds bytes of zero"),
        ("cut.parquet", b"PAR1abc", "cut.parquet is no parquet file, damaged or cut short"),
        ("cut.arrow", b"\xff\xff\xff\xff", "cut.arrow is no arrow stream, damaged or cut short"),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "abc"}', mtime=0)[:-4], "cut.jsonl.gz is damaged or cut short"),
        ("packed.jsonl.zst", b"\x28\xb5\x2f\xfd", "packed by zstd: unpack it first"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as error:
        calibration_data(MODEL, path, samples=2, length=8)
    assert "\n" not in str(error.value)


ROWS = [{"text": line, "url": "u"} for line in LINES]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def as_table(path: Path, form: str) -> None:
    found = pyarrow.Table.from_pylist(ROWS)
    if form == "parquet":
        parquet.write_table(found, path)
    else:
        make = pyarrow.ipc.new_stream if form == "stream" else pyarrow.ipc.new_file
        with pyarrow.OSFile(str(path), "wb") as sink, make(sink, found.schema) as out:
            out.write_table(found)


def taken(path: Path) -> str:
    return calibration_data(MODEL, path, samples=5, length=64).digest


@pytest.mark.parametrize(
    "name",
    [
        "c4-train.00000-of-01024.json",
        "C4.JSON",
        "lines.jsonl",
        "lines.JSONL",
        "lines.ndjson",
        "lines.txt",
        "lines",
        "x.raw",
    ],
)
@pytest.mark.parametrize("pack", ["", ".gz", ".bz2", ".XZ", "unsaid"])
def test_json_lines_are_read_under_any_name_and_packed_or_not(name: str, pack: str, tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.jsonl", tmp_path / f"{name}{pack.removeprefix('unsaid')}"
    plain.write_text(JSON_LINES, encoding="utf-8")
    how: dict[str, Callable[[bytes], bytes]] = {
        "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".XZ": lzma.compress, "unsaid": gzip.compress
    }  # fmt: skip
    path.write_bytes(how[pack](JSON_LINES.encode()))
    assert taken(path) == taken(plain)


def test_rows_are_the_same_in_every_form(tmp_path: Path) -> None:
    texts = {
        "plain.jsonl": JSON_LINES,
        "list.json": json.dumps(ROWS),
        "indented.json": json.dumps(ROWS, indent=2),
        "list": json.dumps(ROWS),
        "strings.json": json.dumps(LINES),
        "marked.json": "\ufeff" + JSON_LINES,
        "windows.jsonl": JSON_LINES.replace("\n", "\r\n"),
        "marked and windows.json": "\ufeff" + json.dumps(ROWS, indent=1).replace("\n", "\r\n"),
        "old.jsonl": JSON_LINES.replace("\n", "\r"),
        "strings.jsonl": "".join(json.dumps(line) + "\n" for line in LINES),
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    for form, name in (
        ("parquet", "t.parquet"),
        ("parquet", "t.PARQUET"),
        ("stream", "t.arrow"),
        ("file", "t.feather"),
    ):
        as_table(tmp_path / name, form)
    as_table(tmp_path / "parquet under no name", "parquet")
    assert len({taken(path) for path in tmp_path.iterdir()}) == 1


def test_a_plain_text_is_one_document_whatever_its_marks(tmp_path: Path) -> None:
    text = "\n".join(LINES) + "\n{not: json}\n"
    for name, content in (
        ("a.txt", text.encode()),
        ("wiki.train.raw", text.encode()),
        ("b.TXT", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()),
        ("c.txt.gz", gzip.compress(text.encode())),
    ):
        (tmp_path / name).write_bytes(content)
    assert len({taken(path) for path in tmp_path.iterdir()}) == 1
    begins_so = tmp_path / "code.txt"
    begins_so.write_text("[1] a footnote\n" + text)
    assert calibration_data(MODEL, begins_so, samples=5, length=64).tokens == 5 * 64


TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"


def chats(folder: Path) -> dict[str, Path]:
    rows = [
        {"messages": [{"role": "user", "content": line}, {"role": "assistant", "content": f"so {line}"}]}
        for line in LINES
    ]
    spoken = [
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]}
                           for m in row["messages"]]} for row in rows
    ]  # fmt: skip
    paths = {name: folder / name for name in ("chat.jsonl", "chat.json", "chat.parquet", "sharegpt.json")}
    paths["chat.jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths["chat.json"].write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), paths["chat.parquet"])
    paths["sharegpt.json"].write_text(json.dumps(spoken))
    return paths


def test_conversations_are_written_out_by_the_models_own_template(tmp_path: Path) -> None:
    model = tiny_mixtral()
    model.tokenizer.chat_template = TEMPLATE
    found = {name: calibration_data(model, path, samples=20, length=64) for name, path in chats(tmp_path).items()}
    assert len({data.digest for data in found.values()}) == 1
    ids = found["chat.jsonl"].input_ids.flatten().tolist()
    first = json.loads((tmp_path / "chat.jsonl").read_text().splitlines()[0])["messages"]
    whole = model.tokenizer.apply_chat_template(first, tokenize=True, return_dict=False)
    assert whole[0] == 1 and whole[1] != 1  # one BOS, the template's own
    assert not any(one == two == 1 for one, two in itertools.pairwise(ids))
    text = model.tokenizer.decode(ids)
    assert "[user] document" in text and "</s>[assistant] so document" in text


def test_conversations_need_a_template_that_takes_them(tmp_path: Path) -> None:
    model, path = tiny_mixtral(), chats(tmp_path)["chat.jsonl"]
    model.tokenizer.chat_template = None
    with pytest.raises(BadInput, match="chat.jsonl line [0-9]+ is a conversation.*no chat template; give"):
        calibration_data(model, path, samples=2, length=8)
    model.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadInput, match="line [0-9]+: the chat template does not take these.*: roles must"):
        calibration_data(model, path, samples=2, length=8)


def test_a_folder_is_answered_with_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder; name one of the files in it"):
        calibration_data(MODEL, tmp_path, samples=2, length=8)


def test_a_missing_file_and_a_missing_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.txt"):
        calibration_data(MODEL, tmp_path / "nowhere.txt")
    with pytest.raises(BadInput, match="no tokenizer"):
        calibration_data(MoEModel(tiny_transformer("mixtral")), written(tmp_path, "txt"))


@pytest.mark.parametrize(("samples", "length"), [(0, 64), (4, 1), (4, 100_000)])
def test_impossible_sizes_are_refused(tmp_path: Path, samples: int, length: int) -> None:
    with pytest.raises(BadInput):
        calibration_data(MODEL, written(tmp_path, "txt"), samples=samples, length=length)
