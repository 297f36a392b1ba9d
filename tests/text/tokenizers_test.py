"""Tokenizers: lossless where they say so, the bytes of every id, one file format, clear refusals."""

import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

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


def wordpiece(source, **settings):
    return text.wordpiece(source=source, vocab_size=150, **settings)


def unigram(source, **settings):
    pytest.importorskip('sentencepiece')
    return text.unigram(source=source, vocab_size=380, **settings)


def test_wordpiece_reads_as_bert_does(source):
    tokenizer = wordpiece(source)
    assert [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id] == [0, 1, 2, 3, 4]
    assert tokenizer.vocab_size <= 150
    assert tokenizer.bos_id is tokenizer.eos_id is tokenizer.pieces is None
    assert tokenizer.encode('CLASS Größe').tolist() == tokenizer.encode('class\tgroße').tolist()
    assert tokenizer.decode(tokenizer.encode('def  Größe')) == 'def große'
    kept = wordpiece(source, lowercase=False)
    assert kept.decode(kept.encode('def  Größe')) == 'def Größe'
    accents = wordpiece(source, strip_accents=False)
    assert accents.decode(accents.encode('naïve')) == 'naïve'
    assert tokenizer.encode('☃').tolist() == [tokenizer.unk_id]
    ids, types = tokenizer.encode_pair('def', 'class pass')
    assert tokenizer.decode(ids) == 'def class pass'
    assert ids[0] == 2
    assert (ids == 3).sum() == 2
    assert types.tolist() == [0] * 3 + [1] * (len(ids) - 3)


def test_unigram_follows_sentencepiece_and_t5(source):
    tokenizer = unigram(source, sentinels=3)
    assert [tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id] == [0, 1, 2]
    assert tokenizer.vocab_size <= 380
    assert tokenizer.sentinel_ids == tuple(tokenizer.vocab_size - 1 - index for index in range(3))
    assert tokenizer.encode_pair('def', 'pass')[0].tolist() == [*tokenizer.encode('def'), 1, *tokenizer.encode('pass'), 1]
    for given in ('return x + 1', 'Größe ☃ Ω <0x41> </s> <extra_id_0>', 'κόσμε 🎉'):
        ids = tokenizer.encode(given)
        assert tokenizer.decode(ids) == given
        assert not tokenizer.is_special[ids].any()
    assert tokenizer.decode(tokenizer.encode('  a \n\n ﬁ ')) == 'a fi'
    few = unigram(source, byte_fallback=False)
    assert few.unk_id in few.encode('☃')
    assert few.sentinel_ids == ()


@pytest.mark.parametrize('make', [wordpiece, unigram])
def test_trained_once_and_then_read_from_the_cache(source, make, tmp_path, monkeypatch):
    monkeypatch.setenv('LMX_CACHE', str(tmp_path))
    first = make(source)
    (kept,) = (tmp_path / 'tokenizers').glob('*.json')
    second = make(source)
    assert second.fingerprint == first.fingerprint
    assert second.encode(TEXT).tolist() == first.encode(TEXT).tolist()
    text.byte_level().save(kept)
    assert make(source).fingerprint == text.byte_level().fingerprint  # read, not learnt again


@pytest.mark.parametrize('make', [wordpiece, unigram])
def test_trained_again_is_the_same(make, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    lines = [{'text': ' '.join(''.join(rng.choice(list('abcdefghij'), rng.integers(1, 8))) for _ in range(50))} for _ in range(20)]
    prints = set()
    for index in range(6):  # the library's own order is random within one process as well
        monkeypatch.setenv('LMX_CACHE', str(tmp_path / str(index)))
        prints.add(make(sources.in_memory(records=lines)).fingerprint)
    assert len(prints) == 1


def test_roles_and_chat_template_survive_saving(tmp_path):
    inner = text.byte_level().inner
    inner.add_special_tokens(['<|end|>'])
    specials = {'eos': '<|end|>', 'pad': '<|endoftext|>', 'bos': None}
    text.Tokenizer(inner, specials=specials, chat_template='{{ x }}').save(tmp_path / 'tokenizer.json')
    again = text.load(path=str(tmp_path))
    assert [again.eos_id, again.pad_id, again.bos_id, again.mask_id] == [257, 256, None, None]
    assert again.chat_template == '{{ x }}'
    text.byte_level().save(tmp_path / 'tokenizer.json')
    again = text.load(path=str(tmp_path / 'tokenizer.json'))
    assert [again.eos_id, again.pad_id, again.chat_template] == [256, None, None]


def processed(post_processor):
    inner = text.byte_level().inner
    inner.add_special_tokens(['<a>', '<z>'])
    inner.post_processor = post_processor
    return text.Tokenizer(inner)


@pytest.mark.parametrize(
    'post_processor',
    [
        processors.BertProcessing(('<z>', 258), ('<a>', 257)),
        processors.RobertaProcessing(('<z>', 258), ('<a>', 257), add_prefix_space=False),
        processors.TemplateProcessing(single='$A <z>', pair='$B:3 <a>:2 <z> $A', special_tokens=[('<a>', 257), ('<z>', 258)]),
        processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(single='<a> $0', special_tokens=[('<a>', 257)])]),
        processors.ByteLevel(),
    ],
)
def test_join_is_what_the_library_does(post_processor):
    tokenizer = processed(post_processor)
    for pair in (('some text',), ('some text', ' and more')):
        want = tokenizer.inner.encode(*pair)
        ids, types = tokenizer.join(*(tokenizer.encode(each) for each in pair))
        assert ids.tolist() == want.ids
        assert types.tolist() == want.type_ids
        assert ids.dtype == types.dtype == np.int32


def test_pairs_are_cut_to_the_length(source):
    tokenizer = wordpiece(source)
    for length in (4, 5, 6, 20):
        assert len(tokenizer.encode_pair('pass ' * 30, 'class ' * 30, max_length=length)[0]) == length
    ids, _ = tokenizer.encode_pair('pass', 'class ' * 30, max_length=10)
    assert tokenizer.decode(ids) == 'pass' + ' class' * 6


def test_a_file_that_cuts_and_pads_does_neither_here(tmp_path):
    inner = text.byte_level().inner
    inner.enable_truncation(3)
    inner.enable_padding(length=8)
    inner.save(str(tmp_path / 'tokenizer.json'))
    tokenizer = text.load(path=str(tmp_path))
    assert [each.tolist() for each in tokenizer.encode_batch(['abcdef', 'a'])] == [list(b'abcdef'), [97]]


@pytest.mark.parametrize('kind', ['Unigram', 'WordPiece'])
def test_models_that_find_specials_in_text_are_kept_from_it(kind):
    if kind == 'Unigram':
        inner = Tokenizer(models.Unigram([('<unk>', 0.0), ('</s>', 0.0), *((c, -2.0) for c in '</s>ab')], unk_id=0))
    else:
        inner = Tokenizer(models.WordPiece({'<unk>': 0, '</s>': 1, **{c: 9 + i for i, c in enumerate('</s>ab')}}, unk_token='<unk>'))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(['</s>'])
    inner.encode_special_tokens = True
    assert 1 in inner.encode('</s>').ids  # as the library does it
    tokenizer = text.Tokenizer(inner)
    assert 1 not in tokenizer.encode('</s>')
    if kind == 'Unigram':
        assert tokenizer.decode(tokenizer.encode('a</s>b')).replace(' ', '') == 'a</s>b'
    assert text.Tokenizer(Tokenizer.from_str(tokenizer._state)).fingerprint == tokenizer.fingerprint


def test_offsets_and_words(source):
    given = 'class  Größe:\n pass'
    for tokenizer in (wordpiece(source), unigram(source), text.bpe(source=source, vocab_size=300), text.characters(source=source)):
        ids, offsets = tokenizer.encode_with_offsets(given)
        assert ids.tolist() == tokenizer.encode(given).tolist()
        covered = {place for start, end in offsets for place in range(start, end)}
        assert covered >= {place for place, character in enumerate(given) if not character.isspace()}
    assert text.byte_level().encode_with_offsets('é🎉')[1].tolist() == [[0, 1]] * 2 + [[1, 2]] * 4
    assert text.byte_level().encode_with_offsets('')[1].shape == (0, 2)
    tokenizer = wordpiece(source)
    ids, offsets = tokenizer.encode_with_offsets(given)
    words = tokenizer.word_ids(given)
    texts = [given[offsets[words == word, 0].min() : offsets[words == word, 1].max()] for word in range(words.max() + 1)]
    assert texts == ['class', 'Größe', ':', 'pass']


@pytest.mark.parametrize('make', [wordpiece, unigram, lambda source: text.bpe(source=source, vocab_size=300)])
def test_marks_of_word_starts_agree_with_the_words(source, make):
    """Where words are parted by blanks alone, the table finds the places that the pre-tokenizer finds."""
    tokenizer = make(source)
    given = ' return Größe def naïve passes returned'
    ids, words = tokenizer.encode(given), tokenizer.word_ids(given)
    starts = np.diff(words, prepend=-1) != 0
    assert tokenizer.starts_word[ids].tolist() == starts.tolist()
    assert 1 < starts.sum() < len(ids)


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
        (lambda source: text.wordpiece(source=source, vocab_size=20), 'smaller than the specials and characters; give at least'),
        (lambda source: text.wordpiece(source=sources.in_memory(records=[{'text': ''}]), vocab_size=99), 'no text'),
        (lambda source: wordpiece(source).encode_pair('a', 'b', max_length=3), 'max_length 3 leaves no room beside 3 special tokens'),
        (lambda source: wordpiece(source).encode_with_offsets('\udc80'), 'no Unicode text'),
    ],
)
def test_refusals(source, make, says):
    with pytest.raises(BadInput, match=says):
        make(source)


def test_unigram_refuses_what_sentencepiece_cannot_learn(source):
    pytest.importorskip('sentencepiece')
    with pytest.raises(BadInput, match='unigram vocab_size 20 does not suit the text'):
        text.unigram(source=source, vocab_size=20)
    with pytest.raises(BadInput, match='no text'):
        text.unigram(source=sources.in_memory(records=[{'text': ''}]), vocab_size=300)
