"""The reference world's items can be answered by who knows the world, and only by them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import get_args

import pytest

from mcbench.items import ChoiceItem, CodeItem, GenerationItem, Item, TextItem
from mcbench.reference import FAMILIES, calibration_text, chance, folder, items
from mcbench.reference import words as w
from mcbench.reference import world as told
from mcbench.reference.curriculum import CURRICULUM, mixture_of
from mcbench.reference.families import reference_world
from mcbench.reference.programs import LIST_ENDS, LIST_STEPS, NUMBER_END, NUMBER_STEPS, Operation

CHOICES = tuple(family for family in FAMILIES if chance(family))
WORLD = reference_world()
PEOPLE = {person.name: person for person in WORLD.people}
SPECIES = {species.name: species for species in WORLD.species}


# an oracle: it reads the text of a question and looks its answer up in the world


def tool(context: str) -> str:
    action, thing = re.fullmatch(r"goal: to (\w+) the (\w+), take the", context).groups()  # type: ignore[union-attr]
    return WORLD.tool_for(action, thing)


def attribute(statement: str) -> str:
    name = " ".join(statement.split()[:2])
    key = next(key for key, sayings in told.SAYINGS.items() if statement[len(name) + 1 :] in sayings)
    return PEOPLE[name].attributes[key]


def consequence(context: str) -> str:
    species = SPECIES[" ".join(context.split()[2:4])]
    relation = next(key for key, saying in told.SPECIES_SAYINGS.items() if context.endswith(saying))
    return WORLD.species_fact(species, relation)


def verdict(context: str) -> str:
    where = dict(re.findall(r"\w+:(?: now)? the (\w+) (\w+)\.", context))
    asked, thing = re.search(r"question: is it the (\w+)\? answer: the (\w+)$", context).groups()  # type: ignore[union-attr]
    return f"{where[thing]}, so {'yes' if where[thing] == asked else 'no'}"


def next_step(context: str) -> str:
    weather, place, she, rest = re.fullmatch(  # type: ignore[union-attr]
        r"story: it is (\w+)\. \w+ is in the (\w+)\. (he|she) (.*)", context
    ).groups()
    steps = [step.strip() for step in rest.split(f". {she}") if step.strip()]
    for script in WORLD.scripts:
        story = list(WORLD.story(script, weather))
        if script.place == place and story[: len(steps)] == steps:
            return story[len(steps)] + "."
    raise AssertionError(context)


def which(context: str) -> str:
    for dimension, templates in told.COMPARISONS.items():
        for template, more in templates:
            found = re.fullmatch("case: " + re.escape(template).replace(r"\{\}", r"(\w+)"), context)
            if found:
                return WORLD.compare(dimension, found[1], found[2], more)
    raise AssertionError(context)


def result(text: str) -> str:
    opening, *sentences = text.split(": ", 1)[1].split(". ")
    total = int(re.findall(r"\d+", opening)[0])
    for sentence in sentences[:-1]:
        number = int(re.findall(r"\d+", sentence)[0])
        if "times" in sentence:
            total *= number
        elif re.search(r" more| buys | finds ", sentence):
            total += number
        else:
            total -= number
    return str(total)


MATERIALS = {thing: {"material": material} for thing, material in WORLD.material.items()}
KINDS = (
    (WORLD.cities, told.CITY_SAYINGS),
    (WORLD.jobs, told.JOB_SAYINGS),
    (WORLD.foods, told.FOOD_SAYINGS),
    (MATERIALS, {"material": "is made of"}),
)


def mmlu_fact(statement: str) -> told.Fact:
    subject, key = next(
        (subject, key)
        for things, sayings in KINDS
        for key, saying in sayings.items()
        if (subject := statement.removesuffix(f" {saying}").removeprefix("the ")) in things
        and statement.endswith(f" {saying}")
    )
    return ("mmlu", subject, key)


def statement_value(statement: str) -> str:
    _, subject, key = mmlu_fact(statement)
    return next(things[subject][key] for things, sayings in KINDS if subject in things and key in sayings)


def letter(context: str) -> str:
    options, statement = re.fullmatch(r"question: (.*)\. (.*)", context.splitlines()[-1]).groups()  # type: ignore[union-attr]
    return dict(option.rsplit(" ", 1) for option in options.split(", "))[statement_value(statement)]


def steps_of(prompt: str) -> list[tuple[Operation, int]]:
    """The operations that a description asks for, in order, with their constants."""
    described = prompt.split('"""')[1]
    if described.startswith("first "):
        said = described.removeprefix("first ").split(", then ")
    else:
        last, before = described.split(" after this: ")
        said = [*reversed(before.split(", but before that ")), last]
    steps = []
    for words in said:
        for step in (*NUMBER_STEPS, NUMBER_END, *LIST_STEPS, *LIST_ENDS):
            found = re.fullmatch(re.escape(step.words).replace(r"\{k\}", r"(\d+)"), words)
            if found:
                steps.append((step, int(found[1]) if found.groups() else 0))
                break
    return steps


def body(prompt: str) -> str:
    variable = prompt.split("(")[1].split(")")[0]
    return "".join("    " + step.code.format(v=variable, k=k, k2=2 * k) + "\n" for step, k in steps_of(prompt))


def code_number(prompt: str) -> str:
    asked = prompt.rsplit("question: ", 1)[1]
    return str(re.findall(re.escape(asked) + r" (\d+)\.", prompt)[0])


ORACLE: dict[str, Callable[[str], str]] = {
    "piqa": tool,
    "arc-easy": lambda context: attribute(context.split("answer: ")[1]),
    "arc-challenge": consequence,
    "boolq": verdict,
    "hellaswag": next_step,
    "winogrande": which,
    "mathqa": result,
    "mmlu": letter,
    "gsm8k": result,
    "humaneval": body,
    "needle": code_number,
    "needle-multikey": code_number,
}


def answered(family: str, item: Item) -> bool:
    if isinstance(item, ChoiceItem):
        return item.choices[item.gold] == " " + ORACLE[family](item.context)
    if isinstance(item, GenerationItem):
        return item.answer == ORACLE[family](item.prompt)
    if isinstance(item, CodeItem):
        exec(item.prompt + ORACLE[family](item.prompt) + item.tests, {})  # our own code
        return True
    return isinstance(item, TextItem) and bool(item.text)


@pytest.mark.parametrize("family", ORACLE)
def test_an_oracle_that_knows_the_world_answers_every_item(family: str) -> None:
    assert all(answered(family, item) for item in items(family))


@pytest.mark.parametrize("family", CHOICES)
def test_a_rule_blind_to_the_context_stays_at_chance(family: str) -> None:
    asked = items(family)
    chances = len(asked) * chance(family)
    noise = (chances * (1 - chance(family))) ** 0.5
    rules: dict[str, Callable[[tuple[str, ...]], int]] = {
        "first": lambda choices: 0,
        "longest": lambda choices: choices.index(max(choices, key=len)),
        "alphabet": lambda choices: choices.index(min(choices)),
        "middle": lambda choices: choices.index(sorted(choices, key=lambda c: (len(c), c))[len(choices) // 2]),
    }
    for name, rule in rules.items():
        right = sum(rule(item.choices) == item.gold for item in asked)
        assert abs(right - chances) < 4 * noise, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_three_hundred_items_the_same_for_a_seed(family: str) -> None:
    asked = items(family)
    assert len(asked) == 300 == len({item.id for item in asked})
    assert items(family, 7) == asked[:7]
    assert items(family, 7, seed=1) != asked[:7]


@pytest.mark.parametrize("family", CHOICES)
def test_choices_carry_their_space_and_differ(family: str) -> None:
    for item in items(family):
        assert not item.context.endswith((" ", "\n"))
        assert all(re.match(r" \S", choice) for choice in item.choices)
        assert len(set(item.choices)) == len(item.choices) == round(1 / chance(family))


# disjointness, on facts


MIXTURES = [mixture_of(phase.mixture) for phase in CURRICULUM]


@pytest.mark.parametrize("split", get_args(told.Split))
def test_text_of_a_split_asks_for_no_fact_of_another(split: told.Split) -> None:
    rng = random.Random(0)
    for mixture in MIXTURES:
        for document in told.documents(WORLD, rng, mixture, split, count=1_000):
            # the first fact is what the document asks for; what leads there may be known
            assert all(told.split_of(fact) == split for fact in document.facts[:1]), document.text
            if split == "training":
                assert all(told.split_of(fact) == "training" for fact in document.facts), document.text


def test_every_family_keeps_facts_for_development_and_for_test() -> None:
    rng = random.Random(1)
    for held in ("development", "test"):
        seen = {fact[0] for d in told.documents(WORLD, rng, MIXTURES[-1], held, count=2_000) for fact in d.facts}
        assert seen == set(told.HELD_OUT)


def facts_of(family: str, item: ChoiceItem | GenerationItem | CodeItem) -> told.Fact:
    """The fact that an item asks for, read from its text alone."""
    text = item.context if isinstance(item, ChoiceItem) else item.prompt
    if family == "piqa":
        return ("piqa", *re.findall(r"to (\w+) the (\w+),", text)[0])
    if family == "arc-easy":
        name = " ".join(text.split("answer: ")[1].split()[:2])
        saying = text.split("answer: ")[1][len(name) + 1 :]
        return ("arc-easy", name, next(key for key, sayings in told.SAYINGS.items() if saying in sayings))
    if family == "arc-challenge":
        relation = next(key for key, saying in told.SPECIES_SAYINGS.items() if text.endswith(saying))
        return ("arc-challenge", " ".join(text.split()[2:4]), relation)
    if family == "winogrande":
        dimension = next(d for d, ts in told.COMPARISONS.items() for t, _ in ts if text.endswith(t.split("{}")[-1]))
        return ("winogrande", dimension, *sorted(word for word in re.findall(r"\w+", text) if word in w.OBJECTS))
    if family in ("mathqa", "gsm8k"):
        first, second = map(int, re.findall(r"\d+", text)[:2])
        sentence = text.split(". ")[1]
        sign = "*" if "times" in sentence else "+" if re.search(r" more| buys | finds ", sentence) else "-"
        return told.sum_fact(first, sign, second)
    if family == "boolq":
        thing = text.split()[-1]
        return ("boolq", thing, dict(re.findall(r"the (\w+) (\w+)\.", text))[thing])
    if family == "mmlu":
        return mmlu_fact(text.splitlines()[-1].rsplit(". ", 1)[1])
    if family == "hellaswag":
        weather, place = re.findall(r"it is (\w+)\. \w+ is in the (\w+)", text)[0]
        steps = tuple(re.findall(r"(?:he|she) (\w+ the \w+)", text))
        script = next(s for s in WORLD.scripts if s.place == place and WORLD.story(s, weather)[: len(steps)] == steps)
        return ("hellaswag", str(script.number), weather)
    if family == "humaneval":
        return ("humaneval", *(step.name for step, _ in steps_of(text)))
    colour, thing = text.split()[-2:]
    return ("needle", colour, thing)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "perplexity"])
def test_items_are_about_facts_that_training_never_asks_for(family: str) -> None:
    assert all(told.split_of(facts_of(family, item)) == "test" for item in items(family))


def test_calibration_text_is_disjoint_from_items_and_repeatable() -> None:
    text = calibration_text(200)
    assert text == calibration_text(200) != calibration_text(200, seed=1)
    joined = "\n".join(text)
    for family in ("piqa", "arc-easy", "arc-challenge", "winogrande"):
        for item in items(family):
            assert item.context not in joined


def test_subtraction_and_addition_of_the_same_numbers_are_one_fact() -> None:
    assert told.sum_fact(14, "+", 23) == told.sum_fact(23, "+", 14) == told.sum_fact(37, "-", 23)


def test_text_items_are_texts() -> None:
    assert all(isinstance(item, TextItem) and len(item.text) > 100 for item in items("perplexity"))


# bad input


@pytest.mark.parametrize("call", [lambda: items("piqqa"), lambda: chance("piqqa"), lambda: folder("refrence")])
def test_an_unknown_name_is_an_error_that_lists_the_known(call: Callable[[], object]) -> None:
    with pytest.raises(LookupError, match="is called '(piqqa|refrence)'"):
        call()


def test_impossible_counts_are_errors() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        items("piqa", 0)
    with pytest.raises(ValueError, match="only"):
        items("piqa", 10**6)
    with pytest.raises(ValueError, match="room"):
        told.World(people=10**6)
