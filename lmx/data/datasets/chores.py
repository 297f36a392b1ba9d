"""Small instructions with one right answer, about numbers and words: instruction tuning that every machine can make for itself.

{'prompt': 'Spell the word stone backwards.', 'completion': 'enots'}; no prompt is in two splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lmx import rng

SIZES = {'train': 20_000, 'validation': 300, 'test': 300}
WORDS = (
    *('stone', 'river', 'lamp', 'green', 'house', 'train', 'apple', 'music', 'paper', 'cloud', 'bread', 'chair', 'light', 'ocean'),
    *('horse', 'tiger', 'plant', 'knife', 'spoon', 'glass', 'table', 'winter', 'summer', 'garden', 'window', 'market', 'silver'),
)
ONES = (
    *('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven', 'twelve', 'thirteen', 'fourteen'),
    *('fifteen', 'sixteen', 'seventeen', 'eighteen', 'nineteen'),
)
TENS = ('twenty', 'thirty', 'forty', 'fifty', 'sixty', 'seventy', 'eighty', 'ninety')


class Chores(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """See the module."""

    name = 'lmx_chores'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> Any:
        fields = {'prompt': tfds.features.Text(), 'completion': tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(fields))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        draw, seen, made = rng.numpy_rng(0, 'chores'), set(), []
        while len(made) < sum(SIZES.values()):
            prompt, completion = KINDS[draw.integers(len(KINDS))](draw)
            if prompt not in seen:
                seen.add(prompt)
                made.append({'prompt': prompt, 'completion': completion})
        first = sum(size for name, size in SIZES.items() if list(SIZES).index(name) < list(SIZES).index(split))
        yield from enumerate(made[first : first + SIZES[split]])


def spelt(number: int) -> str:
    """0 to 999 in words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f'-{ONES[number % 10]}' if number % 10 else '')
    return f'{ONES[number // 100]} hundred' + (f' and {spelt(number % 100)}' if number % 100 else '')


def _sum(draw: np.random.Generator) -> tuple[str, str]:
    a, b = draw.integers(0, 100, 2).tolist()
    return f'What is {spelt(a)} plus {spelt(b)}?', spelt(a + b)


def _backwards(draw: np.random.Generator) -> tuple[str, str]:
    word = ''.join(draw.choice(list('abcdefghijklmnoprstuvwz'), draw.integers(3, 6)))
    return f'Spell the word {word} backwards.', word[::-1]


def _last(draw: np.random.Generator) -> tuple[str, str]:
    words = draw.choice(WORDS, draw.integers(3, 6), replace=False).tolist()
    return f'Which word is the last of {", ".join(words)}?', words[-1]


def _count(draw: np.random.Generator) -> tuple[str, str]:
    words = draw.choice(WORDS, draw.integers(2, 7), replace=False).tolist()
    return f'How many words are these: {" ".join(words)}?', ONES[len(words)]


KINDS = (_sum, _backwards, _last, _count)


def builder(config: str | None, **kwargs: Any) -> Any:
    return Chores(**kwargs)
