"""Published sets come out in the hub's columns whatever they lay in, and files that are not whole are refused."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcbench import datasets
from mcbench.datasets import load

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real sets are not beside this checkout")


@pytest.fixture(autouse=True)
def nothing_but_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, an empty cache and no folder but the one a test names."""
    from huggingface_hub import constants

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


@shared
@pytest.mark.parametrize("case", V0)
def test_real_rows_make_the_requests_that_lm_eval_stored(case: str, targets: dict[str, Any]) -> None:
    name, split, key, ask = V0[case]
    assert request_hash(list(load(name, split, SHARED).rows), ask) == targets[key]


@shared
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


@shared
def test_the_pages_of_wikitext_are_those_that_lm_eval_reads(targets: dict[str, Any]) -> None:
    clean = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext").wikitext_detokenizer
    pages = list(load("wikitext2", "test", SHARED).rows)
    assert request_hash(pages, lambda row: [[clean(row)]]) == targets["wikitext-v1-loglikelihood_rolling"]
