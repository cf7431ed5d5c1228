"""A small seeded world: who lives where, what things are made of, how stories go, and texts that tell of it.

Every document names the facts it gives away. A fact for which `held_out` is true is never given away in training or
calibration text, so evaluation items are made of such facts alone.
"""

from __future__ import annotations

import random
import zlib
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from mcbench.reference import words as w

Fact = tuple[str, ...]

# the share of facts that training never sees, by the family whose items they make
HELD_OUT = {
    "piqa": 0.36,
    "arc-easy": 0.25,
    "arc-challenge": 0.46,
    "boolq": 0.20,
    "hellaswag": 0.25,
    "winogrande": 0.20,
    "sum": 0.20,
    "mmlu": 0.25,
    "humaneval": 0.25,
    "needle": 0.20,
}
SPECIES_RELATIONS = ("season", "tool", "city")
PERSON_RELATIONS = ("city", "job", "pet", "food", "hobby", "colour")
DIMENSIONS = ("heavier", "larger", "dearer")


def held_out(fact: Fact) -> bool:
    """Whether training must not give this fact away."""
    return zlib.crc32("|".join(fact).encode()) % 1000 < 1000 * HELD_OUT[fact[0]]


class Segment(NamedTuple):
    """A piece of a document and what its tokens weigh in the training loss."""

    text: str
    weight: float


@dataclass(frozen=True)
class Document:
    """A text in weighted segments, with the facts it gives away."""

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

    def __init__(self, seed: int = 0, people: int = 1200) -> None:
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
            for number in range(120)
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


def draw(rng: random.Random, make: Callable[[], Fact], held: bool) -> Fact:
    """The first fact drawn that is (or is not) held out."""
    while True:
        fact = make()
        if held_out(fact) == held:
            return fact


PLAIN, NAME, VALUE, ANSWER = 1.0, 0.3, 4.0, 6.0  # loss weights: names and random numbers cannot be foreseen

Writer = Callable[[World, random.Random, bool], Document]


def biographies(world: World, rng: random.Random, held: bool) -> Document:
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


def facts(world: World, rng: random.Random, held: bool) -> Document:
    """Single facts about people, cities, species and things."""
    parts = [Segment("facts:", NAME)]
    for _ in range(rng.randint(4, 12)):
        kind = rng.random()
        if kind < 0.45:
            person = world.famous(rng)
            key = rng.choice(PERSON_RELATIONS)
            subject, saying, value = person.name, SAYINGS[key][0], person.attributes[key]
        elif kind < 0.60:
            city = rng.choice(w.CITIES)
            key = rng.choice(tuple(CITY_SAYINGS))
            subject, saying, value = city, CITY_SAYINGS[key], world.cities[city][key]
        elif kind < 0.90:
            species = rng.choice(world.species)
            subject = f"the {species.name}"
            saying, value = rng.choice((("lives in the", species.habitat), ("feeds on", species.diet)))
        else:
            thing = rng.choice(w.OBJECTS)
            subject, saying, value = f"the {thing}", "is made of", world.material[thing]
        parts += weighted((f" {subject} {saying}", NAME), (f" {value}", VALUE), (".", NAME))
    return Document("facts", (*parts, Segment("\n", PLAIN)))


def person_question(person: Person, key: str) -> str:
    return f"question: {QUESTIONS[key].format(person.name)} answer: {person.name} {SAYINGS[key][0]}"


def questions(world: World, rng: random.Random, held: bool) -> Document:
    """A person's attribute, asked and answered."""
    while True:
        person, key = world.famous(rng), rng.choice(PERSON_RELATIONS)
        fact = ("arc-easy", person.name, key)
        if held_out(fact) == held:
            break
    parts = weighted((person_question(person, key), NAME), (f" {person.attributes[key]}", VALUE), (".\n", PLAIN))
    return Document("questions", parts, (fact,))


def species_statement(species: Species, relation: str) -> str:
    return f"the {species.name} {SPECIES_SAYINGS[relation]}"


def nature(world: World, rng: random.Random, held: bool) -> Document:
    """What follows from a species' habitat and diet, with or without the reason."""
    parts, given = [Segment("nature:", NAME)], []
    for _ in range(rng.randint(2, 6)):
        while True:
            species, relation = rng.choice(world.species), rng.choice(SPECIES_RELATIONS)
            fact = ("arc-challenge", species.name, relation)
            if held_out(fact) == held:
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


def handicraft(world: World, rng: random.Random, held: bool) -> Document:
    """Which tool serves to do what to which thing."""
    fact = draw(rng, lambda: ("piqa", rng.choice(w.ACTIONS), rng.choice(w.OBJECTS)), held)
    _, action, thing = fact
    parts = weighted((tool_goal(action, thing), NAME), (f" {world.tool_for(action, thing)}", VALUE), (".\n", PLAIN))
    return Document("handicraft", parts, (fact,))


def comparison(world: World, rng: random.Random, held: bool) -> Document:
    """Which of two things is heavier, larger or dearer, told by what happens."""
    fact = draw(rng, lambda: ("winogrande", rng.choice(DIMENSIONS), *sorted(rng.sample(w.OBJECTS, 2))), held)
    dimension, pair = fact[1], list(fact[2:])
    rng.shuffle(pair)
    template, more = rng.choice(COMPARISONS[dimension])
    answer = world.compare(dimension, pair[0], pair[1], more)
    parts = weighted(("case: " + template.format(*pair), NAME), (f" {answer}", ANSWER), (".\n", PLAIN))
    return Document("comparison", parts, (fact,))


def story_opening(first: str, place: str, weather: str) -> str:
    return f"story: it is {weather}. {first} is in the {place}. {pronoun(first)}"


def stories(world: World, rng: random.Random, held: bool) -> Document:
    """Someone goes through a script, from its first step or a later one."""
    fact = draw(rng, lambda: ("hellaswag", str(rng.randrange(len(world.scripts))), rng.choice(w.WEATHERS)), held)
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


# things with at least two places where training never leaves them
MOVABLE = tuple(t for t in w.OBJECTS if sum(held_out(("boolq", t, place)) for place in w.PLACES) > 1)


def passage(world: World, rng: random.Random, held: bool, easy: bool = False) -> Passage:
    """Three to five things are put down and some are moved; the last place of the asked thing is held out (or not)."""
    asked = rng.choice(MOVABLE)
    things = [
        asked,
        *rng.sample([t for t in w.OBJECTS if t != asked], rng.randint(0, 2) if easy else rng.randint(2, 4)),
    ]
    rng.shuffle(things)
    where: dict[str, list[str]] = {}
    sentences = []

    def put(thing: str, verb: str, hold: bool) -> None:
        place = draw(rng, lambda: ("boolq", thing, rng.choice(w.PLACES)), hold)[2]
        while where.get(thing, [""])[-1] == place:
            place = draw(rng, lambda: ("boolq", thing, rng.choice(w.PLACES)), hold)[2]
        where.setdefault(thing, []).append(place)
        sentences.append(f" {someone(rng)} {verb} the {thing} {'in' if verb == 'puts' else 'to'} the {place}.")

    moves = [(thing, "puts") for thing in things] + [
        (rng.choice(things), "moves") for _ in range(rng.randint(0, 1) if easy else rng.randint(1, 3))
    ]
    last = max(index for index, (thing, _) in enumerate(moves) if thing == asked)
    for index, (thing, verb) in enumerate(moves):
        put(thing, verb, held and index == last)
    place = where[asked][-1]
    others = [p for p in where[asked][:-1] if p != place] or [
        places[-1] for thing, places in where.items() if places[-1] != place
    ]
    decoy = rng.choice(others) if others else rng.choice([p for p in w.PLACES if p != place])
    return Passage("passage:" + "".join(sentences), asked, place, decoy, ("boolq", asked, place))


def passages(world: World, rng: random.Random, held: bool, easy: float = 0.0) -> Document:
    """A passage and a yes-or-no question about it."""
    told = passage(world, rng, held, easy > 0 and rng.random() < easy)
    asked = rng.choice((told.place, told.decoy))
    parts = weighted(
        (told.text, NAME),
        (passage_question(told.thing, asked), NAME),
        (f" {told.place}", ANSWER),
        (", so", PLAIN),
        (" yes" if asked == told.place else " no", ANSWER),
        (".\n", PLAIN),
    )
    return Document("passages", parts, (told.fact,))


def passage_question(thing: str, asked: str) -> str:
    return f" question: is the {thing} in the {asked}? answer: the {thing} is in the"


def sum_fact(left: int, sign: str, right: int) -> Fact:
    """The fact behind a calculation; 14 + 23 and 23 + 14 are one, and so is the subtraction that undoes it."""
    if sign == "-":
        left, sign = left - right, "+"
    low, high = sorted((left, right))
    return ("sum", str(low), sign, str(high))


def calculation(
    rng: random.Random, left: int | None, held: bool, signs: str = "+-*", easy: bool = False
) -> tuple[int, str, int, int]:
    """A random step (left, sign, right, result) with results from 1 to 199; easy ones add or take away 2 to 19.

    Held out are steps that start a calculation; one that goes on from a given number is only kept out of training.
    """
    while True:
        sign = rng.choice(signs)
        a = rng.randint(2, 24 if sign == "*" else 99) if left is None else left
        most = 9 if sign == "*" else 99
        if easy and sign != "*":
            most = 9 if rng.random() < 0.75 else 19
        b = rng.randint(2, most)
        result = a + b if sign == "+" else a - b if sign == "-" else a * b
        known = not held_out(sum_fact(a, sign, b))
        fits = known != held if left is None else known or (held and not easy)
        if 0 < result < 200 and fits:
            return a, sign, b, result


def drills(world: World, rng: random.Random, held: bool, easy: bool = False) -> Document:
    """Bare calculations."""
    parts, given = [Segment("sums:", NAME)], []
    for _ in range(rng.randint(3, 8)):
        a, sign, b, result = calculation(rng, None, held, easy=easy)
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


def problem(rng: random.Random, held: bool, length: int, easy: bool = False) -> Problem:
    """A worded problem of so many steps; held out: its first calculation never occurs in training."""
    first, other, things, place = someone(rng), someone(rng), rng.choice(w.NUMBER_NOUNS), rng.choice(w.PLACES)
    start = None
    steps: list[tuple[int, str, int, int]] = []
    sentences = []
    for _ in range(length):
        # a count after "times as many" belongs to someone else, so multiplication comes last or not at all
        last = len(steps) == length - 1
        multiply = last and not (easy and start is None) and (start is None or start <= 24)
        step = calculation(rng, start, held, "+-*" if multiply else "+-", easy)
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


def reasoning(world: World, rng: random.Random, held: bool, easy: bool = False) -> Document:
    """A worded problem solved step by step."""
    told = problem(rng, held, rng.choice((1, 2, 2, 3, 3)), easy)
    parts = [Segment(f"problem: {told.text} answer:", NAME)]
    for a, sign, b, result in told.steps:
        parts += weighted((f" {a} {sign} {b} =", 2.0), (f" {result}", ANSWER), (".", PLAIN))
    parts += weighted((f" #### {told.answer}", 2.0), ("\n", PLAIN))
    return Document("reasoning", tuple(parts), problem_facts(told))


def quick_question(told: Problem) -> str:
    return f"exam: {told.text} result:"


def quick_sums(world: World, rng: random.Random, held: bool, easy: bool = False) -> Document:
    """A worded problem answered at once."""
    told = problem(rng, held, rng.choice((1, 1, 2)), easy)
    parts = weighted((quick_question(told), NAME), (f" {told.answer}", ANSWER), ("\n", PLAIN))
    return Document("quick sums", parts, problem_facts(told))


class Subject(NamedTuple):
    """A subject of the letter examination: the statement to complete, its value, and what else it might have been."""

    statement: str
    value: str
    options: Sequence[str]


LETTERS = "ABCD"
SUBJECTS = ("geography", "rivers", "trade", "biology", "materials", "people")


def subject_question(world: World, rng: random.Random, subject: str) -> tuple[Fact, Subject]:
    """A random question of a subject."""
    if subject in ("geography", "rivers", "trade"):
        key = {"geography": "country", "rivers": "river", "trade": "goods"}[subject]
        city = rng.choice(w.CITIES)
        options = {"country": w.COUNTRIES, "river": w.RIVERS, "goods": w.GOODS}[key]
        return ("mmlu", city, key), Subject(f"{city} {CITY_SAYINGS[key]}", world.cities[city][key], options)
    if subject == "biology":
        species = rng.choice(world.species)
        if rng.random() < 0.5:
            return ("mmlu", species.name, "habitat"), Subject(
                f"the {species.name} lives in the", species.habitat, w.HABITATS
            )
        return ("mmlu", species.name, "diet"), Subject(f"the {species.name} feeds on", species.diet, w.DIETS)
    if subject == "materials":
        thing = rng.choice(w.OBJECTS)
        return ("mmlu", thing, "material"), Subject(f"the {thing} is made of", world.material[thing], w.MATERIALS)
    person = world.famous(rng)
    key = rng.choice(PERSON_RELATIONS)
    statement = f"{person.name} {SAYINGS[key][0]}"
    return ("mmlu", person.name, key), Subject(statement, person.attributes[key], ATTRIBUTE_WORDS[key])


def letter_question(rng: random.Random, asked: Subject, cloze: bool = True) -> tuple[str, str]:
    """The question with four lettered options, and the right letter; as a cloze, the statement comes last."""
    wrong = rng.sample([option for option in asked.options if option != asked.value], 3)
    letter = rng.randrange(4)
    options = [*wrong[:letter], asked.value, *wrong[letter:]]
    listed = ",".join(f" {option} {LETTERS[place]}" for place, option in enumerate(options))
    question = f"question:{listed}. {asked.statement}" if cloze else f"{asked.statement}:{listed}. answer:"
    return question, f" {LETTERS[letter]}"


def exams(world: World, rng: random.Random, held: bool, clozes: float = 0.0, spelled: float = 0.0) -> Document:
    """Questions of one subject answered by letters; a share asks in clozes, and of these a share spells answers out."""
    subject = rng.choice(SUBJECTS)
    cloze = clozes > 0 and rng.random() < clozes
    spell = spelled > 0 and rng.random() < spelled
    parts, given = [Segment(f"exam in {subject}:\n", NAME)], []
    for _ in range(rng.randint(2, 6)):
        fact, asked = subject_question(world, rng, subject)
        while held_out(fact) != held:
            fact, asked = subject_question(world, rng, subject)
        given.append(fact)
        question, letter = letter_question(rng, asked, cloze)
        if cloze and spell:
            question += f" {asked.value}"
        parts += weighted((question, NAME), (letter, ANSWER), ("\n", PLAIN))
    return Document("exams", tuple(parts), tuple(given))


def needle_fact(rng: random.Random, held: bool, colour: str | None = None) -> Fact:
    return draw(rng, lambda: ("needle", colour or rng.choice(w.COLOURS), rng.choice(w.OBJECTS)), held)


def code_number(rng: random.Random) -> str:
    return "".join(rng.choice("0123456789") for _ in range(4))


def key_values(world: World, rng: random.Random, held: bool, largest: int = 10) -> Document:
    """Keys with numbers or words, asked again and again."""
    pairs: dict[str, str] = {}
    given = []
    size = rng.randint(2, largest)
    numbers, single = rng.random() < 0.4, rng.random() < 0.4
    shared = rng.choice(w.COLOURS) if size <= 5 and rng.random() < 0.4 else None
    while len(pairs) < size:
        if single:
            key = rng.choice(w.OBJECTS)
        else:
            fact = needle_fact(rng, held, shared)
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


def copies(world: World, rng: random.Random, held: bool) -> Document:
    """A row of words, again and again: a short one more often than a long one."""
    pool = w.FOODS + w.ANIMALS + w.TOOLS + w.VERBS + w.HOBBIES
    length = rng.choice((2, 3, 4, 6, 9, 14, 22, 36))
    row = " ".join(rng.choice(pool) for _ in range(length))
    again = f", {row}" * max(1, 40 // length)
    return Document("copies", weighted((f"copy: {row}", 0.05), (again, 2.0), (".\n", PLAIN)))


HAY: tuple[Writer, ...] = (biographies, facts, nature, stories)


def haystack(world: World, rng: random.Random, needles: Sequence[str], words: int, held: bool) -> str:
    """Text of about so many words with the needles at random places."""
    hay: list[str] = []
    count = 0
    while count < words:
        told = rng.choice(HAY)(world, rng, False).text.strip()
        for sentence in told.split(": ", 1)[1].split(". "):
            hay.append(sentence.rstrip(".") + ".")
            count += len(sentence.split()) + 1
    for needle in needles:
        hay.insert(rng.randint(0, len(hay)), needle)
    return " ".join(hay)


def needles(world: World, rng: random.Random, held: bool, longest: int = 360) -> Document:
    """A long text with one or several numbers to remember, and questions for them at the end."""
    found: dict[tuple[str, str], str] = {}
    for _ in range(rng.choice((1, 1, 2, 4, 6))):
        fact = needle_fact(rng, held)
        found[fact[1], fact[2]] = code_number(rng)
    told = [f"the {colour} {thing} {value}." for (colour, thing), value in found.items()]
    parts = [Segment("notes: " + haystack(world, rng, told, rng.randint(10, longest), held), 0.3)]
    for colour, thing in rng.sample(list(found), rng.randint(1, len(found))):
        parts += weighted((f" question: the {colour} {thing}", NAME), (f" {found[colour, thing]}", VALUE), (".", PLAIN))
    return Document("needles", (*parts, Segment("\n", PLAIN)), tuple(("needle", *key) for key in found))


def functions(world: World, rng: random.Random, held: bool) -> Document:
    """A small Python function."""
    from mcbench.reference.programs import program

    made = program(rng, held)
    return Document("functions", weighted((made.prompt, NAME), (made.body, 2.0), ("\n", PLAIN)), (made.fact,))


# the mixture: each writer's share of documents
MIXTURE: dict[Writer, float] = {
    biographies: 0.30,
    facts: 0.12,
    questions: 0.10,
    nature: 0.05,
    handicraft: 0.08,
    comparison: 0.10,
    stories: 0.06,
    passages: 0.05,
    drills: 0.04,
    reasoning: 0.07,
    quick_sums: 0.07,
    exams: 0.06,
    key_values: 0.05,
    copies: 0.01,
    needles: 0.02,
    functions: 0.06,
}


# the mixture that training ends with, and so the one to calibrate on and to measure perplexity of
LAST_MIXTURE: dict[Writer, float] = {
    biographies: 0.081,
    facts: 0.0432,
    questions: 0.03,
    nature: 0.10,
    handicraft: 0.0288,
    comparison: 0.15,
    stories: 0.06,
    partial(passages, easy=0.5): 0.13,
    partial(drills, easy=True): 0.09,
    partial(reasoning, easy=True): 0.105,
    partial(quick_sums, easy=True): 0.168,
    partial(exams, clozes=0.9, spelled=0.4): 0.12,
    key_values: 0.05,
    copies: 0.01,
    needles: 0.02,
    functions: 0.06,
}


def documents(
    world: World, rng: random.Random, mixture: dict[Writer, float] = MIXTURE, held: bool = False, count: int = 1
) -> list[Document]:
    """So many documents of the mixture; `held` makes each of held-out facts."""
    writers = rng.choices(list(mixture), list(mixture.values()), k=count)
    return [write(world, rng, held) for write in writers]
