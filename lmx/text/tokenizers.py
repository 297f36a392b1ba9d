"""Tokenizers that are learnt from a source: bytes, characters, words, BPE, WordPiece and Unigram."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lmx.text.ids import EOS, LINE, UNKNOWN, Tokenizer, byte_of_character, check_unicode, load, template
from lmx.types import BadInput


def byte_level() -> Tokenizer:
    """The 256 bytes and a document separator; needs no training and loses nothing."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=byte_of_character().__getitem__)
    return Tokenizer(_byte_level_bpe({character: index for index, character in enumerate(alphabet)}, []))


def bpe(*, source: Any, vocab_size: int, field: str = 'text') -> Tokenizer:
    """Byte-level BPE as GPT-2's (Sennrich et al. 2016, arXiv:1508.07909), learnt from a MapDataset of records; loses nothing.

    Args:
      vocab_size: ids at most, the 256 bytes and the document separator included; fewer where the text has no more pairs to merge.

    Raises:
      BadInput: a vocabulary smaller than 257, or no text.
    """
    if vocab_size < 257:
        raise BadInput(f'bpe vocab_size {vocab_size} is smaller than the 256 bytes and the separator; give at least 257')

    def train() -> Any:
        from tokenizers import pre_tokenizers, trainers

        inner = _byte_level_bpe({}, [])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        inner.train_from_iterator(_texts(source, field), trainer=trainer)
        return inner

    return _cached(('bpe', vocab_size), source, field, train)


def wordpiece(*, source: Any, vocab_size: int, field: str = 'text', lowercase: bool = True, strip_accents: bool | None = None) -> Tokenizer:
    """WordPiece as BERT reads it (Schuster & Nakajima 2012; Devlin et al. 2019, arXiv:1810.04805), learnt from a MapDataset of records.

    Pieces are merged by frequency, as the `tokenizers` library does, not by likelihood. [PAD] [UNK] [CLS] [SEP] [MASK] are ids 0 to 4.
    Lossy: case, accents, blanks and control characters go.

    Args:
      vocab_size: ids at most, the specials and every character, at the start of a word and within, included.
      lowercase: whether case is dropped.
      strip_accents: whether accents are dropped; None = with the case.

    Raises:
      BadInput: a vocabulary smaller than the specials and the characters, or no text.
    """
    specials = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']

    def learn(size: int, first: list[str]) -> dict[str, int]:
        from tokenizers import trainers

        inner = bert({}, lowercase=lowercase, strip_accents=strip_accents)
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=first, show_progress=False)
        inner.train_from_iterator(_texts(source, field), trainer=trainer)
        return inner.get_vocab()

    def train() -> Any:
        # The library numbers the characters within words, and so breaks ties, in a random order; naming them first, in order, fixes it.
        within = sorted(piece for piece in learn(0, []) if piece.startswith('##'))
        vocab = learn(vocab_size, [*specials, *within])
        if len(vocab) > vocab_size:
            raise BadInput(f'wordpiece vocab_size {vocab_size} is smaller than the specials and characters; give at least {len(vocab)}')
        inner = bert(vocab, lowercase=lowercase, strip_accents=strip_accents)
        inner.add_special_tokens(specials)
        inner.post_processor = template('[CLS] $A [SEP]', '[CLS] $A [SEP] $B:1 [SEP]:1', inner)
        return inner

    return _cached(('wordpiece', vocab_size, lowercase, strip_accents), source, field, train)


def unigram(
    *, source: Any, vocab_size: int, field: str = 'text', byte_fallback: bool = True, character_coverage: float = 0.9995, sentinels: int = 0
) -> Tokenizer:
    """Unigram language model (Kudo 2018, arXiv:1804.10959) as SentencePiece learns and T5 uses it: NFKC, `▁` for blanks, one in front.

    <pad> </s> <unk> are ids 0 to 2. Lossy: NFKC, runs of blanks. Needs the `sentencepiece` library to learn, not to load, as the
    trainer of `tokenizers` does not give the same twice.

    Args:
      vocab_size: ids at most, specials, bytes and sentinels included; fewer where the text has no more pieces.
      byte_fallback: whether rare characters are spelt in 256 byte tokens; else they are <unk>.
      character_coverage: the share of the text's characters that get an id of their own.
      sentinels: how many <extra_id_N> there are for span corruption (Raffel et al. 2020, arXiv:1910.10683); <extra_id_0> is the last id.

    Raises:
      BadInput: a vocabulary smaller than what must be in it, no text, or no `sentencepiece`.
    """

    def train() -> Any:
        from lmx.text.pretrained import convert, read_model

        try:
            import sentencepiece
        except ModuleNotFoundError:
            raise BadInput("unigram learns with sentencepiece, which is not installed; `pip install 'lmx[sentencepiece]'`") from None
        out = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line for text in _texts(source, field) for line in text.split('\n')),
                model_writer=out,
                model_type='unigram',
                vocab_size=vocab_size - sentinels,
                hard_vocab_limit=False,
                byte_fallback=byte_fallback,
                character_coverage=character_coverage,
                max_sentence_length=1 << 30,
                num_threads=1,
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                minloglevel=9,
            )
        except RuntimeError as error:
            raise BadInput(f'unigram vocab_size {vocab_size} does not suit the text: {" ".join(str(error).split())[-200:]}') from None
        inner = convert(read_model(out.getvalue(), 'the trained model'))
        inner.add_special_tokens([f'<extra_id_{index}>' for index in reversed(range(sentinels))])
        inner.post_processor = template('$A </s>', '$A </s> $B </s>', inner)
        return inner

    return _cached(('unigram', vocab_size, byte_fallback, character_coverage, sentinels), source, field, train)


def characters(*, source: Any, field: str = 'text', eos: bool = False) -> Tokenizer:
    """One id per character of the source, in code point order; `eos` adds a document separator. Other characters are refused.

    Raises:
      BadInput: no text.
    """

    def train() -> Any:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

        found: set[str] = set()
        for text in _texts(source, field):
            found |= set(text)
        inner = Tokenizer(models.WordLevel({character: index for index, character in enumerate(sorted(found))}, unk_token=UNKNOWN))
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
        inner.decoder = decoders.Fuse()
        if eos:
            inner.add_special_tokens([EOS])
        return inner

    return _cached(('characters', eos), source, field, train)


def words(*, source: Any, field: str = 'text', vocab_size: int | None = None, min_count: int = 1) -> Tokenizer:
    """Whitespace words, each line end as `<eos>`, as WikiText's published figures count; others are `<unk>`.

    Args:
      vocab_size: ids at most, `<unk>` and `<eos>` included; the most frequent words. None = all.
      min_count: rarer words are unknown.

    Raises:
      BadInput: a vocabulary smaller than 3, a count that no word reaches, or no text.
    """
    if vocab_size is not None and vocab_size < 3:
        raise BadInput(f'words vocab_size {vocab_size} leaves no room for words beside {UNKNOWN} and {LINE}; give at least 3')

    def train() -> Any:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        counts: Counter[str] = Counter()
        for text in _texts(source, field):
            counts.update(text.split())
        for special in (UNKNOWN, LINE):
            counts.pop(special, None)
        kept = [word for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= min_count]
        if not kept:
            raise BadInput(f'words min_count {min_count} leaves no word; the most frequent occurs {max(counts.values(), default=0)} times')
        kept = [UNKNOWN, LINE, *kept][:vocab_size]
        inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(kept)}, unk_token=UNKNOWN))
        inner.normalizer = normalizers.Replace(Regex(r'\n'), f' {LINE} ')
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        inner.decoder = decoders.Sequence([decoders.WordPiece(prefix='', cleanup=False), decoders.Replace(LINE, '\n')])
        return inner

    return _cached(('words', vocab_size, min_count), source, field, train)


def cache_dir() -> pathlib.Path:
    """Where everything that can be made again is kept: `$LMX_CACHE`, or ~/.cache/lmx."""
    return pathlib.Path(os.environ.get('LMX_CACHE', '~/.cache/lmx')).expanduser()


def source_fingerprint(source: Any, field: str) -> str:
    """A hash of the texts of a MapDataset; one that knows a cheaper identity of its content carries it as `lmx_fingerprint`."""
    known = getattr(source, 'lmx_fingerprint', None)
    if known is not None:
        return hashlib.blake2b(f'{known}/{field}'.encode(), digest_size=16).hexdigest()
    digest = hashlib.blake2b(field.encode(), digest_size=16)
    for index in range(len(source)):
        text = check_unicode(text_of(source[index], field))
        digest.update(len(text).to_bytes(8, 'little') + text)
    return digest.hexdigest()


def _cached(kind: tuple[Any, ...], source: Any, field: str, train: Any) -> Tokenizer:
    """The trained tokenizer, from the cache where the same one was trained before."""
    import tokenizers

    identity = json.dumps([*kind, source_fingerprint(source, field), tokenizers.__version__])
    path = cache_dir() / 'tokenizers' / f'{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.json'
    if path.exists():
        return load(path=str(path))
    made = Tokenizer(train())
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
    return made


def text_of(record: Any, field: str) -> str:
    """A field of a record.

    Raises:
      BadInput: the record has no such field, or no text in it.
    """
    if field not in record:
        raise BadInput(f'records have no field {field!r}, only {", ".join(record)}; name one of them')
    text = record[field]
    if not isinstance(text, str):
        raise BadInput(
            f'field {field!r} of a record holds {str(text)[:40]!r}, which is no text; name another field or leave the record out'
        )
    return text


def _texts(source: Any, field: str) -> Iterator[str]:
    empty = True
    for index in range(len(source)):
        text = text_of(source[index], field)
        check_unicode(text)
        empty = empty and not text
        yield text
    if empty:
        raise BadInput('the tokenizer has no text to learn from; is the source empty?')


def bert(vocab: dict[str, int], *, lowercase: bool, strip_accents: bool | None, chinese: bool = True, unknown: str = '[UNK]') -> Any:
    """BERT's WordPiece, without special tokens: control characters out, words split at blanks, punctuation and ideographs."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    inner = Tokenizer(models.WordPiece(vocab, unk_token=unknown))
    inner.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix='##')
    return inner


def _byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    inner = Tokenizer(models.BPE(vocab, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([EOS])
    return inner
