"""SentencePiece's model files (Kudo & Richardson 2018, arXiv:1808.06226), read without its library."""

from __future__ import annotations

import pathlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lmx.types import BadInput

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of SentencePiece's pieces
BLANK = '▁'


class Piece(NamedTuple):
    """A token of a SentencePiece model."""

    text: str
    score: float
    type: int


class Model(NamedTuple):
    """What a SentencePiece model file says, as far as ids depend on it."""

    pieces: list[Piece]
    kind: int  # 1 = Unigram, 2 = BPE
    byte_fallback: bool
    unk_id: int
    roles: dict[str, str]
    charsmap: bytes  # the compiled normaliser, b'' for none
    dummy_prefix: bool
    collapse_blanks: bool


def read_model(data: bytes, name: str) -> Model:
    """Reads a SentencePiece model (a protocol buffer; field numbers are those of `sentencepiece_model.proto`).

    Raises:
      BadInput: damaged bytes, or settings that the `tokenizers` library cannot follow; both name the file.
    """
    try:
        fields = list(_fields(data))
        pieces = [_piece(dict(_fields(value))) for number, value in fields if number == 1]
        trainer, normalizer = (dict(_fields(next((value for number, value in fields if number == wanted), b''))) for wanted in (2, 3))
    except (IndexError, ValueError, TypeError, AttributeError, struct.error):
        raise BadInput(f'{name} is no SentencePiece model, or a damaged one; download it again') from None
    unk_id = _signed(trainer.get(40, 0))
    if not pieces or not 0 <= unk_id < len(pieces):
        raise BadInput(f'{name} is no SentencePiece model: {len(pieces)} pieces, the unknown one is number {unk_id}')
    kind = trainer.get(3, 1)
    refused = {
        'words or characters, not Unigram or BPE': kind not in (1, 2),
        'blanks behind words': trainer.get(24, 0),
        'blanks as they are': not normalizer.get(5, 1),
        'unused pieces': any(piece.type == UNUSED for piece in pieces),
    }
    for what, found in refused.items():
        if found:
            raise BadInput(f'{name} has {what}, which is not supported; convert it to a tokenizer.json')
    numbers = {role: _signed(trainer.get(field, default)) for role, field, default in (('bos', 41, 1), ('eos', 42, 2), ('pad', 43, -1))}
    roles = {role: pieces[number].text for role, number in numbers.items() if 0 <= number < len(pieces)}
    return Model(
        pieces=pieces,
        kind=kind,
        byte_fallback=bool(trainer.get(35, 0)),
        unk_id=unk_id,
        roles={**roles, 'unk': pieces[unk_id].text},
        charsmap=normalizer.get(2, b''),
        dummy_prefix=bool(normalizer.get(3, 1)),
        collapse_blanks=bool(normalizer.get(4, 1)),
    )


def convert(model: Model) -> Any:
    """A `tokenizers.Tokenizer` with the ids of the SentencePiece library, control pieces as special tokens; no template.

    One difference is the `tokenizers` library's: its normaliser drops accents that follow a character that it rewrites, as in '①\u0301'.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    own = [piece.text for piece in model.pieces if piece.type == USER_DEFINED and model.kind == 2]
    steps = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.collapse_blanks:
        steps += [normalizers.Replace(Regex(' {2,}'), ' '), normalizers.Replace(Regex(r'\A | \z'), '')]
    steps.append(normalizers.Replace(' ', BLANK))
    if model.dummy_prefix:  # the library normalises the symbols as well, but they get no blank
        but = rf'(?!(?:{"|".join(map(re.escape, own))})\z)' if own else ''
        steps.append(normalizers.Replace(Regex(rf'\A{but}(?=[\s\S])'), BLANK) if own else normalizers.Prepend(BLANK))
    normalizer = normalizers.Sequence(steps)
    if model.kind == 1:
        inner = Tokenizer(models.Unigram(_scores(model), unk_id=model.unk_id, byte_fallback=model.byte_fallback))
    else:
        vocab = {piece.text: index for index, piece in enumerate(model.pieces)}
        unknown = model.pieces[model.unk_id].text
        inner = Tokenizer(models.BPE(vocab, _merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback))
    inner.normalizer = normalizer
    for text in own:
        if normalizer.normalize_str(text) != text:
            raise BadInput(f'the symbol {text!r} of the SentencePiece model is rewritten by its own normaliser, which is not supported')
    inner.add_tokens([AddedToken(text, normalized=True) for text in own])
    if _within_words(model):
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(f'{BLANK}*[^{BLANK}]+|{BLANK}+'), 'isolated')
    strip = [decoders.Strip(' ', 1, 0)] if model.dummy_prefix else []
    inner.decoder = decoders.Sequence([decoders.Replace(BLANK, ' '), decoders.ByteFallback(), decoders.Fuse(), *strip])
    inner.add_special_tokens([piece.text for piece in model.pieces if piece.type in (UNKNOWN, CONTROL)])
    return inner


def _scores(model: Model) -> list[tuple[str, float]]:
    """Unigram's vocabulary; symbols of the user get the score that SentencePiece makes up for them, better than any other path."""
    best = max((piece.score for piece in model.pieces if piece.type == NORMAL), default=0.0)
    return [(text, len(text.encode()) * best - 0.1 if type == USER_DEFINED else score) for text, score, type in model.pieces]


def _merges(model: Model) -> list[tuple[str, str]]:
    """All pairs that make a piece, in the order of the pieces' scores: SentencePiece merges by score, without a list of pairs."""
    scores = {piece.text: piece.score for piece in model.pieces if piece.type == NORMAL}
    pairs = [(text[:cut], text[cut:]) for text in scores for cut in range(1, len(text)) if text[:cut] in scores and text[cut:] in scores]
    return sorted(pairs, key=lambda pair: (-scores[pair[0] + pair[1]], -len(pair[0])))


def _within_words(model: Model) -> bool:
    """Whether no piece reaches over a blank from word to word, so that words may be looked at one by one."""
    texts = [piece.text for piece in model.pieces if piece.type in (NORMAL, USER_DEFINED)]
    return BLANK in texts and not any(re.search(f'[^{BLANK}]{BLANK}', text) for text in texts)


def fairseq(model: Model, file: pathlib.Path) -> Model:
    """XLM-RoBERTa's order of ids: fairseq's four specials, the pieces behind the model's own three, <mask>."""
    first = [piece.text for piece in model.pieces[:3]]
    if first != ['<unk>', '<s>', '</s>']:
        raise BadInput(
            f'{file} begins with {", ".join(first)}, where XLM-RoBERTa has <unk>, <s>, </s>; give tokenizer_config.json with its kind'
        )
    specials = [Piece(text, 0.0, UNKNOWN if text == '<unk>' else CONTROL) for text in ('<s>', '<pad>', '</s>', '<unk>', '<mask>')]
    return model._replace(pieces=[*specials[:4], *model.pieces[3:], specials[4]], unk_id=3)


def _piece(fields: Mapping[int, Any]) -> Piece:
    return Piece(fields[1].decode(), struct.unpack('<f', fields[2])[0] if 2 in fields else 0.0, fields.get(3, NORMAL))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a protocol buffer's message: integers, or bytes for everything else."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
        else:
            if kind == 2:
                length, place = _varint(data, place)
            else:
                length = {1: 8, 5: 4}.get(kind, len(data) + 1)
            value, place = data[place : place + length], place + length
            if place > len(data):
                raise ValueError('a field that is longer than its message')
        yield tag >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
