"""The English part of XQuAD (Artetxe et al. 2020, arXiv:1910.11856): 1,190 questions over 240 paragraphs of SQuAD's development set.

Records as SQuAD has them: {'id', 'title', 'question', 'context', 'answers': {'text': [...], 'answer_start': [...]}}. It is meant for
evaluation: 'lmx:xquad/all' has everything as 'test'. 'lmx:xquad' splits its paragraphs into 192 for training, 24 for validation and 24
for testing, so that no paragraph is in two of them; no published figure is about that.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lmx import rng
from lmx.data import raw
from lmx.data.raw import TEXT
from lmx.data.sources import read_text
from lmx.types import BadInput

SHARES = {'train': (0, 192), 'validation': (192, 216), 'test': (216, 240)}


def examples(split: str, *files: pathlib.Path, shared: bool) -> Iterator[dict[str, Any]]:
    data = json.loads(read_text(str(files[0])))['data']
    paragraphs = [(article['title'], paragraph) for article in data for paragraph in article['paragraphs']]
    order = rng.numpy_rng(0, 'paragraphs').permutation(len(paragraphs))
    first, last = SHARES[split] if shared else (0, len(paragraphs))
    for index in sorted(order[first:last].tolist()):
        title, paragraph = paragraphs[index]
        for each in paragraph['qas']:
            answers = {name: [answer[name] for answer in each['answers']] for name in ('text', 'answer_start')}
            yield {'id': each['id'], 'title': title, 'question': each['question'], 'context': paragraph['context'], 'answers': answers}


def builder(config: str | None, **kwargs: Any) -> Any:
    if config not in (None, 'all'):
        raise BadInput(f'there is no lmx:xquad/{config}; there are lmx:xquad and lmx:xquad/all')
    answers = {'text': tfds.features.Sequence(TEXT), 'answer_start': tfds.features.Sequence(np.int32)}
    return raw.builder(
        'xquad_all' if config else 'xquad',
        features={**dict.fromkeys(('id', 'title', 'question', 'context'), TEXT), 'answers': answers},
        splits=dict.fromkeys(['test'] if config else SHARES, ('xquad.en.json',)),
        source='it is xquad.en.json of the repository google-deepmind/xquad',
        examples=functools.partial(examples, shared=config is None),
        **kwargs,
    )
