"""Small exercises in programming, each with tests: code generation that every machine can make for itself.

{'prompt': 'def f(a, b):\\n    \"\"\"Return twice the larger of a and b.\"\"\"\\n', 'completion': '    return (2 * max(a, b))\\n', 'test': 'def check...',
'entry_point': 'f'}; no docstring is in two splits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lmx import rng

SIZES = {'train': 20_000, 'validation': 200, 'test': 200}
FIELDS = ('prompt', 'completion', 'test', 'entry_point')
ONE = (
    ('twice {}', '(2 * {})'),
    ('the square of {}', '({} ** 2)'),
    ('{} without its sign', 'abs({})'),
    ('the negative of {}', '(-{})'),
    ('the last digit of {}', '(abs({}) % 10)'),
    ('half of {}, rounded down', '({} // 2)'),
)
TWO = (
    ('the sum of {} and {}', '({} + {})'),
    ('the difference of {} and {}', '({} - {})'),
    ('the product of {} and {}', '({} * {})'),
    ('the larger of {} and {}', 'max({}, {})'),
    ('the smaller of {} and {}', 'min({}, {})'),
)
NAMES = ('a', 'b', 'x', 'y', 'm', 'n')
CASES = 5


class Exercises(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """See the module."""

    name = 'lmx_exercises'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(dict.fromkeys(FIELDS, tfds.features.Text())))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        first = sum(size for name, size in SIZES.items() if list(SIZES).index(name) < list(SIZES).index(split))
        yield from enumerate(made()[first : first + SIZES[split]])


@functools.cache
def made() -> list[dict[str, str]]:
    """The exercises of all splits, of which no two say the same."""
    draw, found = rng.numpy_rng(0, 'exercises'), {}
    while len(found) < sum(SIZES.values()):
        record = exercise(draw)
        found.setdefault(record['prompt'].partition('\n')[2], record)  # by its docstring, whatever the function is called
    return list(found.values())


def exercise(draw: np.random.Generator) -> dict[str, str]:
    """A function of two numbers, said in words and written, and what it gives for some of them."""
    names = draw.choice(NAMES, 2, replace=False).tolist()
    words, written = _expression(draw, names, depth=int(draw.integers(2, 4)))
    name = 'f' if draw.integers(2) else 'g'
    cases = [draw.integers(-9, 10, 2).tolist() for _ in range(CASES)]
    wanted = [eval(written, {'abs': abs, 'max': max, 'min': min}, dict(zip(names, case))) for case in cases]
    tests = [f'    assert candidate({a}, {b}) == {value}' for (a, b), value in zip(cases, wanted)]
    return {
        'prompt': f'def {name}({names[0]}, {names[1]}):\n    """Return {words}."""\n',
        'completion': f'    return {written}\n',
        'test': '\n'.join(['def check(candidate):', *tests]),
        'entry_point': name,
    }


def _expression(draw: np.random.Generator, names: list[str], depth: int) -> tuple[str, str]:
    """(words, code) of an expression that is at most `depth` deep."""
    if depth == 0:
        name = names[draw.integers(len(names))]
        return name, name
    kinds = ONE if draw.integers(3) == 0 else TWO
    words, written = kinds[draw.integers(len(kinds))]
    parts = [_expression(draw, names, depth=int(draw.integers(0, depth))) for _ in range(words.count('{}'))]
    return words.format(*(said for said, _ in parts)), written.format(*(code for _, code in parts))


def builder(config: str | None, **kwargs: Any) -> Any:
    return Exercises(**kwargs)
