"""Text to ids and back, over the `tokenizers` library; every kind is stored as its `tokenizer.json`."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmx.types import BadInput

EOS = '<|endoftext|>'
UNKNOWN = '<unk>'
LINE = '<eos>'
ROLES = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')
_SPELLINGS = {  # how the roles are written where a file does not say
    'bos': ('<s>',),
    'eos': (EOS, '</s>'),
    'sep': ('[SEP]',),
    'pad': ('<pad>', '[PAD]'),
    'cls': ('[CLS]',),
    'mask': ('[MASK]', '<mask>'),
}


class Tokenizer:
    """Text to ids and back.

    Attributes:
      vocab_size: one more than the largest id.
      bos_id, eos_id, unk_id, sep_id, pad_id, cls_id, mask_id: the special tokens by what they are for; None where there is none.
        `eos_id` separates documents.
      pieces: the bytes that each id stands for (b'' for specials), or None where the tokenizer is lossy, so that nobody counts bits per
        byte of text that it dropped.
      is_special: bool [vocab_size]; the ids that no text is made of: never masked, never shown.
      starts_word: bool [vocab_size]; the ids that a word may begin with, which is what whole-word masking needs to know. Marks decide
        ('##' continues; a blank begins), so punctuation without a blank before it belongs to the word in all but WordPiece.
      chat_template: how a conversation is written, a Jinja template, or None.
      fingerprint: a hash of all that decides what `encode` returns.
    """

    def __init__(self, inner: Any, *, specials: Mapping[str, str | None] | None = None, chat_template: str | None = None):
        """Wraps a `tokenizers.Tokenizer`.

        Args:
          specials: the token of each of `ROLES`; what is missing is guessed from the usual spellings.
        """
        self.inner = inner
        inner.no_truncation()  # files of encoders often hold both, and would cut a long text in silence
        inner.no_padding()
        self.vocab_size: int = max(inner.get_vocab().values(), default=-1) + 1
        self._state = inner.to_str()
        self._parts = json.loads(self._state)
        self._model = self._parts['model']
        self.fingerprint = hashlib.blake2b(self._identity.encode(), digest_size=16).hexdigest()
        self._closed = self._model['type'] == 'WordLevel' and inner.token_to_id(self._model['unk_token']) is None
        self.chat_template = chat_template
        self._guessed = self._guess()
        self.specials: dict[str, str | None] = {**self._guessed, **(specials or {})}
        ids = {role: None if token is None else inner.token_to_id(token) for role, token in self.specials.items()}
        self.bos_id: int | None = ids['bos']
        self.eos_id: int | None = ids['eos']
        self.unk_id: int | None = ids['unk']
        self.sep_id: int | None = ids['sep']
        self.pad_id: int | None = ids['pad']
        self.cls_id: int | None = ids['cls']
        self.mask_id: int | None = ids['mask']
        inner.encode_special_tokens = True  # a text that spells a special token out is text: else '<|endoftext|>' in a file would vanish
        self._guard()

    def encode(self, text: str) -> np.ndarray:
        """Ids, int32 [length]; no special tokens.

        Raises:
          BadInput: a character that a character tokenizer has not, or that UTF-8 cannot say.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each, in parallel."""
        return [np.array(each.ids, np.int32) for each in self._encode(texts, self.inner.encode_batch_fast)]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`encode` and where each token comes from.

        Returns:
          (ids int32 [length], offsets int32 [length, 2]): token i is `text[start:end]`, counted in characters, the blanks around it left
          out unless it is all blank. Tokens that are parts of one character share its place.
        """
        (found,) = self._encode([text], self.inner.encode_batch)
        offsets = [_without_blanks(text, *place) for place in found.offsets]
        return np.array(found.ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2)

    def word_ids(self, text: str) -> np.ndarray:
        """The number of the word that each token of `encode(text)` belongs to, int32 [length]; words as the pre-tokenizer splits them."""
        (found,) = self._encode([text], self.inner.encode_batch)
        return np.array(found.word_ids, np.int32)

    def join(self, a: Any, b: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids of one text or two with the special tokens that the tokenizer puts around them: [CLS] a [SEP] b [SEP], a </s>, ...

        Returns:
          (ids int32 [length], types int32 [length]): types tell the parts apart, as BERT's sentences A and B. `len(join([], [])[0])` is
          the number of special tokens.
        """
        parts = {'A': np.asarray(a, np.int32), 'B': np.asarray([] if b is None else b, np.int32)}
        ids = [(parts[item] if isinstance(item, str) else np.array([item], np.int32), kind) for item, kind in self._template[b is not None]]
        return np.concatenate([part for part, _ in ids]), np.concatenate([np.full(len(part), kind, np.int32) for part, kind in ids])

    def encode_pair(self, a: str, b: str | None = None, *, max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`join` of the texts' ids.

        Args:
          max_length: ids at most; the end of the longer text is cut first. None = nothing is cut.

        Raises:
          BadInput: a length that the special tokens fill.
        """
        ids = self.encode_batch([a] if b is None else [a, b])
        if max_length is not None:
            room = max_length - len(self.join(*([] for _ in ids))[0])
            if room < 1:
                raise BadInput(f'max_length {max_length} leaves no room beside {max_length - room} special tokens; give more')
            ids = [each[:length] for each, length in zip(ids, _share(room, [len(each) for each in ids]), strict=True)]
        return self.join(*ids)

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
        table = byte_of_character()
        return tuple(b'' if i in added else bytes(table[c] for c in token) for i, token in enumerate(tokens))

    @functools.cached_property
    def is_special(self) -> np.ndarray:
        table = np.zeros(self.vocab_size, bool)
        table[[i for i, token in self.inner.get_added_tokens_decoder().items() if token.special]] = True
        roles = (self.bos_id, self.eos_id, self.unk_id, self.sep_id, self.pad_id, self.cls_id, self.mask_id)
        table[[i for i in roles if i is not None]] = True
        return table

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        tokens = [self.inner.id_to_token(i) or '' for i in range(self.vocab_size)]
        kind = self._model['type']
        if kind == 'WordPiece':
            begins = [not token.startswith(self._model['continuing_subword_prefix']) for token in tokens]
        elif kind == 'WordLevel':
            begins = [True for _ in tokens]
        else:
            blanks = (
                tuple(c for c, byte in byte_of_character().items() if chr(byte).isspace() and byte < 128) if self._bytewise else ('▁', ' ')
            )
            begins = [token.startswith(blanks) for token in tokens]
        return np.array(begins, bool) | self.is_special

    @functools.cached_property
    def sentinel_ids(self) -> tuple[int, ...]:
        """Ids of <extra_id_0>, <extra_id_1>, ..., which stand for the gaps of span corruption; () where there are none."""
        return tuple(
            itertools.takewhile(lambda i: i is not None, map(self.inner.token_to_id, (f'<extra_id_{n}>' for n in itertools.count())))
        )

    @functools.cached_property
    def _template(self) -> tuple[list[tuple[Any, int]], list[tuple[Any, int]]]:
        """For one text and for two: 'A', 'B' and ids of special tokens in their order, each with its type."""
        single: list[tuple[Any, int]] = [('A', 0)]
        pair: list[tuple[Any, int]] = [('A', 0), ('B', 1)]
        for part in _flat(self._parts['post_processor'], 'processors'):
            if part['type'] in ('BertProcessing', 'RobertaProcessing'):
                cls, sep = part['cls'][1], part['sep'][1]
                second = int(part['type'] == 'BertProcessing')
                single = [(cls, 0), ('A', 0), (sep, 0)]
                pair = [*single, *([] if second else [(sep, 0)]), ('B', second), (sep, second)]
            elif part['type'] == 'TemplateProcessing':
                single, pair = (_items(part[name], part['special_tokens']) for name in ('single', 'pair'))
        return single, pair

    @property
    def _identity(self) -> str:
        """The file's content; Unigram's scores to seven digits, as the library does not read back the last bit that it wrote."""
        if self._model['type'] != 'Unigram':
            return self._state
        rounded = [[piece, f'{score:.7g}'] for piece, score in self._model['vocab']]
        return json.dumps({**self._parts, 'model': {**self._model, 'vocab': rounded}})

    def _guess(self) -> dict[str, str | None]:
        added = {token.content for token in self.inner.get_added_tokens_decoder().values() if token.special}
        found = {role: next((token for token in _SPELLINGS.get(role, ()) if token in added), None) for role in ROLES}
        unknown = self._model.get('unk_token')
        if self._model.get('unk_id') is not None:
            unknown = self.inner.id_to_token(self._model['unk_id'])
        found['unk'] = None if unknown is None or self.inner.token_to_id(unknown) is None else unknown
        for part in _flat(self._parts['post_processor'], 'processors'):
            if part['type'] in ('BertProcessing', 'RobertaProcessing'):
                found['cls'], found['sep'] = part['cls'][0], part['sep'][0]
        return found

    def _guard(self) -> None:
        """Keeps the model from finding special tokens in text by itself, as Unigram does: a cut behind their first character.

        It is no part of the file, as others take such text for the special token anyway.
        """
        from tokenizers import Regex, pre_tokenizers

        if self._closed:
            return
        names = {token.content: i for i, token in self.inner.get_added_tokens_decoder().items() if token.special}
        if self._model.get('byte_fallback'):
            names |= {name: self.inner.token_to_id(name) for name in (f'<0x{byte:02X}>' for byte in range(256))}
        leaks = [name for name, found in names.items() if len(name) > 1 and found is not None and self._finds(name, found)]
        if leaks:
            pattern = '|'.join(f'{re.escape(name[0])}(?={re.escape(name[1:])})' for name in leaks)
            guard = pre_tokenizers.Split(Regex(pattern), 'merged_with_previous')
            before = self.inner.pre_tokenizer
            self.inner.pre_tokenizer = guard if before is None else pre_tokenizers.Sequence([before, guard])

    def _finds(self, text: str, token: int) -> bool:
        try:
            return token in self.inner.encode(text, add_special_tokens=False).ids
        except Exception:  # a model without a token for the unknown; `encode` says so when it meets one
            return False

    @property
    def _bytewise(self) -> bool:
        return any(part['type'] == 'ByteLevel' for part in _flat(self._parts['pre_tokenizer'], 'pretokenizers'))

    def _keeps_bytes(self, tokens: Sequence[str | None], added: dict[int, Any]) -> bool:
        """Whether this is byte-level BPE through and through; somebody else's may rewrite text, or put a blank before it."""
        before = self._parts['pre_tokenizer'] or {}
        bytewise = self._model['type'] == 'BPE' and before.get('type') == 'ByteLevel' and not before['add_prefix_space']
        whole = None not in tokens and set(byte_of_character()) <= set(tokens)
        return bytewise and whole and not self._parts['normalizer'] and all(token.special for token in added.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json`; the file appears whole or not at all.

        What it has no place for, the roles of special tokens where they are spelt unusually and the chat template, goes to
        `tokenizer_config.json` beside it.
        """
        target = pathlib.Path(path)
        config = _config_path(target)
        if self.chat_template is not None or self.specials != self._guessed or config.exists():
            write(config, json.dumps(self.config, indent=2, ensure_ascii=False))
        write(target, self._state)

    @property
    def config(self) -> dict[str, Any]:
        """What `tokenizer_config.json` says: the special tokens by their roles, and the chat template."""
        roles = {f'{role}_token': token for role, token in self.specials.items() if token is not None or self._guessed[role] is not None}
        chat = {} if self.chat_template is None else {'chat_template': self.chat_template}
        return {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False, **roles, **chat}

    def _encode(self, texts: Sequence[str], encode: Any) -> Any:
        if self._closed:
            for text in texts:
                self._check(text)
        try:
            return encode(list(texts), add_special_tokens=False)
        except TypeError:
            for text in texts:
                check_unicode(text)
            raise

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


def load(*, path: str) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, or of a folder that holds one (a run, a Hugging Face model).

    The special tokens' roles and the chat template come from `tokenizer_config.json` and `special_tokens_map.json` beside it, if any.

    Raises:
      BadInput: there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer as Inner

    file = pathlib.Path(path)
    file = file / 'tokenizer.json' if file.is_dir() else file
    if not file.exists():
        raise BadInput(f'there is no tokenizer in {path}; give a tokenizer.json or a folder that holds one')
    config = read_config(file)
    try:
        inner = Inner.from_file(str(file))
    except Exception as error:
        raise BadInput(f'{file} is no tokenizer: {" ".join(str(error).split())[:200]}') from None
    return configured(inner, config)


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """What is said about the `tokenizer.json` at a path by the files beside it; {} where there are none.

    Raises:
      BadInput: a file that is no JSON object.
    """
    config = read_object(_config_path(path))
    if path.name != 'tokenizer.json':
        return config
    if 'added_tokens_decoder' not in config:  # which came later and says it all
        config |= read_object(path.with_name('special_tokens_map.json'))
    chat = path.with_name('chat_template.jinja')
    if chat.exists():
        config['chat_template'] = chat.read_text(encoding='utf-8')
    return config


def configured(inner: Any, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of the library's, with the special tokens and the chat template of a `tokenizer_config.json`."""
    roles = {role: config[f'{role}_token'] for role in ROLES if f'{role}_token' in config}
    more = config.get('extra_special_tokens') or config.get('additional_special_tokens') or []
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    for index, token in sorted((config.get('added_tokens_decoder') or {}).items(), key=lambda item: int(item[0])):
        if token['content'] not in known:
            inner.add_tokens([_added(token, special=token.get('special', False))])
            known.add(token['content'])
        if (found := inner.token_to_id(token['content'])) != int(index):
            raise BadInput(
                f'added_tokens_decoder gives {token["content"]!r} id {index}, but it is {found}; is a file of the tokenizer missing?'
            )
    for token in (*roles.values(), *(more.values() if isinstance(more, Mapping) else more)):
        if token is not None and _content(token) not in known:
            inner.add_special_tokens([_added(token, special=True)])
            known.add(_content(token))
    chat = config.get('chat_template')
    if isinstance(chat, list):
        chat = next((each['template'] for each in chat if each['name'] == 'default'), None)
    return Tokenizer(
        inner, specials={role: None if token is None else _content(token) for role, token in roles.items()}, chat_template=chat
    )


def _content(token: Any) -> str:
    return token['content'] if isinstance(token, Mapping) else token


def _added(token: Any, *, special: bool) -> Any:
    from tokenizers import AddedToken

    said = token if isinstance(token, Mapping) else {}
    settings = {name: said.get(name, False) for name in ('single_word', 'lstrip', 'rstrip', 'normalized')}
    return AddedToken(_content(token), special=special, **settings)


def _config_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f'{path.stem}_config.json')


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object of a file, {} where there is no file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise BadInput(f'{path} is no JSON: {error}') from None
    if not isinstance(found, dict):
        raise BadInput(f'{path} holds {str(found)[:40]!r}, not an object; is it the file of something else?')
    return found


def write(path: pathlib.Path, text: str) -> None:
    """A file that appears whole or not at all."""
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    part.write_text(text, encoding='utf-8')
    part.replace(path)


def check_unicode(text: str) -> bytes:
    """The text's bytes; JSON and command lines can bring half a character (a lone surrogate), which has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        around = text[max(error.start - 20, 0) : error.start + 20]
        raise BadInput(
            f'character {text[error.start]!r} at position {error.start} is no Unicode text (near {around!r}); remove it'
        ) from None


def template(single: str, pair: str, inner: Any) -> Any:
    """The special tokens around texts, as `processors.TemplateProcessing` writes them: '[CLS] $A [SEP]'."""
    from tokenizers import processors

    names = {item.split(':')[0] for item in f'{single} {pair}'.split()} - {'$A', '$B'}
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(name, inner.token_to_id(name)) for name in sorted(names)]
    )


def _flat(part: Any, inside: str) -> list[Any]:
    """The parts of a tokenizer's stage, which may be none, one or a sequence."""
    if part is None:
        return []
    return [each for one in part[inside] for each in _flat(one, inside)] if part['type'] == 'Sequence' else [part]


def _items(items: Sequence[Any], specials: Mapping[str, Any]) -> list[tuple[Any, int]]:
    """A template of the library's: what stands for the texts and the ids of its special tokens, each with its type."""
    out: list[tuple[Any, int]] = []
    for item in items:
        ((kind, said),) = item.items()
        found = [said['id']] if kind == 'Sequence' else specials[said['id']]['ids']
        out.extend((each, said['type_id']) for each in found)
    return out


def _share(room: int, lengths: Sequence[int]) -> list[int]:
    """Lengths that fit together: the longer is cut to what the other leaves, both to a half where both are too long."""
    if len(lengths) == 1:
        return [min(room, *lengths)]
    short, long = sorted(lengths)
    long = min(long, max(short, room - short))
    if short + long > room:
        short, long = room // 2, room - room // 2
    return [short, long] if lengths[0] <= lengths[1] else [long, short]


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    if not part.strip():
        return start, end
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


@functools.cache
def byte_of_character() -> dict[str, int]:
    """The printable stand-in characters of byte-level BPE and the bytes they stand for (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
