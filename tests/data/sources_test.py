"""Sources: what they read, that their identity follows the content, and that each refusal is one clear line."""

import gzip
import json
import lzma
import os
import pathlib
import socket
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from lmx import text
from lmx.data import cache, catalogue, sources
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


def test_only_line_feeds_end_lines(tmp_path):
    first = 'a\u2028b\x85c\x0cd'
    (tmp_path / 'a.txt').write_bytes(f'{first}\r\nsecond\n'.encode())
    (tmp_path / 'a.jsonl').write_text(
        json.dumps({'text': first.replace('\x0c', '')}, ensure_ascii=False) + '\n{"text": "second"}\n', 'utf-8'
    )
    assert [r['text'] for r in all_of(sources.lines(pattern=f'{tmp_path}/a.txt'))] == [first, 'second']
    assert [r['text'] for r in all_of(sources.jsonl(pattern=f'{tmp_path}/a.jsonl'))] == [first.replace('\x0c', ''), 'second']


def test_a_pattern_finds_files_in_folders_but_no_folders(tmp_path):
    (tmp_path / 'deep' / 'er').mkdir(parents=True)
    (tmp_path / 'deep' / 'er' / 'a.txt').write_text('x')
    assert len(sources.text_files(pattern=f'{tmp_path}/**')) == 1


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


def test_a_pass_over_any_mixture_holds_every_example():
    rng = np.random.default_rng(0)
    for _ in range(100):
        lengths = rng.integers(1, 30, rng.integers(1, 5))
        weights = (rng.random(len(lengths)) + 0.05).tolist()
        parts = [sources.in_memory(records=[{'text': f'{part}-{i}'} for i in range(count)]) for part, count in enumerate(lengths)]
        mixed = sources.mixture(sources=parts, weights=weights)
        assert len({record['text'] for record in all_of(mixed)}) == lengths.sum()
        shares = np.bincount([int(mixed[i]['text'].split('-')[0]) for i in range(len(mixed))], minlength=len(parts)) / len(mixed)
        # whole examples: a source is at most as many examples off as there are sources, and weights are kept to 1/100 of the smallest
        np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=len(parts) / len(mixed) + 0.005 * len(parts))


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


def test_the_fingerprint_is_the_content_not_the_place(tmp_path, monkeypatch):
    monkeypatch.setenv('LMX_CACHE', str(tmp_path / 'cache'))
    prints = []
    for folder, words in (('a', 'hello'), ('b', 'hello'), ('c', 'jello')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'x.txt').write_text(words)
        os.utime(tmp_path / folder / 'x.txt', (0, len(prints)))
        prints.append(token_cache(sources.text_files(pattern=f'{tmp_path}/{folder}/*'), text.byte_level()).fingerprint)
    assert prints[0] == prints[1] != prints[2]
    split = [
        token_cache(sources.in_memory(records=[{'text': t} for t in texts]), text.byte_level()) for texts in (('ab', 'c'), ('a', 'bc'))
    ]
    assert split[0].fingerprint != split[1].fingerprint


def test_the_token_cache_is_the_same_in_many_batches(tmp_path, monkeypatch):
    records = sources.in_memory(records=[{'text': 'x' * count} for count in range(50)])
    found = []
    for size in (1, 300, 10**6):
        monkeypatch.setenv('LMX_CACHE', str(tmp_path / str(size)))
        monkeypatch.setattr(cache, 'BATCH', size)
        found.append(token_cache(records, text.byte_level()))
    assert len({each.fingerprint for each in found}) == 1
    assert np.diff(found[0].offsets).tolist() == list(range(50))


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


def test_functions_counts_lines_as_python_does():
    code = 'x = 1\n\x0c\r\ndef f(x):\n    """Adds one to x."""\n    y = x + 1\n    return y\n'
    assert [record['code'] for _, record in python_stdlib.functions(code)] == ['def f(x):\n    y = x + 1\n    return y']
    assert not list(python_stdlib.functions('def f(): "one two three"; return 1\n'))
    assert not list(python_stdlib.functions('def f():\n    "one two three"; y = 1\n    z = 2\n    return y\n'))


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
        (lambda p: sources.text_files(pattern=write(p / 'g.txt.gz', gzip.compress(b'hello' * 99)[:20]))[0], 'is damaged'),
        (lambda p: sources.text_files(pattern=write(p / 'x.txt.xz', b'hello'))[0], 'is damaged'),
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
    monkeypatch.setattr(catalogue, 'online', lambda url: False)
    start = time.monotonic()
    with pytest.raises(BadInput, match='there is no network'):
        sources.tfds(name='mnist', split='train', data_dir=str(tmp_path))
    assert time.monotonic() - start < 10


def test_splits_add_up_and_an_unknown_one_lists_the_known(tmp_path):
    count = {
        split: len(sources.tfds(name='lmx:python_stdlib/text', split=split, data_dir=str(tmp_path)))
        for split in ('train', 'validation', 'test', 'train+test', 'all')
    }
    assert count['train+test'] == count['train'] + count['test']
    assert count['all'] == count['train+test'] + count['validation']
    for split in ('dev', 'train[', 'train+dev'):
        with pytest.raises(BadInput, match=r'has no split .*; there are train'):
            sources.tfds(name='lmx:python_stdlib/text', split=split, data_dir=str(tmp_path))


def test_a_limit_takes_examples_from_all_over_a_split(tmp_path):
    whole, some, more = (
        [record['path'] for record in all_of(source)]
        for source in (
            sources.tfds(name='lmx:python_stdlib/text', split='validation', data_dir=str(tmp_path), limit=limit)
            for limit in (None, 5, 10**6)
        )
    )
    assert len(whole) >= 10
    assert len(some) == 5
    assert whole.index(some[-1]) >= len(whole) // 2
    assert more == whole
    with pytest.raises(BadInput, match='limit 0 must be at least 1'):
        sources.tfds(name='lmx:python_stdlib/text', split='validation', data_dir=str(tmp_path), limit=0)


class Glue(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stands for a data set that TFDS cannot even list without TensorFlow, prepared where there was one."""

    name = 'glue'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({'text': tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {'train': [(i, {'text': f'{i}'}) for i in range(3)]}

    def _generate_examples(self):
        raise NotImplementedError


def test_what_another_machine_prepared_is_read(tmp_path):
    config = tfds.core.BuilderConfig(name='cola', description='')
    Glue(config=config, data_dir=str(tmp_path), file_format='array_record').download_and_prepare(file_format='array_record')
    records = all_of(sources.tfds(name='glue/cola', split='train', data_dir=str(tmp_path)))
    assert sorted(record['text'] for record in records) == ['0', '1', '2']
    (info,) = tmp_path.glob('glue/cola/*/dataset_info.json')
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(BadInput, match='tfrecord format, which has no random access'):
        sources.tfds(name='glue/cola', split='train', data_dir=str(tmp_path))


def test_a_connection_is_looked_for_at_the_proxy(monkeypatch):
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setenv('https_proxy', f'http://127.0.0.1:{port}')
        monkeypatch.delenv('no_proxy', raising=False)
        monkeypatch.delenv('NO_PROXY', raising=False)
        assert catalogue.online('https://example.invalid')
    assert not catalogue.online('https://example.invalid')


def test_a_parquet_directory_is_refused(tmp_path, monkeypatch):
    builder = python_stdlib.builder('text', data_dir=str(tmp_path), file_format='parquet')
    builder.download_and_prepare(file_format='parquet')
    monkeypatch.setattr(catalogue, '_ours', lambda name, data_dir: builder)
    with pytest.raises(BadInput, match='parquet format'):
        sources.tfds(name='lmx:python_stdlib/text', split='train', data_dir=str(tmp_path))
