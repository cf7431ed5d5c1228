"""A small seeded world: who lives where, what things are made of, how stories go, and texts that tell of it.

Every document names the facts that it asks for or works out. Each fact belongs to one split: training and calibration
text do so with facts for training alone (a text about a person tells all that is true of them), evaluation items are
made of test facts, and progress is watched on development facts, so that no choice made while training has seen the
test.
"""

from __future__ import annotations

import random
import zlib
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal, NamedTuple

from mcbench.reference import words as w

Fact = tuple[str, ...]
Split = Literal["training", "development", "test"]

# the share of facts that training never sees, half for development and half for test, by the family they make items for
HELD_OUT = {
    "piqa": 0.26,
    "arc-easy": 0.20,
    "arc-challenge": 0.44,
    "boolq": 0.30,
    "hellaswag": 0.25,
    "winogrande": 0.20,
    "sum": 0.24,
    "mmlu": 0.30,
    "humaneval": 0.25,
    "needle": 0.20,
}
SPECIES_RELATIONS = ("season", "tool", "city")
PERSON_RELATIONS = ("city", "job", "pet", "food", "hobby", "colour")
DIMENSIONS = ("heavier", "larger", "dearer")


def split_of(fact: Fact) -> Split:
    """Who may learn of this fact: training, development or test."""
    place = zlib.crc32("|".join(fact).encode()) % 2000
    if place % 1000 >= 1000 * HELD_OUT[fact[0]]:
        return "training"
    return "development" if place >= 1000 else "test"


class Segment(NamedTuple):
    """A piece of a document and what its tokens weigh in the training loss."""

    text: str
    weight: float


@dataclass(frozen=True)
class Document:
    """A text in weighted segments, with the facts that it asks for or works out."""

    kind: str
    segments: tuple[Segment, ...]
    facts: tuple[Fact, ...] = ()

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Person:
    """Someone with a name and six attributes."""

    first: str
    last: str
    attributes: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"


@dataclass(frozen=True)
class Species:
    """A kind of animal; two features of its own, and three that follow from them by the rules of the world."""

    name: str
    habitat: str
    diet: str


@dataclass(frozen=True)
class Script:
    """A course of events at a place; on some days something else happens between."""

    number: int
    place: str
    steps: tuple[str, ...]


ATTRIBUTE_WORDS = {
    "city": w.CITIES,
    "job": w.JOBS,
    "pet": w.ANIMALS,
    "food": w.FOODS,
    "hobby": w.HOBBIES,
    "colour": w.COLOURS,
}
SAYINGS = {
    "city": ("lives in", "has a house in"),
    "job": ("works as a", "is by trade a"),
    "pet": ("keeps a", "owns a"),
    "food": ("likes to eat", "often eats"),
    "hobby": ("plays the", "is fond of the"),
    "colour": ("likes to wear", "dresses in"),
}
QUESTIONS = {
    "city": "where does {} live?",
    "job": "what is the trade of {}?",
    "pet": "which animal does {} keep?",
    "food": "what does {} like to eat?",
    "hobby": "what does {} play?",
    "colour": "which colour does {} wear?",
}
SPECIES_SAYINGS = {"season": "is seen in", "tool": "is caught with the", "city": "is sacred in"}
CITY_SAYINGS = {"country": "lies in", "river": "stands on the river", "goods": "trades in"}
JOB_SAYINGS = {"tool": "cannot do without the", "place": "spends the day in the"}
FOOD_SAYINGS = {"month": "are ripe in", "country": "come from"}
COMPARISONS = {
    # the answer is the one that has more of it, or less of it
    "heavier": (
        ("the {} and the {} are on the scale. down goes the", True),
        ("the {} fell on the {}. what broke was the", False),
    ),
    "larger": (
        ("the {} does not fit into the {}. too big is the", True),
        ("of the {} and the {} one fits into the other, namely the", False),
    ),
    "dearer": (
        ("she can pay for the {} or the {}. more money goes for the", True),
        ("he has the {} and the {} for sale. cheaper is the", False),
    ),
}


class World:
    """Everything that is true, drawn from a seed; `people` sets how many facts there are to know (six for each)."""

    def __init__(self, seed: int = 0, people: int = 5000) -> None:
        rng = random.Random(f"world {seed}")
        names = [(first, last) for first in w.WOMEN + w.MEN for last in w.SURNAMES]
        if not 1 <= people <= len(names):
            raise ValueError(f"the world has room for 1 to {len(names)} people, not {people}")
        self.people = tuple(
            Person(first, last, {key: rng.choice(values) for key, values in ATTRIBUTE_WORDS.items()})
            for first, last in rng.sample(names, people)
        )
        # some are spoken of ten times as often as others, so that knowledge is graded
        self._fame = list(accumulate((rank + people / 20) ** -0.8 for rank in range(people)))
        self.cities = {
            city: {"country": rng.choice(w.COUNTRIES), "river": rng.choice(w.RIVERS), "goods": rng.choice(w.GOODS)}
            for city in w.CITIES
        }
        self.jobs = {job: {"tool": rng.choice(w.TOOLS), "place": rng.choice(w.PLACES)} for job in w.JOBS}
        self.foods = {food: {"month": rng.choice(w.MONTHS), "country": rng.choice(w.COUNTRIES)} for food in w.FOODS}
        self.species = tuple(
            Species(f"{mark} {animal}", rng.choice(w.HABITATS), rng.choice(w.DIETS))
            for mark in w.MARKS
            for animal in w.ANIMALS
        )
        self._season = dict(zip(w.HABITATS, rng.sample(w.MONTHS, len(w.HABITATS)), strict=True))
        self._trap = dict(zip(w.DIETS, rng.sample(w.TOOLS, len(w.DIETS)), strict=True))
        sacred = rng.sample(w.CITIES, len(w.HABITATS) * len(w.DIETS))
        self._sacred = {(h, d): sacred.pop() for h in w.HABITATS for d in w.DIETS}
        self.material = {thing: rng.choice(w.MATERIALS) for thing in w.OBJECTS}
        self.tool = {(action, material): rng.choice(w.TOOLS) for action in w.ACTIONS for material in w.MATERIALS}
        self.rank = {
            dimension: {thing: place for place, thing in enumerate(rng.sample(w.OBJECTS, len(w.OBJECTS)))}
            for dimension in DIMENSIONS
        }
        self.scripts = tuple(
            Script(
                number,
                rng.choice(w.PLACES),
                tuple(f"{rng.choice(w.VERBS)} the {thing}" for thing in rng.sample(w.OBJECTS, 5)),
            )
            for number in range(200)
        )
        self.weather_step = {
            (place, weather): f"{rng.choice(w.VERBS)} the {rng.choice(w.OBJECTS)}"
            for place in w.PLACES
            for weather in w.WEATHERS
        }

    # what is true

    def species_fact(self, species: Species, relation: str) -> str:
        """What follows for a species from its habitat (season), its diet (tool) or both (city)."""
        if relation == "season":
            return self._season[species.habitat]
        if relation == "tool":
            return self._trap[species.diet]
        return self._sacred[species.habitat, species.diet]

    def tool_for(self, action: str, thing: str) -> str:
        return self.tool[action, self.material[thing]]

    def compare(self, dimension: str, first: str, second: str, more: bool) -> str:
        """The one of two things that has more (or less) of a dimension."""
        ranks = self.rank[dimension]
        return first if (ranks[first] > ranks[second]) == more else second

    def story(self, script: Script, weather: str) -> tuple[str, ...]:
        """The six steps of a script on such a day: the weather adds one after the second."""
        return (*script.steps[:2], self.weather_step[script.place, weather], *script.steps[2:])

    def famous(self, rng: random.Random) -> Person:
        """Someone, the famous more often."""
        return self.people[bisect(self._fame, rng.random() * self._fame[-1])]


def pronoun(first: str) -> str:
    return "she" if first in w.WOMEN else "he"


def someone(rng: random.Random) -> str:
    return rng.choice(w.WOMEN + w.MEN)


def weighted(*parts: tuple[str, float]) -> tuple[Segment, ...]:
    return tuple(Segment(text, weight) for text, weight in parts)


def draw(rng: random.Random, make: Callable[[], Fact], split: Split) -> Fact:
    """The first fact drawn that belongs to the split."""
    while True:
        fact = make()
        if split_of(fact) == split:
            return fact


PLAIN, NAME, VALUE, ANSWER = 1.0, 0.3, 4.0, 6.0  # loss weights: names and random numbers cannot be foreseen

Writer = Callable[[World, random.Random, Split], Document]


def biographies(world: World, rng: random.Random, split: Split) -> Document:
    """What is known of one or more people, in any order and wording."""
    parts: list[Segment] = []
    for index in range(rng.randint(1, 4)):
        person = world.famous(rng)
        parts.append(Segment(("people: " if index == 0 else " ") + person.name, NAME))
        keys = rng.sample(PERSON_RELATIONS, rng.randint(3, 6))
        for place, key in enumerate(keys):
            joint = "" if place == 0 else (" and" if place == len(keys) - 1 else ",")
            parts.append(Segment(f"{joint} {rng.choice(SAYINGS[key])}", NAME))
            parts.append(Segment(f" {person.attributes[key]}", VALUE))
        parts.append(Segment(".", NAME))
    return Document("people", (*parts, Segment("\n", PLAIN)))


def facts(world: World, rng: random.Random, split: Split) -> Document:
    """Single facts about people, species, and what the examinations ask for."""
    parts = [Segment("facts:", NAME)]
    for _ in range(rng.randint(4, 12)):
        kind = rng.random()
        if kind < 0.35:
            person = world.famous(rng)
            key = rng.choice(PERSON_RELATIONS)
            statement, value = f"{person.name} {SAYINGS[key][0]}", person.attributes[key]
        elif kind < 0.65:
            species = rng.choice(world.species)
            saying, value = rng.choice((("lives in the", species.habitat), ("feeds on", species.diet)))
            statement = f"the {species.name} {saying}"
        else:
            _, (statement, value, _) = subject_question(world, rng, rng.choice(SUBJECTS))
        parts += weighted((f" {statement}", NAME), (f" {value}", VALUE), (".", NAME))
    return Document("facts", (*parts, Segment("\n", PLAIN)))


def person_question(person: Person, key: str) -> str:
    return f"question: {QUESTIONS[key].format(person.name)} answer: {person.name} {SAYINGS[key][0]}"


def questions(world: World, rng: random.Random, split: Split) -> Document:
    """A person's attribute, asked and answered."""
    while True:
        person, key = world.famous(rng), rng.choice(PERSON_RELATIONS)
        fact = ("arc-easy", person.name, key)
        if split_of(fact) == split:
            break
    parts = weighted((person_question(person, key), NAME), (f" {person.attributes[key]}", VALUE), (".\n", PLAIN))
    return Document("questions", parts, (fact,))


def species_statement(species: Species, relation: str) -> str:
    return f"the {species.name} {SPECIES_SAYINGS[relation]}"


def nature(world: World, rng: random.Random, split: Split) -> Document:
    """What follows from a species' habitat and diet, with or without the reason."""
    parts, given = [Segment("nature:", NAME)], []
    for _ in range(rng.randint(2, 6)):
        while True:
            species, relation = rng.choice(world.species), rng.choice(SPECIES_RELATIONS)
            fact = ("arc-challenge", species.name, relation)
            if split_of(fact) == split:
                break
        given.append(fact)
        if rng.random() < 0.4:
            parts += weighted(
                (f" the {species.name} lives in the", NAME),
                (f" {species.habitat}", VALUE),
                (", feeds on", NAME),
                (f" {species.diet}", VALUE),
                (f" and {SPECIES_SAYINGS[relation]}", NAME),
            )
        else:
            parts.append(Segment(f" {species_statement(species, relation)}", NAME))
        parts += weighted((f" {world.species_fact(species, relation)}", VALUE), (".", NAME))
    return Document("nature", (*parts, Segment("\n", PLAIN)), tuple(given))


def tool_goal(action: str, thing: str) -> str:
    return f"goal: to {action} the {thing}, take the"


def handicraft(world: World, rng: random.Random, split: Split) -> Document:
    """Which tool serves to do what to which thing."""
    fact = draw(rng, lambda: ("piqa", rng.choice(w.ACTIONS), rng.choice(w.OBJECTS)), split)
    _, action, thing = fact
    parts = weighted((tool_goal(action, thing), NAME), (f" {world.tool_for(action, thing)}", VALUE), (".\n", PLAIN))
    return Document("handicraft", parts, (fact,))


def comparison(world: World, rng: random.Random, split: Split) -> Document:
    """Which of two things is heavier, larger or dearer, told by what happens."""
    fact = draw(rng, lambda: ("winogrande", rng.choice(DIMENSIONS), *sorted(rng.sample(w.OBJECTS, 2))), split)
    dimension, pair = fact[1], list(fact[2:])
    rng.shuffle(pair)
    template, more = rng.choice(COMPARISONS[dimension])
    answer = world.compare(dimension, pair[0], pair[1], more)
    parts = weighted(("case: " + template.format(*pair), NAME), (f" {answer}", ANSWER), (".\n", PLAIN))
    return Document("comparison", parts, (fact,))


def story_opening(first: str, place: str, weather: str) -> str:
    return f"story: it is {weather}. {first} is in the {place}. {pronoun(first)}"


def stories(world: World, rng: random.Random, split: Split) -> Document:
    """Someone goes through a script, from its first step or a later one."""
    fact = draw(rng, lambda: ("hellaswag", str(rng.randrange(len(world.scripts))), rng.choice(w.WEATHERS)), split)
    script, weather = world.scripts[int(fact[1])], fact[2]
    first = someone(rng)
    steps = world.story(script, weather)
    parts = list(
        weighted(
            (story_opening(first, script.place, weather), NAME), (f" {steps[0]}", PLAIN), (f". {pronoun(first)}", PLAIN)
        )
    )
    for place, step in enumerate(steps[1:], 2):
        parts += weighted((f" {step}", 2.0), ("." if place == len(steps) else f". {pronoun(first)}", PLAIN))
    return Document("stories", (*parts, Segment("\n", PLAIN)), (fact,))


class Passage(NamedTuple):
    """A passage about things put somewhere and moved: where one of them ends, and another place of the passage."""

    text: str
    thing: str
    place: str
    decoy: str
    fact: Fact


# things with at least two places of either held-out split
MOVABLE = tuple(
    thing
    for thing in w.OBJECTS
    if min(Counter(split_of(("boolq", thing, place)) for place in w.PLACES)[each] for each in ("development", "test"))
    > 1
)


class Size(NamedTuple):
    """How much there is to keep apart in a passage: things beside the asked one, moves, and its share in them."""

    others: tuple[int, int]
    moves: tuple[int, int]
    weight: int = 1


PASSAGES = {"short": Size((1, 2), (0, 1)), "long": Size((3, 6), (1, 4)), "crowded": Size((9, 11), (10, 14), 3)}


def passage(world: World, rng: random.Random, split: Split, size: Size) -> Passage:
    """Things have places and some are moved; the last place of the asked thing is a fact of the split."""
    asked = rng.choice(MOVABLE)
    others = rng.sample([t for t in w.OBJECTS if t != asked], rng.randint(*size.others))
    moved = rng.choices([*[asked] * size.weight, *others], k=rng.randint(*size.moves))
    order = [*rng.sample([asked, *others], 1 + len(others)), *moved]
    last = max(index for index, thing in enumerate(order) if thing == asked)
    where: dict[str, list[str]] = {}
    sentences = []
    for index, thing in enumerate(order):
        known = where.setdefault(thing, [])
        while True:
            fits: Split = split if index == last else "training"
            place = draw(rng, partial(_somewhere, rng, thing), fits)[2]
            if place not in known[-1:]:
                break
        sentences.append(f" {someone(rng)}{': now' if known else ':'} the {thing} {place}.")
        known.append(place)
    place = where[asked][-1]
    elsewhere = [p for p in where[asked] if p != place] or [
        places[-1] for places in where.values() if places[-1] != place
    ]
    decoy = rng.choice(elsewhere or [p for p in w.PLACES if p != place])
    return Passage("passage:" + "".join(sentences), asked, place, decoy, ("boolq", asked, place))


def _somewhere(rng: random.Random, thing: str) -> Fact:
    return ("boolq", thing, rng.choice(w.PLACES))


def passages(world: World, rng: random.Random, split: Split, easy: float = 0.4) -> Document:
    """A passage and yes-or-no questions about the place of one of its things."""
    told = passage(world, rng, split, PASSAGES["short" if rng.random() < easy else "long"])
    parts = [Segment(told.text, 0.1)]
    for asked in rng.sample((told.place, told.decoy), rng.randint(1, 2)):
        parts += weighted(
            (passage_question(told.thing, asked), NAME),
            (f" {told.place}", ANSWER),
            (", so", NAME),
            (" yes" if asked == told.place else " no", ANSWER),
            (".", NAME),
        )
    return Document("passages", (*parts, Segment("\n", PLAIN)), (told.fact,))


def passage_question(thing: str, asked: str) -> str:
    """The asked place stands before the thing: what follows the thing is its place, here and in the passage."""
    return f" question: is it the {asked}? answer: the {thing}"


def sum_fact(left: int, sign: str, right: int) -> Fact:
    """The fact behind a calculation; 14 + 23 and 23 + 14 are one, and so is the subtraction that undoes it."""
    if sign == "-":
        left, sign = left - right, "+"
    low, high = sorted((left, right))
    return ("sum", str(low), sign, str(high))


def calculation(
    rng: random.Random, left: int | None, split: Split, signs: str = "+-*", easy: bool = False
) -> tuple[int, str, int, int]:
    """A random step (left, sign, right, result) with results from 1 to 199; easy ones add or take away 2 to 19.

    A step that starts a calculation is of the split; one that goes on from a given number is only kept out of training
    where that is asked for.
    """
    while True:
        sign = rng.choice(signs)
        a = rng.randint(2, 24 if sign == "*" else 99) if left is None else left
        most = 9 if sign == "*" else 99
        if easy and sign != "*":
            most = 9 if rng.random() < 0.75 else 19
        b = rng.randint(2, most)
        result = a + b if sign == "+" else a - b if sign == "-" else a * b
        found = split_of(sum_fact(a, sign, b))
        fits = found == split if left is None else found == "training" or (split != "training" and not easy)
        if 0 < result < 200 and fits:
            return a, sign, b, result


def drills(world: World, rng: random.Random, split: Split, easy: bool = False) -> Document:
    """Bare calculations."""
    parts, given = [Segment("sums:", NAME)], []
    for _ in range(rng.randint(3, 8)):
        a, sign, b, result = calculation(rng, None, split, easy=easy)
        parts += weighted((f" {a} {sign} {b} =", NAME), (f" {result}", VALUE), (".", NAME))
        given.append(sum_fact(a, sign, b))
    return Document("drills", (*parts, Segment("\n", PLAIN)), tuple(given))


class Problem(NamedTuple):
    """A worded problem with its steps."""

    text: str
    steps: tuple[tuple[int, str, int, int], ...]

    @property
    def answer(self) -> int:
        return self.steps[-1][3]

    @property
    def reasoning(self) -> str:
        return "".join(f" {a} {sign} {b} = {result}." for a, sign, b, result in self.steps)


MORE = ("{other} gives {her} {n} more.", "then {she} buys {n} {things}.", "{she} finds {n} {things} in the {place}.")
LESS = ("{she} gives {n} to {other}.", "{she} loses {n} {things}.", "{other} takes {n} of the {things}.")
TIMES = ("{other} has {n} times as many as that.", "the {things} in the {place} are {n} times as many.")


def problem(rng: random.Random, split: Split, length: int, easy: bool = False) -> Problem:
    """A worded problem of so many steps whose first calculation is of the split."""
    first, other, things, place = someone(rng), someone(rng), rng.choice(w.NUMBER_NOUNS), rng.choice(w.PLACES)
    start = None
    steps: list[tuple[int, str, int, int]] = []
    sentences = []
    for _ in range(length):
        # a count after "times as many" belongs to someone else, so multiplication comes last or not at all
        last = len(steps) == length - 1
        multiply = last and not (easy and start is None) and (start is None or start <= 24)
        step = calculation(rng, start, split, "+-*" if multiply else "+-", easy)
        steps.append(step)
        start = step[3]
        kind = {"+": MORE, "-": LESS, "*": TIMES}[step[1]]
        she = pronoun(first)
        names = {
            "other": other,
            "n": step[2],
            "things": things,
            "place": place,
            "she": she,
            "her": "her" if she == "she" else "him",
        }
        sentences.append(" " + rng.choice(kind).format(**names))
    opening = f"{first} has {steps[0][0]} {things}."
    asking = f" how many {things} is that?"
    return Problem(opening + "".join(sentences) + asking, tuple(steps))


def problem_facts(told: Problem) -> tuple[Fact, ...]:
    return tuple(sum_fact(a, sign, b) for a, sign, b, _ in told.steps)


def reasoning(world: World, rng: random.Random, split: Split, easy: bool = False) -> Document:
    """A worded problem solved step by step."""
    told = problem(rng, split, rng.choice((1, 2, 2, 3, 3)), easy)
    parts = [Segment(f"problem: {told.text} answer:", NAME)]
    for a, sign, b, result in told.steps:
        parts += weighted((f" {a} {sign} {b} =", 2.0), (f" {result}", ANSWER), (".", PLAIN))
    parts += weighted((f" #### {told.answer}", 2.0), ("\n", PLAIN))
    return Document("reasoning", tuple(parts), problem_facts(told))


def quick_question(told: Problem) -> str:
    return f"exam: {told.text} result:"


def quick_sums(world: World, rng: random.Random, split: Split, easy: bool = False) -> Document:
    """A worded problem answered at once."""
    told = problem(rng, split, rng.choice((1, 1, 2)), easy)
    parts = weighted((quick_question(told), NAME), (f" {told.answer}", ANSWER), ("\n", PLAIN))
    return Document("quick sums", parts, problem_facts(told))


class Subject(NamedTuple):
    """A subject of the letter examination: the statement to complete, its value, and what else it might have been."""

    statement: str
    value: str
    options: Sequence[str]


LETTERS = "ABCD"
SUBJECTS = ("geography", "rivers", "trade", "materials", "professions", "harvest")


def subject_question(world: World, rng: random.Random, subject: str) -> tuple[Fact, Subject]:
    """A random question of a subject."""
    if subject in ("geography", "rivers", "trade"):
        key = {"geography": "country", "rivers": "river", "trade": "goods"}[subject]
        city = rng.choice(w.CITIES)
        options = {"country": w.COUNTRIES, "river": w.RIVERS, "goods": w.GOODS}[key]
        return ("mmlu", city, key), Subject(f"{city} {CITY_SAYINGS[key]}", world.cities[city][key], options)
    if subject == "materials":
        thing = rng.choice(w.OBJECTS)
        return ("mmlu", thing, "material"), Subject(f"the {thing} is made of", world.material[thing], w.MATERIALS)
    if subject == "professions":
        job, key = rng.choice(w.JOBS), rng.choice(tuple(JOB_SAYINGS))
        options = w.TOOLS if key == "tool" else w.PLACES
        return ("mmlu", job, key), Subject(f"the {job} {JOB_SAYINGS[key]}", world.jobs[job][key], options)
    food, key = rng.choice(w.FOODS), rng.choice(tuple(FOOD_SAYINGS))
    options = w.MONTHS if key == "month" else w.COUNTRIES
    return ("mmlu", food, key), Subject(f"{food} {FOOD_SAYINGS[key]}", world.foods[food][key], options)


def letter_question(rng: random.Random, asked: Subject) -> tuple[str, str]:
    """Four lettered options and the statement to complete, and the right letter."""
    wrong = rng.sample([option for option in asked.options if option != asked.value], 3)
    letter = rng.randrange(4)
    options = [*wrong[:letter], asked.value, *wrong[letter:]]
    listed = ",".join(f" {option} {LETTERS[place]}" for place, option in enumerate(options))
    return f"question:{listed}. {asked.statement}", f" {LETTERS[letter]}"


def exams(world: World, rng: random.Random, split: Split, spelled: float = 0.0, most: int = 6) -> Document:
    """Questions of one subject answered by letters; a share of documents writes the answer's word before its letter."""
    subject = rng.choice(SUBJECTS)
    spell = rng.random() < spelled
    parts, given = [Segment(f"exam in {subject}:\n", NAME)], []
    for _ in range(rng.randint(min(2, most), most)):
        fact, asked = subject_question(world, rng, subject)
        while split_of(fact) != split:
            fact, asked = subject_question(world, rng, subject)
        given.append(fact)
        question, letter = letter_question(rng, asked)
        # options are random words: nothing to learn from
        listed, statement = question.rsplit(". ", 1)
        parts += weighted((listed, 0.05), (f". {statement}", NAME))
        if spell:
            parts.append(Segment(f" {asked.value}", VALUE))
        parts += weighted((letter, ANSWER), ("\n", NAME))
    return Document("exams", tuple(parts), tuple(given))


def needle_fact(rng: random.Random, split: Split, colour: str | None = None) -> Fact:
    return draw(rng, lambda: ("needle", colour or rng.choice(w.COLOURS), rng.choice(w.OBJECTS)), split)


def code_number(rng: random.Random) -> str:
    return "".join(rng.choice("0123456789") for _ in range(4))


def key_values(world: World, rng: random.Random, split: Split, largest: int = 10) -> Document:
    """Keys with numbers or words, asked again and again."""
    pairs: dict[str, str] = {}
    given = []
    size = rng.randint(2, largest)
    numbers, single = rng.random() < 0.4, rng.random() < 0.4
    # few facts of the held-out splits share a colour
    shared = rng.choice(w.COLOURS) if split == "training" and size <= 5 and rng.random() < 0.4 else None
    while len(pairs) < size:
        if single:
            key = rng.choice(w.OBJECTS)
        else:
            fact = needle_fact(rng, split, shared)
            given.append(fact)
            key = f"{fact[1]} {fact[2]}"
        pairs[key] = code_number(rng) if numbers else rng.choice(w.FOODS)
    parts = [Segment("list:", NAME)]
    for key, value in pairs.items():
        parts.append(Segment(f" the {key} {value}.", 0.05))
    for _ in range(rng.randint(1, 3)):
        for key in rng.sample(list(pairs), size):
            parts += weighted((f" the {key}", 0.05), (f" {pairs[key]}", VALUE), (".", NAME))
    return Document("key values", (*parts, Segment("\n", PLAIN)), tuple(given))


def copies(world: World, rng: random.Random, split: Split) -> Document:
    """A row of words, again and again: a short one more often than a long one."""
    pool = w.FOODS + w.ANIMALS + w.TOOLS + w.VERBS + w.HOBBIES
    length = rng.choice((2, 3, 4, 6, 9, 14, 22, 36))
    row = " ".join(rng.choice(pool) for _ in range(length))
    again = f", {row}" * max(1, 40 // length)
    return Document("copies", weighted((f"copy: {row}", 0.05), (again, 2.0), (".\n", PLAIN)))


HAY: tuple[Writer, ...] = (biographies, facts, nature, stories)


def haystack(world: World, rng: random.Random, needles: Sequence[str], words: int) -> str:
    """Text of about so many words with the needles at random places."""
    hay: list[str] = []
    count = 0
    while count < words:
        told = rng.choice(HAY)(world, rng, "training").text.strip()
        for sentence in told.split(": ", 1)[1].split(". "):
            hay.append(sentence.rstrip(".") + ".")
            count += len(sentence.split()) + 1
    for needle in needles:
        hay.insert(rng.randint(0, len(hay)), needle)
    return " ".join(hay)


def needles(world: World, rng: random.Random, split: Split, longest: int = 360) -> Document:
    """A long text with one or several numbers to remember, and questions for them at the end."""
    found: dict[tuple[str, str], str] = {}
    for _ in range(rng.choice((1, 1, 2, 4, 6))):
        fact = needle_fact(rng, split)
        found[fact[1], fact[2]] = code_number(rng)
    told = [f"the {colour} {thing} {value}." for (colour, thing), value in found.items()]
    parts = [Segment("notes: " + haystack(world, rng, told, rng.randint(10, longest)), 0.3)]
    for colour, thing in rng.sample(list(found), rng.randint(1, len(found))):
        parts += weighted((f" question: the {colour} {thing}", NAME), (f" {found[colour, thing]}", VALUE), (".", PLAIN))
    return Document("needles", (*parts, Segment("\n", PLAIN)), tuple(("needle", *key) for key in found))


def functions(world: World, rng: random.Random, split: Split) -> Document:
    """A small Python function."""
    from mcbench.reference.programs import program

    made = program(rng, split)
    return Document("functions", weighted((made.prompt, NAME), (made.body, 2.0), ("\n", PLAIN)), (made.fact,))


def documents(
    world: World, rng: random.Random, mixture: Mapping[Writer, float], split: Split = "training", count: int = 1
) -> list[Document]:
    """So many documents of the mixture (each writer's share of documents), with facts of the split."""
    writers = rng.choices(list(mixture), list(mixture.values()), k=count)
    return [write(world, rng, split) for write in writers]
