"""Sentences with names of people, places and companies that do not exist: entities that are known by their surroundings alone.

{'text': 'Tovel Maru flew to Belka .', 'words': ['Tovel', 'Maru', ...], 'tags': ['B-PER', 'I-PER', 'O', 'O', 'B-LOC', 'O']}; every name is drawn
anew from the same syllables, whatever it is the name of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lmx import rng

SIZES = {'train': 8000, 'validation': 400, 'test': 400}
SYLLABLES = ('to', 'vel', 'ma', 'ru', 'bel', 'ka', 'sin', 'dor', 'li', 'pen', 'gra', 'no', 'tham', 'ez', 'ul', 'quar')
DAYS = ('Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday')
WORK = ('president', 'spokesman', 'lawyer', 'founder', 'engineer')
TEMPLATES = (
    'PER flew to LOC on DAY .',
    'PER , WORK of ORG , was born in LOC .',
    'ORG opened a plant near LOC , its WORK PER said .',
    'Shares of ORG fell on DAY .',
    'The mayor of LOC met PER and PER .',
    'ORG bought ORG , a company from LOC .',
    'On DAY PER left ORG for ORG .',
    'Rain is expected in LOC and LOC on DAY .',
    'PER of LOC beat PER of LOC .',
    'The WORK told ORG that PER had moved to LOC .',
)


class Names(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """See the module."""

    name = 'lmx_names'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> Any:
        features = {'text': tfds.features.Text(), **dict.fromkeys(('words', 'tags'), tfds.features.Sequence(tfds.features.Text()))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(SIZES[split]):
            yield index, sentence(rng.numpy_rng(0, 'names', list(SIZES).index(split), index))


def sentence(draw: np.random.Generator) -> dict[str, Any]:
    """One of the templates with its names filled in, each of one or two words."""
    words, tags = [], []
    for word in str(draw.choice(TEMPLATES)).split():
        kind = word if word in ('PER', 'LOC', 'ORG') else None
        if kind is None:
            words.append(str(draw.choice({'DAY': DAYS, 'WORK': WORK}.get(word, (word,)))))
            tags.append('O')
            continue
        name = [''.join(draw.choice(SYLLABLES, draw.integers(2, 4))).capitalize() for _ in range(draw.integers(1, 3))]
        words += name
        tags += [f'B-{kind}', f'I-{kind}'][: len(name)]
    return {'text': ' '.join(words), 'words': words, 'tags': tags}


def builder(config: str | None, **kwargs: Any) -> Any:
    return Names(**kwargs)
