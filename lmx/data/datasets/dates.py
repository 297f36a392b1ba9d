"""Dates as people write them and as machines do: a small translation that every machine can make for itself.

{'source': 'the 3rd of March, 2015', 'target': '2015-03-03'}; days from 1800 to 2199. The days of the three splits are disjoint.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from lmx import rng

SIZES = {'train': 20_000, 'validation': 500, 'test': 500}
MONTHS = (
    *('January', 'February', 'March', 'April', 'May', 'June'),
    *('July', 'August', 'September', 'October', 'November', 'December'),
)
DAYS = ('Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday')


class Dates(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """See the module."""

    name = 'lmx_dates'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> Any:
        fields = {'source': tfds.features.Text(), 'target': tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(fields))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        first, last = datetime.date(1800, 1, 1).toordinal(), datetime.date(2200, 1, 1).toordinal()
        days = rng.numpy_rng(0, 'days').permutation(last - first)
        begin = sum(size for name, size in SIZES.items() if list(SIZES).index(name) < list(SIZES).index(split))
        styles = rng.numpy_rng(0, 'styles', begin).integers(0, len(STYLES), SIZES[split])
        for index, (day, style) in enumerate(zip(days[begin : begin + SIZES[split]].tolist(), styles.tolist())):
            date = datetime.date.fromordinal(first + day)
            yield index, {'source': STYLES[style](date), 'target': date.isoformat()}


def ordinal(number: int) -> str:
    """'1st', '2nd', '3rd', '4th', ..., '11th', ..."""
    ending = 'th' if number in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')
    return f'{number}{ending}'


STYLES = (
    lambda d: f'{d.day} {MONTHS[d.month - 1]} {d.year}',
    lambda d: f'{MONTHS[d.month - 1]} {d.day}, {d.year}',
    lambda d: f'the {ordinal(d.day)} of {MONTHS[d.month - 1]}, {d.year}',
    lambda d: f'{DAYS[d.weekday()]}, {MONTHS[d.month - 1][:3]} {ordinal(d.day)} {d.year}',
    lambda d: f'{d.day}.{d.month}.{d.year}',
    lambda d: f'{d.month}/{d.day}/{d.year}',
)


def builder(config: str | None, **kwargs: Any) -> Any:
    return Dates(**kwargs)
