"""Configs of the papers' own data sets, on small stand-ins with the same names, splits and features, prepared and read as the real ones."""

from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lmx import rng, run
from lmx.run.config import load
from lmx.run.parts import Parts
from tests.configs_test import CATALOGUE

WORDS = ('the', 'of', 'and', 'to', 'in', 'a', 'is', 'that', 'for', 'it', 'as', 'was', 'with', 'be', 'by', 'on', 'not', 'he')
TAGS = ('O', 'B-PER', 'I-PER', 'B-ORG', 'I-ORG', 'B-LOC', 'I-LOC', 'B-MISC', 'I-MISC')
SENTENCE, NUMBER = tfds.features.Text(), tfds.features.Scalar(np.int32)


def labels(*names):
    return tfds.features.ClassLabel(names=names)


def answers():
    return tfds.features.Sequence({'text': SENTENCE, 'answer_start': NUMBER})


PAIR = {'sentence1': SENTENCE, 'sentence2': SENTENCE}
SETS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    'imdb_reviews/plain_text': ({'text': SENTENCE, 'label': labels('neg', 'pos')}, ('train', 'test')),
    'ag_news_subset': (
        {'title': SENTENCE, 'description': SENTENCE, 'label': labels('World', 'Sports', 'Business', 'Sci/Tech')},
        ('train', 'test'),
    ),
    'lm1b': ({'text': SENTENCE}, ('train', 'test')),
    'squad/v1.1': (
        {'id': SENTENCE, 'title': SENTENCE, 'context': SENTENCE, 'question': SENTENCE, 'answers': answers()},
        ('train', 'validation'),
    ),
    'wmt14_translate/de-en': ({'de': SENTENCE, 'en': SENTENCE}, ('train', 'validation', 'test')),
    'cnn_dailymail': ({'article': SENTENCE, 'highlights': SENTENCE, 'id': SENTENCE}, ('train', 'validation', 'test')),
    'wikipedia/20230601.en': ({'text': SENTENCE, 'title': SENTENCE}, ('train',)),
    'hellaswag': (
        {'context': SENTENCE, 'endings': tfds.features.Sequence(SENTENCE), 'label': NUMBER, 'activity_label': SENTENCE},
        ('train', 'validation', 'test'),
    ),
    'conll2003': (
        {'tokens': tfds.features.Sequence(SENTENCE), 'ner': tfds.features.Sequence(labels(*TAGS))},
        ('train', 'dev', 'test'),
    ),
    'beir/msmarco': ({'query': SENTENCE, 'passage': SENTENCE, 'score': tfds.features.Scalar(np.float32)}, ('train', 'validation', 'test')),
    'c4/en': ({'text': SENTENCE, 'url': SENTENCE}, ('train', 'validation')),
    'glue/mrpc': ({**PAIR, 'label': labels('not_equivalent', 'equivalent')}, ('train', 'validation')),
    'glue/stsb': ({**PAIR, 'label': tfds.features.Scalar(np.float32)}, ('train', 'validation')),
    'glue/mnli': (
        {'premise': SENTENCE, 'hypothesis': SENTENCE, 'label': labels('entailment', 'neutral', 'contradiction')},
        ('train', 'validation_matched', 'validation_mismatched'),
    ),
}
RUNS = {
    'answer_squad.py': 'squad/v1.1',
    'bert_wikipedia.py': 'wikipedia/20230601.en',
    'choose_hellaswag.py:shots=1': 'hellaswag',
    **{f'classify_ag_news.py:model={model}': 'ag_news_subset' for model in ('text_cnn', 'bilstm', 'bert')},
    **{f'classify_imdb.py:model={model}': 'imdb_reviews/plain_text' for model in ('text_cnn', 'bilstm', 'bert')},
    'classify_glue.py:task=mrpc': 'glue/mrpc',
    'classify_glue.py:task=stsb': 'glue/stsb',
    'classify_glue.py:task=mnli': 'glue/mnli',
    'gpt_lm1b.py': 'lm1b',
    'search_msmarco.py': 'beir/msmarco',
    'summarize_cnn_dailymail.py': 'cnn_dailymail',
    't5_c4.py': 'c4/en',
    'tag_conll2003.py': 'conll2003',
    'translation_wmt14.py': 'wmt14_translate/de-en',
}
COUNT = 100
LENGTH = 6  # of every sequence, so that words and tags are as many


def test_every_config_of_a_download_is_here():
    assert {name.partition(':')[0] for name in RUNS} == CATALOGUE


def value(feature, draw, name):
    if isinstance(feature, tfds.features.ClassLabel):
        return int(draw.integers(feature.num_classes))
    if isinstance(feature, tfds.features.Text):
        few = name in ('title', 'question', 'highlights')
        return ' '.join(draw.choice(WORDS, draw.integers(3, 6) if few else draw.integers(9, 14))) + '.'
    if isinstance(feature, tfds.features.Sequence):
        return [value(feature.feature, draw, name) for _ in range(LENGTH)]
    return float(draw.integers(6)) if np.dtype(feature.np_dtype).kind == 'f' else int(draw.integers(4))


def records(features, split):
    draw = rng.numpy_rng(0, split)
    for index in range(COUNT):
        record = {name: value(feature, draw, name) for name, feature in features.items() if name != 'answers'}
        if 'answers' in features:
            word = record['context'].split()[3]
            record['answers'] = {'text': [word], 'answer_start': [record['context'].index(word)]}
        yield index, record


def stand_in(name, folder):
    """Prepares a small data set of this name, as TFDS would have prepared the real one."""
    features, splits = SETS[name]
    base, _, config = name.partition('/')
    members = {
        'name': base,
        'VERSION': tfds.core.Version('1.0.0'),
        'BUILDER_CONFIGS': [tfds.core.BuilderConfig(name=config)] if config else [],
        '_info': lambda self: tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features)),
        '_split_generators': lambda self, manager: {split: records(features, split) for split in splits},
        '_generate_examples': lambda self: iter(()),
    }
    made = type('StandIn', (tfds.core.GeneratorBasedBuilder,), members, skip_registration=True)
    made(data_dir=folder, file_format='array_record', **({'config': config} if config else {})).download_and_prepare()


TRAINED = ('choose_hellaswag.py:shots=1', 'classify_glue.py:task=stsb', 'tag_conll2003.py')
"""By default; the others under `full`, for their likes are trained by `tests/configs_test.py`."""


def debug(name: str, folder: str) -> Any:
    stand_in(RUNS[name], folder)
    config = load(f'configs/{name}{"," if ":" in name else ":"}debug')
    with config.unlocked(), config.ignore_type():
        for split in config.data.values():
            split.data_dir = folder
    return config


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize('name', [name if name in TRAINED else pytest.param(name, marks=pytest.mark.full) for name in RUNS])
def test_debug_trains(root, tmp_path, monkeypatch, name):
    monkeypatch.chdir(root)
    config = debug(name, str(tmp_path / 'data'))
    evaluations = run.train(config, tmp_path / 'run')
    assert 'loss' in run.finish(config, tmp_path / 'run', evaluations)


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize('name', [name for name in RUNS if name not in TRAINED])
def test_debug_is_a_run_that_can_work(root, tmp_path, monkeypatch, name):
    monkeypatch.chdir(root)
    config = debug(name, str(tmp_path / 'data'))
    parts = Parts(config)
    parts.check()
    for split in config.evaluate:
        assert len(parts.eval_batches(split)) > 0


@pytest.mark.parametrize('name', ['imdb_reviews/plain_text', 'ag_news_subset', 'lm1b', 'squad/v1.1'])
def test_stand_ins_have_the_features_of_the_catalogue(name, tmp_path):
    """Of the sets whose builders TFDS lists without TensorFlow."""
    theirs = tfds.builder(name, data_dir=str(tmp_path)).info.features
    features = tfds.features.FeaturesDict(SETS[name][0])
    kinds = [{key: type(feature) for key, feature in each.items() if key != 'id'} for each in (theirs, features)]
    assert kinds[0] == kinds[1]
    for key, feature in theirs.items():
        if isinstance(feature, tfds.features.ClassLabel):
            assert feature.names == features[key].names
