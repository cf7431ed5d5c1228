"""Questions, summaries and code over long texts: LongBench's English and code sets (https://arxiv.org/abs/2308.14508)."""

from __future__ import annotations

import difflib
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mcbench.datasets import load
from mcbench.items import GenerationItem
from mcbench.kinds import GenerationTask
from mcbench.task import Estimate, Row, mean


class Rule(NamedTuple):
    """How the answers of one of the sets are cut off and scored."""

    score: Callable[[str, str, Sequence[str]], float]
    max_new_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class LongBench(GenerationTask):
    """Greedy answers, each scored by the rule of its set, between 0 and 1; the best of several references counts.

    The value is the mean over samples, so that it can be compared sample by sample; the mean over sets, which LongBench
    prints, stands beside it. As lm-eval has it, no chat template. A prompt longer than the model's window loses its
    beginning, where the LongBench scripts cut the middle out; how many did is in the record.
    """

    metric = "score"

    def items(self) -> Sequence[GenerationItem]:
        """The prompts of the sets that are there, set by set."""
        return [
            GenerationItem(
                f"{row['dataset']}/{at}",
                row["prompt"],
                json.dumps({"answers": row["answers"], "classes": row["all_classes"]}),
                RULES[row["dataset"]].stop,
                RULES[row["dataset"]].max_new_tokens,
                row["dataset"],
            )
            for at, row in enumerate(load("longbench", "test").rows)
        ]

    def sets(self) -> Sequence[tuple[str, str]]:
        """The set that the items are made from."""
        return (("longbench", "test"),)

    def chance(self) -> None:
        """Guessing has no meaning over so many kinds of answer."""
        return

    def _group_of_tasks(self) -> bool:
        return True

    def extract(self, text: str) -> str:
        """All of it: each set has a rule of its own."""
        return text

    def gold(self, item: GenerationItem) -> list[str]:
        """Every reference."""
        found: list[str] = json.loads(item.answer)["answers"]
        return found

    def score(self, item: GenerationItem, text: str) -> float:
        """The score of the best reference by the rule of the set."""
        classes = json.loads(item.answer)["classes"]
        return max(RULES[item.group].score(text, answer, classes) for answer in self.gold(item))

    def _other_metrics(self) -> tuple[str, ...]:
        return ("mean_of_sets",)

    def _estimate(self, rows: Sequence[Row], metric: str) -> Estimate:
        if metric == self.metric:
            return mean([float(row["score"]) for row in rows])
        by_set: dict[str, list[float]] = {}
        for row in rows:
            by_set.setdefault(row["group"], []).append(float(row["score"]))
        means = [mean(scores) for scores in by_set.values()]
        errors = [one.standard_error for one in means]
        error = sum(e**2 for e in errors if e is not None) ** 0.5 / len(means) if None not in errors else None
        return Estimate(sum(one.value for one in means) / len(means), len(rows), error)


# -- the rules


def shared_words(text: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F1 of the words, without case, punctuation and articles."""
    ours, theirs = _plain_words(text), _plain_words(answer)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def rouge_l(text: str, answer: str, classes: Sequence[str] = ()) -> float:
    """ROUGE-L of summaries as the package `rouge` has it: different words in common subsequences of sentences, as F."""
    ours, theirs = (
        [" ".join(sentence.split()).split(" ") for sentence in side.split(".") if sentence]
        for side in (text.strip(), answer)
    )
    if not ours or not theirs:
        return 0.0
    common = {word for reference in theirs for sentence in ours for word in _common(reference, sentence)}
    precision = len(common) / len({word for sentence in ours for word in sentence})
    recall = len(common) / len({word for sentence in theirs for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def similar_line(text: str, answer: str, classes: Sequence[str] = ()) -> float:
    """How alike the first line of code and the reference are, in hundredths of difflib's ratio."""
    lines = [line for line in text.split("\n") if line.strip() and not any(mark in line for mark in ("`", "#", "//"))]
    return round(100 * difflib.SequenceMatcher(None, lines[0] if lines else "", answer).ratio()) / 100


def named_class(text: str, answer: str, classes: Sequence[str] = ()) -> float:
    """1 where the right class alone is named, less where others are; a part of the right name is no other class."""
    named = [name for name in classes if name in text.strip()]
    for name in named:  # skips the one behind a removed name, as the original does
        if name in answer and name != answer:
            named.remove(name)
    return 1 / len(named) if answer in named else 0.0


def named_number(text: str, answer: str, classes: Sequence[str] = ()) -> float:
    """The share of the numbers in the text that are the right one."""
    right = re.findall(r"\d+", answer)[:1]
    numbers = re.findall(r"\d+", text)
    return sum(number in right for number in numbers) / len(numbers) if numbers else 0.0


def _plain_words(text: str) -> list[str]:
    letters = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", letters).split()


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """A longest common subsequence: of several, the one found by going back along `other` first."""
    longest = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, word in enumerate(one, start=1):
        for j, against in enumerate(other, start=1):
            longest[i][j] = longest[i - 1][j - 1] + 1 if word == against else max(longest[i - 1][j], longest[i][j - 1])
    found, i, j = [], len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            i, j = i - 1, j - 1
            found.append(one[i])
        elif longest[i - 1][j] > longest[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


RULES = {
    "narrativeqa": Rule(shared_words, 128),
    "qasper": Rule(shared_words, 128),
    "multifieldqa_en": Rule(shared_words, 64),
    "hotpotqa": Rule(shared_words, 32),
    "2wikimqa": Rule(shared_words, 32),
    "musique": Rule(shared_words, 32),
    "gov_report": Rule(rouge_l, 512),
    "qmsum": Rule(rouge_l, 512),
    "multi_news": Rule(rouge_l, 512),
    "trec": Rule(named_class, 64, ("\n",)),
    "triviaqa": Rule(shared_words, 32, ("\n",)),
    "samsum": Rule(rouge_l, 128, ("\n",)),
    "passage_count": Rule(named_number, 32),
    "passage_retrieval_en": Rule(named_number, 32),
    "lcc": Rule(similar_line, 64),
    "repobench-p": Rule(similar_line, 64),
}
