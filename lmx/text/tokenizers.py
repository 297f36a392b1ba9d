"""Tokenizers over the `tokenizers` library: bytes, characters, words and byte-level BPE, all stored as its `tokenizer.json`."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lmx.types import BadInput

EOS = '<|endoftext|>'
UNKNOWN = '<unk>'
LINE = '<eos>'


class Tokenizer:
    """Text to ids and back.

    Attributes:
      vocab_size: the number of ids.
      eos_id: the id that separates documents, or None.
      pieces: the bytes that each id stands for (b'' for specials), or None where the tokenizer is lossy, so that nobody counts bits per
        byte of text that it dropped.
      fingerprint: a hash of all that decides what `encode` returns.
    """

    def __init__(self, inner: Any):
        self.inner = inner
        inner.encode_special_tokens = True  # a text that spells a special token out is text: else '<|endoftext|>' in a file would vanish
        self.vocab_size: int = inner.get_vocab_size()
        self.eos_id: int | None = inner.token_to_id(EOS)
        self._state = inner.to_str()
        self.fingerprint = hashlib.blake2b(self._state.encode(), digest_size=16).hexdigest()
        self._model = json.loads(self._state)['model']
        self._closed = self._model['type'] == 'WordLevel' and inner.token_to_id(self._model['unk_token']) is None

    def encode(self, text: str) -> np.ndarray:
        """Ids, int32 [length].

        Raises:
          BadInput: a character that a character tokenizer has not, or that UTF-8 cannot say.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each, in parallel."""
        if self._closed:
            for text in texts:
                self._check(text)
        try:
            found = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            for text in texts:
                _check_unicode(text)
            raise
        return [np.array(each.ids, np.int32) for each in found]

    def decode(self, ids: Any) -> str:
        """Text; specials are dropped, bytes that are no UTF-8 become U+FFFD."""
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=True)

    @functools.cached_property
    def pieces(self) -> tuple[bytes, ...] | None:
        added = self.inner.get_added_tokens_decoder()
        tokens = [self.inner.id_to_token(i) for i in range(self.vocab_size)]
        if self._closed:
            return tuple(b'' if i in added else token.encode() for i, token in enumerate(tokens))
        if not self._keeps_bytes(tokens, added):
            return None
        table = _byte_of_character()
        return tuple(b'' if i in added else bytes(table[c] for c in token) for i, token in enumerate(tokens))

    def _keeps_bytes(self, tokens: Sequence[str | None], added: dict[int, Any]) -> bool:
        """Whether this is byte-level BPE through and through; somebody else's may rewrite text, or put a blank before it."""
        state = json.loads(self._state)
        before = state['pre_tokenizer'] or {}
        bytewise = self._model['type'] == 'BPE' and before.get('type') == 'ByteLevel' and not before['add_prefix_space']
        whole = None not in tokens and set(_byte_of_character()) <= set(tokens)
        return bytewise and whole and not state['normalizer'] and all(token.special for token in added.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json`; the file appears whole or not at all."""
        target = pathlib.Path(path)
        part = target.with_name(f'{target.name}.{os.getpid()}.part')
        part.write_text(self._state, encoding='utf-8')
        part.replace(target)

    def _check(self, text: str) -> None:
        unknown = set(text) - self._characters
        if unknown:
            place, character = next((place, c) for place, c in enumerate(text) if c in unknown)
            raise BadInput(
                f'character {character!r} at position {place} is not among the {self.vocab_size} characters of the training text; remove it'
            )

    @functools.cached_property
    def _characters(self) -> frozenset[str]:
        return frozenset(self.inner.get_vocab(with_added_tokens=False))


def byte_level() -> Tokenizer:
    """The 256 bytes and a document separator; needs no training and loses nothing."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_of_character().__getitem__)
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


def load(*, path: str) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, or of a folder that holds one (a run, a Hugging Face model).

    Raises:
      BadInput: there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer as Inner

    file = pathlib.Path(path)
    file = file / 'tokenizer.json' if file.is_dir() else file
    if not file.exists():
        raise BadInput(f'there is no tokenizer in {path}; give a tokenizer.json or a folder that holds one')
    try:
        return Tokenizer(Inner.from_file(str(file)))
    except Exception as error:
        raise BadInput(f'{file} is no tokenizer: {" ".join(str(error).split())[:200]}') from None


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
        text = _check_unicode(text_of(source[index], field))
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


def _check_unicode(text: str) -> bytes:
    """The text's bytes; JSON and command lines can bring half a character (a lone surrogate), which has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        around = text[max(error.start - 20, 0) : error.start + 20]
        raise BadInput(
            f'character {text[error.start]!r} at position {error.start} is no Unicode text (near {around!r}); remove it'
        ) from None


def _texts(source: Any, field: str) -> Iterator[str]:
    empty = True
    for index in range(len(source)):
        text = text_of(source[index], field)
        _check_unicode(text)
        empty = empty and not text
        yield text
    if empty:
        raise BadInput('the tokenizer has no text to learn from; is the source empty?')


def _byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    inner = Tokenizer(models.BPE(vocab, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([EOS])
    return inner


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The printable stand-in characters of byte-level BPE and the bytes they stand for (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
