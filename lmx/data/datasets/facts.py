"""Facts about people who do not exist, and questions about them: reading comprehension that every machine can make for itself.

{'context': 'Maria lives in Oslo. She owns a red bicycle. ...', 'question': 'What does Maria own?', 'answers': {'text': ['a red bicycle'],
'answer_start': [30]}}, as SQuAD. Who does what is drawn anew in every paragraph, so that no answer can be known without reading it. No
paragraph has two facts of a kind: whose of several a fact is, small models from nothing did not learn in 2,000 updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lmx import rng

SIZES = {'train': 4000, 'validation': 50, 'test': 100}  # paragraphs, with a question about each of five facts
PEOPLE = ('Maria', 'John', 'Aisha', 'Pedro', 'Ingrid', 'Kenji', 'Lucy', 'Omar', 'Elena', 'David', 'Fatima', 'Henry')
PLACES = ('Oslo', 'Lima', 'Cairo', 'Hanoi', 'Dublin', 'Accra', 'Boston', 'Prague', 'Lagos', 'Kyoto', 'Quito', 'Turin')
COLOURS = ('red', 'blue', 'green', 'old', 'new', 'small', 'heavy', 'wooden')
THINGS = ('bicycle', 'boat', 'piano', 'lamp', 'clock', 'camera', 'ladder', 'kettle')
TRADES = ('baker', 'pilot', 'nurse', 'painter', 'farmer', 'judge', 'sailor', 'teacher')
FACTS = (
    ('{who} lives in {what}.', 'Where does {who} live?', lambda draw: draw.choice(PLACES)),
    ('{who} was born in {what}.', 'Where was {who} born?', lambda draw: draw.choice(PLACES)),
    ('{who} owns a {what}.', 'What does {who} own?', lambda draw: f'{draw.choice(COLOURS)} {draw.choice(THINGS)}'),
    ('{who} works as a {what}.', 'What is the work of {who}?', lambda draw: draw.choice(TRADES)),
    ('{who} is {what} years old.', 'How old is {who}?', lambda draw: str(draw.integers(18, 90))),
)


class Facts(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """See the module."""

    name = 'lmx_facts'
    VERSION = tfds.core.Version('1.2.0')

    def _info(self) -> Any:
        text = tfds.features.Text()
        answers = {'text': tfds.features.Sequence(text), 'answer_start': tfds.features.Sequence(np.int32)}
        features = {'context': text, 'question': text, 'answers': answers}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for index in range(SIZES[split]):
            for asked, record in enumerate(paragraph(rng.numpy_rng(0, 'facts', list(SIZES).index(split), index))):
                yield f'{index}-{asked}', record


def paragraph(draw: np.random.Generator) -> list[dict[str, Any]]:
    """Five facts about two people, each of another kind, and a question about each fact."""
    people = draw.choice(PEOPLE, 2, replace=False).tolist()
    told = [(people[place % 2], *FACTS[kind]) for place, kind in enumerate(draw.permutation(len(FACTS)))]
    told = [told[place] for place in draw.permutation(len(told))]
    context, asked = '', []
    for who, fact, ask, what in told:
        found = str(what(draw))
        start = len(context) + fact.format(who=who, what='\0').index('\0')
        asked.append({'question': ask.format(who=who), 'answers': {'text': [found], 'answer_start': [start]}})
        context += fact.format(who=who, what=found) + ' '
    return [{'context': context.rstrip(), **each} for each in asked]


def builder(config: str | None, **kwargs: Any) -> Any:
    return Facts(**kwargs)
