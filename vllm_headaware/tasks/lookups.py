"""Tasks on what programs write: rows of a table, lines of a log, functions to be edited."""

from __future__ import annotations

import random
from collections.abc import Callable

from vllm_headaware.tasks.draft import Draft
from vllm_headaware.tasks.prompts import secret_number
from vllm_headaware.tasks.words import WordPool

ROW_TOKENS, FUNCTION_TOKENS = 12, 40
"""Fewest tokens of a row or line, and of a function."""
NAME_LETTERS = 4


def table(pool: WordPool, rng: random.Random, tokens: int) -> Draft:
    """A table of codes, words and numbers; the number of one code is asked for."""
    names, numbers = _numbered(pool, rng, tokens)
    rows = [
        f"| {name} | {rng.choice(pool.nouns)} | {number} |"
        for name, number in zip(names, numbers, strict=True)
    ]
    asked = rng.randrange(len(names))
    message = _among(
        rows,
        asked,
        "| code | word | number |\n|---|---|---|\n{}\n\n"
        f"What number stands in the row of {names[asked]} in the table above?",
    )
    start = f"The number in the row of {names[asked]} is"
    return Draft(message, start, (numbers[asked],), f" {numbers[asked]}.")


def log(pool: WordPool, rng: random.Random, tokens: int) -> Draft:
    """Lines of a log; how long one request took is asked for."""
    names, numbers = _numbered(pool, rng, tokens)
    lines = [
        f"{index // 60 % 24:02}:{index % 60:02} request={name} from={rng.choice(pool.nouns)}"
        f" took={number} us"
        for index, (name, number) in enumerate(zip(names, numbers, strict=True))
    ]
    asked = rng.randrange(len(names))
    message = _among(
        lines,
        asked,
        "A server wrote this log:\n\n{}\n\n"
        f"How many microseconds did request {names[asked]} take in the log above?",
    )
    start = f"Request {names[asked]} took"
    return Draft(message, start, (numbers[asked],), f" {numbers[asked]} us.")


def edit(pool: WordPool, rng: random.Random, tokens: int) -> Draft:
    """Functions; one is to be repeated with a variable renamed."""
    count = tokens // FUNCTION_TOKENS + 1
    names = _names(pool, rng, count)
    variables = [_names(pool, rng, 4) for _ in names]
    constants = [(secret_number(pool, rng), secret_number(pool, rng)) for _ in names]
    asked = rng.randrange(count)
    old, new = variables[asked][2], variables[asked][3]
    codes = [_function(*parts) for parts in zip(names, variables, constants, strict=True)]
    renamed = codes[asked].replace(old, new)
    message = _among(
        codes,
        asked,
        f"{{}}\n\nRepeat the function {names[asked]} above with its variable {old} renamed {new}.",
        "\n\n",
    )
    start = f"def {names[asked]}("
    return Draft(message, start, (renamed.removeprefix(start),), renamed.removeprefix(start))


def _names(pool: WordPool, rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(pool.letters, k=NAME_LETTERS))] = None
    return list(found)


def _numbered(pool: WordPool, rng: random.Random, tokens: int) -> tuple[list[str], list[str]]:
    """Names and a number for each, more than fit in so many tokens."""
    names = _names(pool, rng, tokens // ROW_TOKENS + 1)
    return names, [secret_number(pool, rng) for _ in names]


def _function(name: str, variables: list[str], constants: tuple[str, str]) -> str:
    first, second, third, _ = variables
    return (
        f"def {name}({first}, {second}):\n"
        f"    {third} = {first} * {constants[0]} + {second}\n"
        f"    return {third} - {constants[1]} * {first}"
    )


def _among(entries: list[str], asked: int, form: str, between: str = "\n") -> Callable[[int], str]:
    """A message by how many entries it has; the one that is asked for is always among them, at the
    same share of the way."""
    others = [entry for index, entry in enumerate(entries) if index != asked]
    depth = asked / len(entries)

    def message(size: int) -> str:
        shown = others[:size]
        shown.insert(round(depth * len(shown)), entries[asked])
        return form.format(between.join(shown))

    return message


LOOKUPS: dict[str, Callable[[WordPool, random.Random, int], Draft]] = {
    "table": table,
    "log": log,
    "edit": edit,
}
"""Tasks by name; entries are longer than sentences, so that prompts end further below a length."""
