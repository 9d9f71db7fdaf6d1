"""Word problems of our own making, in GSM8K's schema: a question, and an answer of steps that ends in ``#### n``.

The draw is endless and reproducible. A question belongs either to training or to evaluation, decided by a checksum of
its own text, so that no seed of either can ever produce a question of the other.
"""

from __future__ import annotations

import dataclasses
import random
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Literal

Split = Literal["train", "eval"]

EVAL_SHARE = 8
"""One question in eight belongs to evaluation."""


@dataclasses.dataclass(frozen=True)
class WordProblem:
    """One question and its worked answer."""

    question: str
    answer: str
    """Steps, one a line, then ``#### `` and the result."""

    @property
    def gold(self) -> str:
        """The result, a positive integer in decimal digits."""
        return self.answer.rpartition("#### ")[2]

    @property
    def prompt(self) -> str:
        """What a server is asked: GSM8K's usual completion prompt without examples."""
        return f"Question: {self.question}\nAnswer:"

    @property
    def completion(self) -> str:
        """What a perfect model says to ``prompt``."""
        return f" {self.answer}"


def split_of(question: str) -> Split:
    """Which of the two disjoint halves of all questions ``question`` belongs to."""
    return "eval" if zlib.crc32(question.encode()) % EVAL_SHARE == 0 else "train"


def draws(split: Split, seed: int) -> Iterator[WordProblem]:
    """Endless word problems of ``split``; the same for the same seed."""
    rng = random.Random(f"{split} {seed}")
    while True:
        problem = _draw(rng)
        if problem is not None and split_of(problem.question) == split:
            yield problem


_WOMEN = ["Anna", "Maria", "Sofia", "Emma", "Olivia", "Lucy", "Nora", "Ella", "Ruth", "Jane", "Alice", "Clara"]
_MEN = ["Tom", "James", "Liam", "Noah", "Ben", "Jack", "Sam", "Max", "Carl", "Paul", "Oscar", "Hugo"]
_OTHERS = ["Grandma", "Grandpa", "The teacher", "The neighbour", "The baker", "The doctor"]
_ITEMS = [
    "apples",
    "books",
    "pencils",
    "marbles",
    "stickers",
    "cookies",
    "cards",
    "eggs",
    "flowers",
    "coins",
    "shells",
    "stamps",
    "toys",
    "candies",
]
_BOXES = ["boxes", "bags", "packs", "baskets", "jars", "crates"]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

MAX_RESULT = 99_999
"""No number in a problem is larger; single-digit tokens make five digits the longest a model has to place."""


@dataclasses.dataclass(frozen=True)
class _Template:
    """Numbers to draw, ways to ask, and the steps of the answer.

    ``numbers``: ``a:2-40`` draws from a range, ``t=a*b`` derives. A step's ``[x=a+t]`` is shown as ``3+4=7``.
    """

    numbers: str
    questions: tuple[str, ...]
    steps: tuple[str, ...]


_TEMPLATES = (
    _Template(
        "a:11-400 b:3-24 c:3-24",
        (
            "{n} has {a} {it}. {He} buys {b} {bx} with {c} {it} each. How many {it} does {n} have now?",
            "{n} buys {b} {bx} of {c} {it} each and already owns {a} {it}. How many {it} does {n} own in total?",
        ),
        ("{He} buys [p=b*c] {it}.", "Now {n} has [x=a+p] {it}."),
    ),
    _Template(
        "b:3-24 c:3-24 a:2-400",
        (
            "{n} has {b} {bx} of {it} with {c} {it} in each. {He} gives {a} {it} to {m}. How many {it} are left?",
            "{n} gives {m} {a} {it} out of {b} {bx} that hold {c} {it} each. How many {it} does {n} keep?",
        ),
        ("{n} starts with [p=b*c] {it}.", "There are [x=p-a] {it} left."),
    ),
    _Template(
        "a:13-900 b:12-900",
        (
            "{n} picked {a} {it} on {d} and {b} more than that the day after. How many {it} did {n} pick in all?",
            "On {d} {n} counted {a} {it}. The next day {he} counted {b} more than that. "
            "How many {it} are that together?",
        ),
        ("The next day it was [t=a+b] {it}.", "In all that is [x=a+t] {it}."),
    ),
    _Template(
        "c:11-49 w:2-9 k:2-9",
        (
            "{n} sells {c} {it} every day. Each one costs ${w}. How much does {n} earn in {k} days?",
            "Every day {n} sells {c} {it} for ${w} each. How many dollars does {he} earn in {k} days?",
        ),
        ("{n} earns [t=c*w] dollars a day.", "In {k} days that is [x=t*k] dollars."),
    ),
    _Template(
        "g:2-12 y:4-90 t=g*y a:3-300 b=t-a",
        (
            "{n} has {a} {it} and {m} has {b} {it}. They share them equally among {g} friends. "
            "How many {it} does each friend get?",
            "{g} friends share {a} {it} from {n} and {b} {it} from {m} equally. How many {it} does each get?",
        ),
        ("Together they have [t=a+b] {it}.", "Each friend gets [x=t/g] {it}."),
    ),
    _Template(
        "a:120-999 b:20-700 c:20-900",
        (
            "A shop had {a} {it}. It sold {b} of them and then got {c} more. How many {it} does the shop have now?",
            "{n} owned {a} {it}, lost {b} of them and found {c} others. How many {it} does {n} own now?",
        ),
        ("After that loss there are [r=a-b] {it}.", "Then there are [x=r+c] {it}."),
    ),
    _Template(
        "a:12-90 k:2-9 b:12-400",
        (
            "{m} has {a} {it}. {n} has {k} times as many. They find {b} more. How many {it} do they have together?",
            "{n} has {k} times as many {it} as {m}, who has {a}. {b} more are found. How many {it} are there in all?",
        ),
        ("{n} has [p=a*k] {it}.", "They had [t=a+p] {it}.", "Now they have [x=t+b] {it}."),
    ),
    _Template(
        "p:3-29 k:3-29 r:3-90 t=p*k b=t+r",
        (
            "{n} buys {k} {it} for ${p} each and pays with ${b}. How much change does {n} get?",
            "{k} {it} cost ${p} each. {n} pays ${b} for all of them. How many dollars does {he} get back?",
        ),
        ("The {it} cost [t=k*p] dollars.", "The change is [x=b-t] dollars."),
    ),
    _Template(
        "a:4-24 b:4-24 c:4-24 e:4-24",
        (
            "There are {a} {bx} with {b} {it} and {c} {bx} with {e} {it}. How many {it} are there in total?",
            "{n} fills {a} {bx} with {b} {it} each and {m} fills {c} {bx} with {e} {it} each. "
            "How many {it} are packed?",
        ),
        ("The first {bx} hold [p=a*b] {it}.", "The others hold [q=c*e] {it}.", "In total there are [x=p+q] {it}."),
    ),
    _Template(
        "h:20-450 a=h+h b:3-300",
        (
            "{n} baked {a} {it}. {He} sold half of them and gave away {b}. How many {it} are left?",
            "Half of the {a} {it} that {n} had were sold, and {b} were given to {m}. How many {it} are left?",
        ),
        ("{n} sold [h=a/2] {it}.", "That leaves [s=a-h] {it}.", "Then there are [x=s-b] {it}."),
    ),
    _Template(
        "a:14-98 b:12-98 c:5-500",
        (
            "A hall has {a} rows of {b} seats. {c} seats are taken. How many seats are free?",
            "{n} plants {a} rows of {b} trees. {c} of the trees are cut. How many trees are left?",
        ),
        ("There are [p=a*b] of them.", "That leaves [x=p-c]."),
    ),
    _Template(
        "a:102-799 b:3-9 c:11-900",
        (
            "A train makes {b} trips with {a} people each, and a bus takes {c} more. How many people travel in all?",
            "{n} prints {b} copies of a text with {a} words and one with {c} words. How many words are printed?",
        ),
        ("The first are [p=b*a].", "In all that is [x=p+c]."),
    ),
    _Template(
        "a:12-90 b:12-90 c:12-90 k:2-9",
        (
            "{n} saves ${a} in May, ${b} in June and ${c} in July. {m} saves {k} times as much. "
            "How much does {m} save?",
            "{n} walks {a} km, {b} km and then {c} km. {m} walks {k} times as far. How many km does {m} walk?",
        ),
        ("The first two are [s=a+b].", "All three are [t=s+c].", "{m} has [x=t*k]."),
    ),
    _Template(
        "k:3-19 y:11-190 t=k*y u:6-300 b=t+u",
        (
            "{n} had {b} {it}. {He} kept {u} and put the rest into {k} {bx} equally. How many {it} are in each?",
            "{k} {bx} are filled equally with the {b} {it} of {n}, except {u} that do not fit. "
            "How many {it} does each hold?",
        ),
        ("There are [t=b-u] {it} to pack.", "Each holds [x=t/k] {it}."),
    ),
)

_ASIDES = (
    "{o} is {z} years old.",
    "{o} walks to work in {z} minutes.",
    "{o} has been awake for {z} minutes this {d}.",
    "{o} lives {z} km from the station.",
    "{o} owns {z} {thing} and does not want to sell any of them.",
    "{o} lost {z} {thing} on the way home.",
    "{o} paid ${z} for a coat last {d}.",
    "{o} waits for a bus that leaves in {z} minutes.",
)
"""Sentences with a number that does not matter: a reader has to find the ones that do."""

_STEP_NUMBER = re.compile(r"\[(\w)=(\w)([-+*/])(\w|\d)\]")


def _value(values: Mapping[str, int], left: str, operator: str, right: str) -> int:
    """The result of one operation on drawn numbers; 0 where it is not a positive integer up to ``MAX_RESULT``."""
    a, b = values[left], values[right] if right in values else int(right)
    if operator == "+":
        result = a + b
    elif operator == "-":
        result = a - b
    elif operator == "*":
        result = a * b
    else:
        result = a // b if a % b == 0 else 0
    return result if 0 < result <= MAX_RESULT else 0


def _numbers(rng: random.Random, spec: str) -> dict[str, int] | None:
    values: dict[str, int] = {}
    for item in spec.split():
        if item[1] == ":":
            low, high = item[2:].split("-")
            values[item[0]] = rng.randint(int(low), int(high))
        else:
            values[item[0]] = _value(values, item[2], item[3], item[4])
            if not values[item[0]]:
                return None
    return values


def _aside(rng: random.Random) -> str:
    sentence = rng.choice(_ASIDES)
    return sentence.format(o=rng.choice(_OTHERS), z=rng.randint(2, 59), d=rng.choice(_DAYS), thing=rng.choice(_ITEMS))


def _draw(rng: random.Random) -> WordProblem | None:
    """One problem, or None where the drawn numbers make no sense (a negative rest)."""
    template = rng.choice(_TEMPLATES)
    women = rng.random() < 0.5
    words = {
        "n": rng.choice(_WOMEN if women else _MEN),
        "m": rng.choice(_MEN if women else _WOMEN),
        "he": "she" if women else "he",
        "He": "She" if women else "He",
        "it": rng.choice(_ITEMS),
        "bx": rng.choice(_BOXES),
        "d": rng.choice(_DAYS),
    }
    question = rng.choice(template.questions)
    values = _numbers(rng, template.numbers)
    if values is None:
        return None
    question = " ".join([*(_aside(rng) for _ in range(rng.randint(1, 2))), question.format(**words, **values)])
    lines = []
    result = 0
    for step in template.steps:
        name, left, operator, right = _STEP_NUMBER.findall(step)[0]
        result = _value(values, left, operator, right)
        if not result:
            return None
        values[name] = result
        shown = f"{values[left]}{operator}{values.get(right, right)}={result}"
        lines.append(_STEP_NUMBER.sub(shown, step).format(**words, **values))
    return WordProblem(question, "\n".join([*lines, f"#### {result}"]))
