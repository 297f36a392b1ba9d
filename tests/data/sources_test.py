"""Sources: what they read, that their identity follows the content, and that each refusal is one clear line."""

import gzip
import json
import lzma
import pathlib
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmx import text
from lmx.data import catalogue, sources
from lmx.data.cache import token_cache
from lmx.data.datasets import python_stdlib
from lmx.types import BadInput


def all_of(dataset):
    return [dataset[index] for index in range(len(dataset))]


def test_text_files_lines_and_compression(tmp_path):
    (tmp_path / 'a.txt').write_text('one\n\ntwo\n')
    (tmp_path / 'b.txt.gz').write_bytes(gzip.compress(b'three\n'))
    (tmp_path / 'c.txt.xz').write_bytes(lzma.compress(b'vier \xc3\xa4\n'))
    assert [r['text'] for r in all_of(sources.text_files(pattern=f'{tmp_path}/*'))] == ['one\n\ntwo\n', 'three\n', 'vier ä\n']
    assert [r['text'] for r in all_of(sources.lines(pattern=f'{tmp_path}/*'))] == ['one', 'two', 'three', 'vier ä']


def test_jsonl_and_parquet_give_the_same_records(tmp_path):
    records = [{'en': f'{i}', 'de': f'{i}!', 'n': i} for i in range(25)]
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(records[part * 13 : part * 13 + 13]), tmp_path / f'{part}.parquet', row_group_size=5)
    fields = {'source': 'en', 'target': 'de'}
    expected = [{'source': r['en'], 'target': r['de']} for r in records]
    assert all_of(sources.jsonl(pattern=f'{tmp_path}/*.jsonl', fields=fields)) == expected
    assert all_of(sources.parquet(pattern=f'{tmp_path}/*.parquet', fields=fields)) == expected
    assert sources.parquet(pattern=f'{tmp_path}/*.parquet')[24] == records[24]


def test_mixture_has_the_weights_and_sees_everything():
    a, b = (sources.in_memory(records=[{'text': f'{name}{i}'} for i in range(count)]) for name, count in (('a', 30), ('b', 10)))
    mixed = all_of(sources.mixture(sources=(a, b), weights=(1.0, 1.0)))
    texts = [record['text'] for record in mixed]
    assert {f'a{i}' for i in range(30)} | {f'b{i}' for i in range(10)} == set(texts)
    assert abs(sum(t.startswith('a') for t in texts) - len(texts) / 2) <= 1


def test_hub_reads_a_local_folder(tmp_path):
    pytest.importorskip('datasets', reason='needs lmx[hub]')
    (tmp_path / 'train.jsonl').write_text('{"text": "x"}\n{"text": "y"}\n')
    assert [r['text'] for r in all_of(sources.hub(name=str(tmp_path), split='train'))] == ['x', 'y']


def test_the_token_cache_follows_the_content(tmp_path, monkeypatch):
    monkeypatch.setenv('LMX_CACHE', str(tmp_path / 'cache'))
    tokenizer = text.byte_level()
    (tmp_path / 'a.txt').write_text('hello')
    first = token_cache(sources.text_files(pattern=f'{tmp_path}/*.txt'), tokenizer)
    assert first.tokens.tolist() == list(b'hello')
    assert first.tokens.dtype == np.uint16
    assert token_cache(sources.text_files(pattern=f'{tmp_path}/*.txt'), tokenizer).fingerprint == first.fingerprint
    (tmp_path / 'b.txt').write_text('!')
    second = token_cache(sources.text_files(pattern=f'{tmp_path}/*.txt'), tokenizer)
    assert second.offsets.tolist() == [0, 5, 6]
    changed = sources.text_files(pattern=f'{tmp_path}/*.txt').map(lambda record: {**record, 'text': record['text'].upper()})
    assert token_cache(changed, tokenizer).tokens.tolist() == list(b'HELLO!')
    assert not list((tmp_path / 'cache' / 'tokens').glob('*.part'))


def test_python_stdlib_prepares_and_its_splits_share_no_file(tmp_path):
    paths = {}
    for split in ('train', 'validation', 'test'):
        records = all_of(sources.tfds(name='lmx:python_stdlib/text', split=split, data_dir=str(tmp_path)))
        paths[split] = {record['path'] for record in records}
    assert not paths['train'] & (paths['validation'] | paths['test'])
    assert 'json/decoder.py' in set.union(*paths.values())
    assert sum(map(len, paths.values())) > 400
    pair = sources.tfds(name='lmx:python_stdlib/functions', split='validation', data_dir=str(tmp_path))[0]
    assert set(pair) == {'code', 'docstring', 'name', 'module', 'path'}


def test_functions_loses_only_the_docstring():
    code = 'class A:\n    def f(self, x):\n        """Adds one to x, the usual way."""\n        y = x + 1\n        return y\n'
    ((line, record),) = python_stdlib.functions(code)
    assert line == 2
    assert record == {'code': 'def f(self, x):\n    y = x + 1\n    return y', 'docstring': 'Adds one to x, the usual way.', 'name': 'f'}


@pytest.mark.real_data
def test_tiny_shakespeare_is_the_real_one(raw_data, tmp_path):
    folder = str(raw_data / 'tinyshakespeare')
    names = ('train', 'validation')
    splits = {name: sources.tfds(name='lmx:tiny_shakespeare', split=name, data_dir=str(tmp_path), manual_dir=folder) for name in names}
    texts = [all_of(dataset)[0]['text'] for dataset in splits.values()]
    assert [len(t) for t in texts] == [1_003_854, 111_540]
    assert text.characters(source=splits['train']).vocab_size == 65


@pytest.mark.real_data
def test_wikitext2_counts_words_as_the_field_does(raw_data, tmp_path):
    (record,) = all_of(sources.tfds(name='lmx:wikitext2', split='test', data_dir=str(tmp_path), manual_dir=str(raw_data / 'wikitext2')))
    assert len(record['text'].split()) + record['text'].count('\n') == 245_569


def write(path: pathlib.Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda p: sources.text_files(pattern=f'{p}/*.none'), 'no file matches'),
        (lambda p: sources.text_files(pattern=write(p / 'e.txt', b''))[0], 'is empty'),
        (lambda p: sources.text_files(pattern=write(p / 'l.txt', b'caf\xe9'))[0], r"not UTF-8 at byte 3 \(b'\\xe9'\)"),
        (lambda p: sources.jsonl(pattern=write(p / 'j.jsonl', b'{"a": 1}\n{broken')), 'j.jsonl:2 is not JSON'),
        (lambda p: sources.jsonl(pattern=write(p / 'j.jsonl', b'[1]')), 'not a JSON object'),
        (lambda p: sources.jsonl(pattern=write(p / 'j.jsonl', b'{"a": 1}'), fields={'text': 'b'})[0], "no field 'b'; there are a"),
        (lambda p: sources.parquet(pattern=write(p / 'x.parquet', b'text')), 'not a Parquet file'),
        (lambda p: sources.mixture(sources=(), weights=(1.0,)), 'one positive weight per source'),
        (lambda p: sources.tfds(name='lmx:python_stlib', split='train'), "did you mean 'python_stdlib'"),
        (lambda p: sources.tfds(name='lmx:python_stdlib/txt', split='train'), 'there are text, functions'),
        (lambda p: sources.tfds(name='lmx:tiny_shakespeare', split='train', data_dir=str(p), manual_dir=str(p)), 'needs input.txt'),
        (lambda p: sources.tfds(name='mnits', split='train', data_dir=str(p)), "did you mean 'mnist'"),
        (lambda p: sources.tfds(name='wmt14_translate/de-en', split='train', data_dir=str(p)), r'lmx\[tf\]'),
    ],
)
def test_refusals(tmp_path, make, says):
    with pytest.raises(BadInput, match=says) as error:
        make(tmp_path)
    assert '\n' not in str(error.value)


def test_without_a_network_it_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, '_online', lambda: False)
    start = time.monotonic()
    with pytest.raises(BadInput, match='there is no network'):
        sources.tfds(name='mnist', split='train', data_dir=str(tmp_path))
    assert time.monotonic() - start < 10


def test_an_unknown_split_lists_the_known(tmp_path):
    with pytest.raises(BadInput, match="has no split 'dev'; there are"):
        sources.tfds(name='lmx:python_stdlib/text', split='dev', data_dir=str(tmp_path))


def test_a_parquet_directory_is_refused(tmp_path, monkeypatch):
    builder = python_stdlib.builder('text', data_dir=str(tmp_path), file_format='parquet')
    builder.download_and_prepare(file_format='parquet')
    monkeypatch.setattr(catalogue, '_ours', lambda name, data_dir: builder)
    with pytest.raises(BadInput, match='parquet format'):
        sources.tfds(name='lmx:python_stdlib/text', split='train', data_dir=str(tmp_path))
