"""Our data sets: those that are made are exact, those that are read have the published sizes."""

import itertools
import re
import subprocess
import sys

import pytest

from lmx.data import sources
from lmx.data.datasets import chores, exercises
from lmx.types import BadInput

FIELDS = {
    'multi30k': ('en', 'de'),
    'sst2': ('text', 'label'),
    'trec': ('text', 'label', 'fine'),
    'aeslc': ('text', 'summary', 'references'),
    'xquad': ('title', 'question', 'context', 'answers'),
    'xquad/all': ('title', 'question', 'context', 'answers'),
    'gsm8k': ('question', 'answer', 'final'),
    'cranfield': ('id', 'query', 'relevant', 'grades'),
    'cranfield/corpus': ('id', 'title', 'text'),
    'humaneval': ('task_id', 'prompt', 'entry_point', 'canonical_solution', 'test'),
    'stsb': ('text', 'other', 'score'),
    'facts': ('context', 'question', 'answers'),
    'chores': ('prompt', 'completion'),
    'names': ('text', 'words', 'tags'),
    'exercises': exercises.FIELDS,
}


def records(name, split, raw=None, folder=None):
    fields = {field: field for field in FIELDS[name]}
    manual = None if raw is None else str(raw / name.partition('/')[0])
    source = sources.tfds(name=f'lmx:{name}', split=split, fields=fields, data_dir=folder, manual_dir=manual)
    return [source[index] for index in range(len(source))]


def test_facts_are_where_they_are_said_to_be():
    splits = {split: records('facts', split) for split in ('train', 'validation', 'test')}
    assert [len(split) for split in splits.values()] == [20_000, 250, 500]
    for record in splits['validation']:
        (answer,), (start,) = record['answers']['text'], record['answers']['answer_start']
        answer = answer.decode() if isinstance(answer, bytes) else answer
        assert record['context'][start:].startswith(answer)
        who = next(word for word in re.findall(r'\w+', record['question'])[1:] if word[0].isupper())
        sentence = record['context'][:start].rpartition('. ')[2]
        assert sentence.startswith(who + ' ')
        assert record['context'].count(f'{who} ') in (2, 3)
        assert len(record['context'].split('. ')) == 5
    texts = [{record['context'] for record in split} for split in splits.values()]
    assert len(set.union(*texts)) == 4150  # a question about each of five facts, and no paragraph in two splits


def test_exercises_say_what_their_solutions_do():
    splits = {split: records('exercises', split) for split in ('train', 'validation', 'test')}
    assert [len(split) for split in splits.values()] == [20_000, 200, 200]
    docstrings = [{record['prompt'].partition('\n')[2] for record in split} for split in splits.values()]
    assert len(set.union(*docstrings)) == 20_400  # none twice, under whatever name
    for record in splits['test']:
        names: dict = {}
        exec(f'{record["prompt"]}{record["completion"]}\n{record["test"]}', names)
        names['check'](names[record['entry_point']])
    assert exercises.ONE[0] == ('twice {}', '(2 * {})')
    nested = 'Return twice half of the sum of a and b, rounded down.'
    solution = exercises.ONE[0][1].format(exercises.ONE[5][1].format(exercises.TWO[0][1].format('a', 'b')))
    assert (nested.count('half'), eval(solution, {'a': 2, 'b': 3})) == (1, 4)  # each part keeps to itself: not 2 * 5 // 2


def test_names_are_told_by_their_surroundings_alone():
    train, test = records('names', 'train'), records('names', 'test')
    assert (len(train), len(test)) == (8000, 400)
    kinds: dict[str, set[str]] = {}
    for record in train:
        words, tags = [str(word) for word in record['words']], [str(tag) for tag in record['tags']]
        assert record['text'] == ' '.join(words)
        assert len(words) == len(tags)
        for word, tag, before in zip(words, tags, ['O', *tags]):
            assert tag[0] != 'I' or before[2:] == tag[2:]
            if tag != 'O':
                kinds.setdefault(word, set()).add(tag[2:])
    often = [found for word, found in kinds.items() if len(word) < 6]
    assert sum(len(found) == 3 for found in often) > len(often) / 2  # the same word is a person, a place and a company


def test_chores_have_one_right_answer():
    splits = {split: records('chores', split) for split in ('train', 'validation', 'test')}
    assert [len(split) for split in splits.values()] == [20_000, 300, 300]
    prompts = [{record['prompt'] for record in split} for split in splits.values()]
    assert len(set.union(*prompts)) == 20_600
    numbers = {chores.spelt(number): number for number in range(200)}
    assert len(numbers) == 200
    assert (chores.spelt(42), chores.spelt(110)) == ('forty-two', 'one hundred and ten')
    for record in splits['test']:
        asked, answer = record['prompt'], record['completion']
        if asked.startswith('What is'):
            a, b = asked.removeprefix('What is ').removesuffix('?').split(' plus ')
            assert numbers[answer] == numbers[a] + numbers[b]
        elif asked.startswith('Spell'):
            assert list(answer) == list(reversed(asked.split()[3]))
        elif asked.startswith('Which'):
            assert asked.endswith(f', {answer}?')
        else:
            assert numbers[answer] == len(asked.partition(': ')[2].split())


SIZES = {
    'multi30k': {'train': 29_000, 'validation': 1014, 'test': 1000},
    'sst2': {'train': 6920, 'validation': 872, 'test': 1821},
    'trec': {'train': 5452, 'test': 500},
    'aeslc': {'train': 14_436, 'validation': 1960, 'test': 1906},
    'xquad/all': {'test': 1190},
    'gsm8k': {'train': 7473, 'test': 1319},
    'cranfield/corpus': {'train': 1400},
    'cranfield': {'test': 225},
    'humaneval': {'test': 164},
    'stsb': {'train': 5749, 'validation': 1500, 'test': 1379},
}


@pytest.mark.real_data
@pytest.mark.parametrize('name', SIZES)
def test_published_sizes(raw_data, name):
    for split, size in SIZES[name].items():
        found = records(name, split, raw_data)
        assert len(found) == size
        for field in set(FIELDS[name]) - {'text', 'title'}:  # some abstracts are empty
            assert all(
                record[field] is not None and (field in ('score', 'relevant', 'grades', 'fine') or len(record[field])) for record in found
            )


@pytest.mark.real_data
def test_records_by_hand(raw_data):
    trec = records('trec', 'test', raw_data)
    assert {'text': 'How far is it from Denver to Aspen ?', 'label': 'NUM', 'fine': 'dist'} in trec
    assert {record['label'] for record in trec} == {'ABBR', 'DESC', 'ENTY', 'HUM', 'LOC', 'NUM'}
    assert {record['label'] for record in records('sst2', 'test', raw_data)} == {'negative', 'positive'}
    ducks = next(r for r in records('gsm8k', 'test', raw_data) if 'ducks lay 16 eggs' in r['question'])
    assert ducks['final'] == '18'
    pair = {'en': 'A group of men are loading cotton onto a truck', 'de': 'Eine Gruppe von Männern lädt Baumwolle auf einen Lastwagen'}
    assert pair in records('multi30k', 'validation', raw_data)
    email = next(r for r in records('aeslc', 'train', raw_data) if r['summary'] == 'Service Agreement')
    assert email['text'].startswith('Greg/Phillip,  Attached is')


@pytest.mark.real_data
def test_every_answer_is_in_its_context_and_no_paragraph_in_two_splits(raw_data):
    splits = [records('xquad', split, raw_data) for split in ('train', 'validation', 'test')]
    for record in itertools.chain(*splits):
        for text, start in zip(record['answers']['text'], record['answers']['answer_start']):
            text = text.decode() if isinstance(text, bytes) else text
            assert record['context'][start : start + len(text)] == text
    contexts = [{record['context'] for record in split} for split in splits]
    assert [len(each) for each in contexts] == [192, 24, 24]
    assert len(set.union(*contexts)) == 240
    assert sum(map(len, splits)) == 1190


@pytest.mark.real_data
def test_every_judged_document_exists(raw_data):
    queries, corpus = records('cranfield', 'test', raw_data), records('cranfield/corpus', 'train', raw_data)
    names = {document['id'] for document in corpus}
    judged = [name.decode() if isinstance(name, bytes) else name for query in queries for name in query['relevant']]
    assert len(judged) == sum(len(query['grades']) for query in queries) == 1837
    assert set(judged) <= names
    assert next(query['id'] for query in queries if query['query'].startswith('what problems of heat conduction')) == '3'


def test_a_raw_file_that_is_another_is_named(tmp_path):
    (tmp_path / 'raw/sst2').mkdir(parents=True)
    for name in ('train.tsv', 'dev.tsv', 'test.tsv'):
        (tmp_path / 'raw/sst2' / name).write_text('a fine film\t1\na film\tgood\n')
    with pytest.raises(
        BadInput, match=r"/train\.tsv: what follows record 1 of train cannot be read \(ValueError.*'good'.*they are data/SST2"
    ):
        records('sst2', 'train', tmp_path / 'raw', str(tmp_path / 'made'))


def test_processes_that_begin_together_prepare_a_data_set_once(tmp_path):
    code = f"from lmx.data import sources; s = sources.tfds(name='lmx:dates', split='test', fields={{'text': 'source'}}, data_dir={str(tmp_path)!r})"
    running = [subprocess.Popen([sys.executable, '-c', f'{code}; print(len(s))'], stdout=-1, stderr=-1, text=True) for _ in range(4)]
    ended = [process.communicate(timeout=120) for process in running]
    assert [out for out, _ in ended] == ['500\n'] * 4, ended
    assert sum('preparing data set' in said for _, said in ended) == 1
