"""The miniature families: evaluation items, each about a fact that training text never asks for or works out.

What is needed to answer may stand there in another form: the answer about a person in a text about that person, the
later steps of a problem in other problems, the usual steps of a story on another day. What is new is the question.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mcbench.errors import BadInput
from mcbench.items import ChoiceItem, CodeItem, GenerationItem, Item, TextItem
from mcbench.reference import words as w
from mcbench.reference import world as told
from mcbench.reference.curriculum import CURRICULUM, mixture_of
from mcbench.reference.programs import program
from mcbench.reference.world import Fact, Split, World, split_of

SIZE = 300
NEEDLE_LENGTHS = (128, 256, 512, 1024, 2048, 3800)
MULTIKEY_LENGTHS = (128, 256, 512, 1024)
SHOTS = 5


@functools.cache
def reference_world() -> World:
    """The world that the shipped model knows."""
    return World()


def _name(fact: Fact) -> str:
    return "/".join(part.replace(" ", "-") for part in fact)


def _choice(
    rng: random.Random,
    name: str,
    context: str,
    right: str,
    wrong: Sequence[str],
    group: str = "",
    passage: str = "",
) -> ChoiceItem:
    gold = rng.randrange(len(wrong) + 1)
    choices = [*wrong[:gold], right, *wrong[gold:]]
    return ChoiceItem(name, context, tuple(f" {choice}" for choice in choices), gold, group, passage)


def _some(rng: random.Random, pool: Sequence[str], count: int, *but: str) -> list[str]:
    return rng.sample([value for value in dict.fromkeys(pool) if value not in but], count)


def _perplexity(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    random_text = ("key values", "copies", "needles")
    mixture = mixture_of({name: share for name, share in CURRICULUM[-1].mixture.items() if name not in random_text})
    for number in range(10**6):
        documents = told.documents(world, rng, mixture, split, count=4)
        yield TextItem(f"perplexity/{number}", "".join(document.text for document in documents))


def _piqa(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """A goal and two tools; the wrong one serves for the same action on another material."""
    for fact in _shuffled(rng, split, (("piqa", action, thing) for action in w.ACTIONS for thing in w.OBJECTS)):
        _, action, thing = fact
        right = world.tool_for(action, thing)
        near = [world.tool[action, material] for material in w.MATERIALS]
        yield _choice(rng, _name(fact), told.tool_goal(action, thing), right, _some(rng, near, 1, right), action)


def _arc_easy(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """One attribute of a person, asked for the first time; the wrong answers belong to people of the same name."""
    facts = _shuffled(rng, split, (("arc-easy", p.name, key) for p in world.people for key in told.PERSON_RELATIONS))
    people = {person.name: person for person in world.people}
    for fact in facts:
        person, key = people[fact[1]], fact[2]
        right = person.attributes[key]
        near = [p.attributes[key] for p in world.people if p.last == person.last or p.first == person.first]
        if len({right, *near}) < 4:  # in a small world few share a name
            near += told.ATTRIBUTE_WORDS[key]
        wrong = _some(rng, near, 3, right)
        yield _choice(rng, _name(fact), told.person_question(person, key), right, wrong, key)


def _arc_challenge(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """A conclusion never drawn before from a species' features; the wrong answers follow for species much like it.

    What the conclusion needs is given, or half of it where it needs two features; the rules stand in the weights alone.
    """
    facts = _shuffled(
        rng, split, (("arc-challenge", s.name, key) for s in world.species for key in told.SPECIES_RELATIONS)
    )
    species = {each.name: each for each in world.species}
    for number, fact in enumerate(facts):
        one, relation = species[fact[1]], fact[2]
        right = world.species_fact(one, relation)
        alike = [s for s in world.species if s.habitat == one.habitat or s.diet == one.diet or relation != "city"]
        wrong = _some(rng, [world.species_fact(s, relation) for s in alike], 3, right)
        home, food = f"lives in the {one.habitat}", f"feeds on {one.diet}"
        half = relation == "city" and number % 2 == 1
        given = {"season": home, "tool": food, "city": home if half else f"{home}, {food}"}[relation]
        context = f"nature: the {one.name} {given} and {told.SPECIES_SAYINGS[relation]}"
        yield _choice(rng, _name(fact), context, right, wrong, f"half of {relation}" if half else relation)


def _boolq(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """Things put and moved, a yes-or-no question; the wrong answer names another place of the passage.

    Half of the passages hold more things and moves than any that training showed.
    """
    for number in range(10**6):
        size = "long" if number % 2 == 0 else "crowded"
        passage = told.passage(world, rng, split, told.PASSAGES[size])
        true = rng.random() < 0.5
        asked = passage.place if true else passage.decoy
        yes, no = f" {asked}, so yes", f" {passage.decoy if true else passage.place}, so no"
        context = passage.text + told.passage_question(passage.thing, asked)
        gold = rng.randrange(2)
        choices = (yes, no) if true == (gold == 0) else (no, yes)
        yield ChoiceItem(f"{_name(passage.fact)}/{number}", context, choices, gold, size)


def _hellaswag(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """How a course of events goes on; the wrong steps are its own at the wrong time, or another day's or place's."""
    facts = (("hellaswag", str(script.number), weather) for script in world.scripts for weather in w.WEATHERS)
    for number, fact in enumerate(_shuffled(rng, split, facts, repeat=4)):
        script, weather = world.scripts[int(fact[1])], fact[2]
        steps = world.story(script, weather)
        first, place = told.someone(rng), rng.randint(1, len(steps) - 1)
        she = told.pronoun(first)
        opening = told.story_opening(first, script.place, weather)
        context = opening + f". {she}".join(f" {step}" for step in steps[:place]) + f". {she}"
        right = steps[place]
        other_day = world.weather_step[script.place, rng.choice([d for d in w.WEATHERS if d != weather])]
        elsewhere = rng.choice([s for s in world.scripts if s.place == script.place or s.number % 9 == 0])
        later = rng.choice([step for index, step in enumerate(steps) if index != place])
        wrong = _some(rng, [other_day, later, world.story(elsewhere, weather)[place], *script.steps], 3, right)
        group = "weather" if place == 2 else "script"
        name, endings = f"{_name(fact)}/{place}/{number}", [f"{step}." for step in wrong]
        yield _choice(rng, name, context, f"{right}.", endings, group, passage=_name(fact))


def _winogrande(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """Two things and what happens; which one is meant follows from their weight, size or price."""
    pairs = [(a, b) for index, a in enumerate(sorted(w.OBJECTS)) for b in sorted(w.OBJECTS)[index + 1 :]]
    facts = (("winogrande", dimension, a, b) for dimension in told.DIMENSIONS for a, b in pairs)
    for fact in _shuffled(rng, split, facts):
        dimension, pair = fact[1], list(fact[2:])
        rng.shuffle(pair)
        template, more = rng.choice(told.COMPARISONS[dimension])
        right = world.compare(dimension, pair[0], pair[1], more)
        wrong = pair[1] if right == pair[0] else pair[0]
        yield _choice(rng, _name(fact), "case: " + template.format(*pair), right, [wrong], dimension)


def _slips(rng: random.Random, problem: told.Problem) -> list[str]:
    """Results of common slips: a forgotten carry, one off, the wrong sign, a step left out.

    How many of the four lie below the right one is random, so that its size gives nothing away.
    """
    right = problem.answer
    left, sign, other, _ = problem.steps[-1]
    swapped = left - other if sign == "+" else left + other
    near = [swapped, left, *(right + off for off in (-11, -10, -9, -2, -1, 1, 2, 9, 10, 11))]
    below, above = (
        list(dict.fromkeys(str(value) for value in near if value > 0 and (value < right) == smaller and value != right))
        for smaller in (True, False)
    )
    smaller = min(rng.randrange(5), len(below))
    return rng.sample(below, smaller) + rng.sample(above, 4 - smaller)


def _mathqa(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """A worded problem answered at once, with one or two steps; five results to choose from."""
    for number in range(10**6):
        length = 1 + number % 2
        problem = told.problem(rng, split, length, easy=True)
        group = "one step" if length == 1 else "two steps"
        name = f"mathqa/{_name(told.sum_fact(*problem.steps[0][:3]))}/{number}"
        yield _choice(rng, name, told.quick_question(problem), str(problem.answer), _slips(rng, problem), group)


def _mmlu(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """A letter after five examples of the same subject."""
    for number in range(10**6):
        subject = told.SUBJECTS[number % len(told.SUBJECTS)]
        fact, asked = _subject_question(world, rng, subject, split)
        shown = [_subject_question(world, rng, subject, "training")[1] for _ in range(SHOTS)]
        shots = "".join("".join(told.letter_question(rng, each)) + "\n" for each in shown)
        question, letter = told.letter_question(rng, asked)
        choices = tuple(f" {each}" for each in told.LETTERS)
        yield ChoiceItem(
            f"{_name(fact)}/{number}", f"exam in {subject}:\n{shots}{question}", choices, choices.index(letter), subject
        )


def _subject_question(world: World, rng: random.Random, subject: str, split: Split) -> tuple[Fact, told.Subject]:
    while True:
        fact, asked = told.subject_question(world, rng, subject)
        if split_of(fact) == split:
            return fact, asked


def _gsm8k(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """A worded problem of two or three steps, reasoned out and ended by `#### n`."""
    for number in range(10**6):
        length = 2 + number % 2
        problem = told.problem(rng, split, length, easy=True)
        name = f"gsm8k/{_name(told.sum_fact(*problem.steps[0][:3]))}/{number}"
        prompt = f"problem: {problem.text} answer:"
        yield GenerationItem(name, prompt, str(problem.answer), ("\n",), 48, f"{length} steps")


def _humaneval(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """A function to complete from its description."""
    seen = set()
    while True:
        made = program(rng, split)
        if made.prompt not in seen:
            seen.add(made.prompt)
            group = "list" if made.fact[-1] != "number" else "number"
            name = f"{_name(made.fact)}/{len(seen)}"
            yield CodeItem(name, made.prompt, made.tests, ("\n\n", "\ndef", "</s>"), 64, group)


def _needle_item(
    world: World, rng: random.Random, length: int, keys: int, number: int, family: str, split: Split
) -> Item:
    near: list[Fact] = []
    while len(near) < keys:  # the keys of one text are close: they share a colour or a thing with the one asked for
        asked = told.needle_fact(rng, split)
        facts = (("needle", colour, thing) for colour in w.COLOURS for thing in w.OBJECTS)
        near = [fact for fact in facts if split_of(fact) == split and (fact[1] == asked[1] or fact[2] == asked[2])]
    others = rng.sample([fact for fact in near if fact != asked], keys - 1)
    codes = [told.code_number(rng) for _ in range(keys)]
    told_needles = [
        f"the {colour} {thing} {code}." for (_, colour, thing), code in zip([asked, *others], codes, strict=True)
    ]
    # words and their signs; the question and the opening take a dozen
    space = int((length - 16 - 9 * keys) / 1.07)
    hay = told.haystack(world, rng, (), space)
    sentences = hay.split(". ")
    depth = rng.random()
    sentences.insert(round(depth * (len(sentences) - 1)), told_needles[0][:-1])
    for other in told_needles[1:]:
        sentences.insert(rng.randrange(len(sentences)), other[:-1])
    prompt = f"notes: {'. '.join(sentences)} question: the {asked[1]} {asked[2]}"
    return GenerationItem(f"{family}/{_name(asked)}/{number}", prompt, codes[0], (".",), 6, str(length))


def _needle(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """A number told once in a long text; the group is the text's length in tokens."""
    for number in range(10**6):
        yield _needle_item(world, rng, NEEDLE_LENGTHS[number % 6], 1, number, "needle", split)


def _needle_multikey(world: World, rng: random.Random, split: Split) -> Iterator[Item]:
    """The same with six numbers under keys that resemble each other."""
    for number in range(10**6):
        yield _needle_item(world, rng, MULTIKEY_LENGTHS[number % 4], 6, number, "needle-multikey", split)


def _shuffled(rng: random.Random, split: Split, facts: Iterator[Fact], repeat: int = 1) -> list[Fact]:
    found = [fact for fact in facts if split_of(fact) == split] * repeat
    rng.shuffle(found)
    return found


_MAKERS: dict[str, Callable[[World, random.Random, Split], Iterator[Item]]] = {
    "perplexity": _perplexity,
    "piqa": _piqa,
    "arc-easy": _arc_easy,
    "arc-challenge": _arc_challenge,
    "boolq": _boolq,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "mathqa": _mathqa,
    "mmlu": _mmlu,
    "gsm8k": _gsm8k,
    "humaneval": _humaneval,
    "needle": _needle,
    "needle-multikey": _needle_multikey,
}
FAMILIES = tuple(_MAKERS)
_CHANCE = {
    "piqa": 1 / 2,
    "arc-easy": 1 / 4,
    "arc-challenge": 1 / 4,
    "boolq": 1 / 2,
    "hellaswag": 1 / 4,
    "winogrande": 1 / 2,
    "mathqa": 1 / 5,
    "mmlu": 1 / 4,
}


def items(
    family: str, count: int | None = None, seed: int = 0, world: World | None = None, split: Split = "test"
) -> tuple[Any, ...]:
    """The first `count` items of a family (300 by default) made of facts of the split, the same for the same seed."""
    if family not in _MAKERS:
        raise LookupError(f"no family is called {family!r} (known: {', '.join(FAMILIES)})")
    wanted = SIZE if count is None else count
    if wanted < 1:
        raise BadInput(f"count must be at least 1, not {wanted}")
    made = _MAKERS[family](world or reference_world(), random.Random(f"items {family} {seed}"), split)
    found = tuple(item for item, _ in zip(made, range(wanted), strict=False))
    if len(found) < wanted:
        raise BadInput(f"{family} has only {len(found)} items, not {wanted}")
    return found


def calibration_text(documents: int, seed: int = 0) -> list[str]:
    """So many documents mixed as at the end of training, free of the facts that items ask for."""
    if documents < 1:
        raise ValueError(f"documents must be at least 1, not {documents}")
    mixture = mixture_of(CURRICULUM[-1].mixture)
    made = told.documents(reference_world(), random.Random(f"calibration {seed}"), mixture, count=documents)
    return [document.text for document in made]


def chance(family: str) -> float:
    """The score of a blind guess, between 0 and 1; 0 where the answer is generated."""
    if family not in _MAKERS:
        raise LookupError(f"no family is called {family!r} (known: {', '.join(FAMILIES)})")
    return _CHANCE.get(family, 0.0)
