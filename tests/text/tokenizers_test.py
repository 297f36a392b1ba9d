"""Tokenizers: lossless where they say so, the bytes of every id, one file format, clear refusals."""

import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from lmx import text
from lmx.data import sources
from lmx.types import BadInput

TEXT = 'def f(x):\n    return x + 1  # naïve\n\nclass Größe:\n\tpass\n' * 20


@pytest.fixture
def source():
    return sources.in_memory(records=[{'text': TEXT}, {'text': 'κόσμε 🎉\r\n'}])


def random_text(seed: int) -> str:
    """Any code points at all, surrogates left out, with runs of blanks and controls among them."""
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.integers(0, 0xD800, 60), rng.integers(0xE000, 0x110000, 20), rng.choice([9, 10, 13, 32, 0], 40)])
    return ''.join(chr(point) for point in rng.permutation(points))


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('make', [lambda source: text.byte_level(), lambda source: text.bpe(source=source, vocab_size=400)])
def test_bytes_and_bpe_lose_nothing(source, make, seed):
    tokenizer, given = make(source), random_text(seed)
    ids = tokenizer.encode(given)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == given
    assert b''.join(tokenizer.pieces[i] for i in ids) == given.encode()
    assert ids.max() < tokenizer.vocab_size


def test_byte_level_ids_are_the_bytes():
    tokenizer = text.byte_level()
    assert tokenizer.vocab_size == 257
    assert tokenizer.eos_id == 256
    assert tokenizer.encode('aé').tolist() == list('aé'.encode())
    assert tokenizer.pieces[256] == b''


@pytest.mark.parametrize('make', [lambda source: text.byte_level(), lambda source: text.bpe(source=source, vocab_size=300)])
def test_a_special_token_spelt_out_is_text(source, make):
    tokenizer, given = make(source), 'a<|endoftext|>b'
    ids = tokenizer.encode(given)
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == given
    assert b''.join(tokenizer.pieces[i] for i in ids) == given.encode()


def foreign(kind: str) -> Tokenizer:
    """Tokenizers as other people save them."""
    if kind == 'wordpiece':
        return Tokenizer(models.WordPiece({'[UNK]': 0, 'a': 1, '##b': 2}, unk_token='[UNK]'))
    if kind == 'words':
        inner = Tokenizer(models.WordLevel({'[UNK]': 0, 'cat': 1}, unk_token='[UNK]'))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        return inner
    inner = Tokenizer.from_str(text.byte_level().inner.to_str())
    inner.add_special_tokens(['<|start|>'])
    if kind == 'lower case':
        inner.normalizer = normalizers.Lowercase()
    if kind == 'blank in front':
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if kind == 'added word':
        inner.add_tokens(['Straße'])
    return inner


@pytest.mark.parametrize('kind', ['wordpiece', 'words', 'lower case', 'blank in front', 'added word', 'bytes'])
def test_pieces_only_where_no_byte_is_lost(kind, tmp_path):
    foreign(kind).save(str(tmp_path / 'tokenizer.json'))
    tokenizer = text.load(path=str(tmp_path))
    if kind == 'bytes':
        assert tokenizer.pieces[-2:] == (b'', b'')
        assert tokenizer.pieces[:256] == tuple(bytes([byte]) for byte in range(256))
    else:
        assert tokenizer.pieces is None
    if kind == 'words':
        assert tokenizer.encode('cat dog').tolist() == [1, 0]


def test_bpe_merges_what_is_frequent_and_keeps_to_the_limit(source):
    small, large = (text.bpe(source=source, vocab_size=size) for size in (257, 320))
    assert small.vocab_size == 257
    assert large.vocab_size <= 320
    assert len(large.encode(TEXT)) < len(small.encode(TEXT)) == len(TEXT.encode())
    assert large.decode([large.eos_id]) == ''


def test_characters(source):
    tokenizer = text.characters(source=source)
    known = sorted(set(TEXT + 'κόσμε 🎉\r\n'))
    assert tokenizer.vocab_size == len(known)
    assert tokenizer.eos_id is None
    assert tokenizer.encode('fx').tolist() == [known.index('f'), known.index('x')]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert b''.join(tokenizer.pieces) == ''.join(known).encode()
    assert text.characters(source=source, eos=True).eos_id == len(known)


def test_words_count_lines_and_mark_the_unknown():
    source = sources.in_memory(records=[{'text': ' the cat sat \n the cat \n <unk> ran \n'}])
    tokenizer = text.words(source=source)
    ids = tokenizer.encode(' the dog \n')
    assert [tokenizer.inner.id_to_token(int(i)) for i in ids] == ['the', '<unk>', '<eos>']
    assert tokenizer.pieces is None
    assert text.words(source=source, min_count=2).vocab_size == 4
    assert text.words(source=source, vocab_size=3).vocab_size == 3


def test_saved_and_loaded_are_the_same(source, tmp_path):
    for tokenizer in (text.byte_level(), text.bpe(source=source, vocab_size=300), text.characters(source=source)):
        tokenizer.save(tmp_path / 'tokenizer.json')
        again = text.load(path=str(tmp_path))
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
        assert again.pieces == tokenizer.pieces


def test_training_gives_the_same_in_another_process(source, tmp_path):
    code = (
        'import sys; sys.path.insert(0, "."); from tests.text.tokenizers_test import TEXT; from lmx import text; from lmx.data import sources;'
        'print(text.bpe(source=sources.in_memory(records=[{"text": TEXT}]), vocab_size=300).fingerprint)'
    )
    prints = set()
    for index in range(2):
        env = {'LMX_CACHE': str(tmp_path / str(index)), 'PATH': ''}
        prints.add(subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout)
    assert len(prints) == 1


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda source: text.bpe(source=source, vocab_size=256), 'at least 257'),
        (lambda source: text.words(source=source, vocab_size=2), 'at least 3'),
        (lambda source: text.characters(source=source, field='txt'), "no field 'txt'"),
        (lambda source: text.bpe(source=sources.in_memory(records=[{'text': ''}]), vocab_size=300), 'no text'),
        (lambda source: text.characters(source=source).encode('def Ω'), "'Ω' at position 4"),
        (lambda source: text.words(source=source, min_count=999), 'leaves no word'),
        (lambda source: text.byte_level().encode('ab\udc80'), r"'\\udc80' at position 2"),
        (lambda source: text.bpe(source=sources.in_memory(records=[{'text': '\ud800'}]), vocab_size=300), 'no Unicode text'),
        (lambda source: text.bpe(source=sources.in_memory(records=[{'text': None}]), vocab_size=300), "holds 'None', which is no text"),
        (lambda source: text.load(path='nowhere'), 'no tokenizer'),
    ],
)
def test_refusals(source, make, says):
    with pytest.raises(BadInput, match=says):
        make(source)
