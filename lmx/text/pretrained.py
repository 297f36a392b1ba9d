"""Tokenizers of Hugging Face directories, in every format that they come in, and back (SentencePiece: Kudo & Richardson 2018, 1808.06226)."""

from __future__ import annotations

import json
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lmx.text.tokenizers import Tokenizer, bert, configured, load, read_config, read_object, template, write
from lmx.types import BadInput

SENTENCEPIECE = ('spiece.model', 'sentencepiece.bpe.model', 'tokenizer.model')
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of SentencePiece's pieces
BLANK = '▁'


def pretrained(folder: str) -> Tokenizer:
    """The tokenizer of a Hugging Face directory.

    Read is the first that is there of `tokenizer.json`; `vocab.txt` (BERT's WordPiece); `vocab.json` with `merges.txt` (byte-level BPE of
    GPT-2, RoBERTa, BART); `spiece.model`, `sentencepiece.bpe.model` or `tokenizer.model` (SentencePiece Unigram and BPE of T5, LLaMA,
    XLM-RoBERTa). Settings, special tokens and the chat template come from `tokenizer_config.json`, `special_tokens_map.json` and
    `added_tokens.json`, the kind of model from these or `config.json`.

    Raises:
      BadInput: no such file, one that cannot be read, or a kind whose own code rearranges what is in it.
    """
    place = pathlib.Path(folder)
    if (place / 'tokenizer.json').exists():
        return load(path=folder)
    config = read_config(place / 'tokenizer.json')
    kind = _kind(place, config)
    if (place / 'vocab.txt').exists():
        inner, defaults = _bert(place / 'vocab.txt', kind, config)
    elif (place / 'vocab.json').exists() and (place / 'merges.txt').exists():
        inner, defaults = _byte_level(place, kind, config)
    elif models := [place / name for name in SENTENCEPIECE if (place / name).exists()]:
        inner, defaults = _sentencepiece(models[0], kind, config)
    else:
        looked = ', '.join(('tokenizer.json', 'vocab.txt', 'vocab.json with merges.txt', *SENTENCEPIECE))
        raise BadInput(f'{folder} {"holds no tokenizer" if place.is_dir() else "is no folder"}; looked for {looked}')
    for token, index in sorted(read_object(place / 'added_tokens.json').items(), key=lambda item: item[1]):
        if inner.token_to_id(token) is None:
            inner.add_tokens([token])
        if inner.token_to_id(token) != index:
            raise BadInput(f'{place / "added_tokens.json"} gives {token!r} id {index}, but the next free one is {inner.token_to_id(token)}')
    return configured(inner, {**defaults, **config})


def save_pretrained(tokenizer: Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, which `transformers.AutoTokenizer` reads.

    It gives the same ids, but for texts that spell a special token, which transformers takes for the token.
    """
    place = pathlib.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    config = tokenizer.config
    write(place / 'tokenizer_config.json', json.dumps(config, indent=2, ensure_ascii=False))
    roles = {name: token for name, token in config.items() if name.endswith('_token') and token is not None}
    write(place / 'special_tokens_map.json', json.dumps(roles, indent=2, ensure_ascii=False))
    tokenizer.save(place / 'tokenizer.json')


def _kind(place: pathlib.Path, config: Mapping[str, Any]) -> str:
    """'bert', 'gpt2', 't5', ...; '' where nobody says."""
    name = re.sub(r'Tokenizer(Fast)?$', '', config.get('tokenizer_class') or '').lower()
    if name in ('', 'pretrained', 'pretrainedtokenizerfast', 'tokenizersbackend'):
        name = read_object(place / 'config.json').get('model_type', '')
    return re.sub(r'[^a-z0-9]', '', name)


def _only(kind: str, known: tuple[str, ...], file: pathlib.Path) -> None:
    if kind not in ('', *known):
        raise BadInput(
            f'{file} is of kind {kind!r}, whose ids only its tokenizer.json tells (known here: {", ".join(known)}); save it with transformers'
        )


def _bert(file: pathlib.Path, kind: str, config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    _only(kind, ('bert', 'distilbert', 'electra', 'mobilebert'), file)
    roles = {f'{role}_token': f'[{role.upper()}]' for role in ('unk', 'sep', 'pad', 'cls', 'mask')}
    said = {**roles, **config}
    try:
        lines = file.read_bytes().decode().removesuffix('\n').split('\n')
    except UnicodeDecodeError as error:
        raise BadInput(f'{file} is no text: {error}') from None
    vocab = {line: index for index, line in enumerate(lines)}
    for role in ('unk_token', 'cls_token', 'sep_token'):
        if _text(said[role]) not in vocab:
            raise BadInput(f'{file} has no {_text(said[role])!r} among its {len(lines)} lines; is it a WordPiece vocabulary?')
    inner = bert(
        vocab,
        lowercase=said.get('do_lower_case', True),
        strip_accents=said.get('strip_accents'),
        chinese=said.get('tokenize_chinese_chars', True),
        unknown=_text(said['unk_token']),
    )
    cls, sep = _text(said['cls_token']), _text(said['sep_token'])
    inner.post_processor = template(f'{cls} $A {sep}', f'{cls} $A {sep} $B:1 {sep}:1', inner)
    return inner, roles


def _byte_level(place: pathlib.Path, kind: str, config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    encoders = ('roberta', 'bart', 'longformer', 'led')
    _only(kind, ('gpt2', *encoders), place / 'vocab.json')
    try:
        vocab, merges = models.BPE.read_file(str(place / 'vocab.json'), str(place / 'merges.txt'))
        inner = Tokenizer(models.BPE(vocab, merges))
    except Exception as error:
        raise BadInput(f'vocab.json and merges.txt of {place} are no BPE: {" ".join(str(error).split())[:200]}') from None
    prefix = config.get('add_prefix_space', False)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = decoders.ByteLevel()
    if kind in encoders or (not kind and {'<s>', '</s>', '<mask>'} <= set(vocab)):
        roles = {'bos': '<s>', 'eos': '</s>', 'unk': '<unk>', 'sep': '</s>', 'pad': '<pad>', 'cls': '<s>', 'mask': '<mask>'}
        defaults: dict[str, Any] = {f'{role}_token': token for role, token in roles.items()}
        said = {**defaults, **config}
        sep, cls = _text(said['sep_token']), _text(said['cls_token'])
        if inner.token_to_id(sep) is None or inner.token_to_id(cls) is None:
            raise BadInput(f'{place / "vocab.json"} has no {cls!r} or no {sep!r}, which a {kind} tokenizer needs')
        inner.post_processor = processors.RobertaProcessing(
            (sep, inner.token_to_id(sep)), (cls, inner.token_to_id(cls)), trim_offsets=True, add_prefix_space=prefix
        )
        return inner, defaults
    defaults = {f'{role}_token': '<|endoftext|>' for role in ('bos', 'eos') if '<|endoftext|>' in vocab}
    bos, eos = (_text({**defaults, **config}.get(f'{role}_token')) if config.get(f'add_{role}_token') else None for role in ('bos', 'eos'))
    if bos or eos:
        _bound(inner, bos, eos)
    return inner, defaults


def _sentencepiece(file: pathlib.Path, kind: str, config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    kind = kind or {'spiece.model': 't5', 'tokenizer.model': 'llama'}.get(file.name, 'xlmroberta')
    _only(kind, ('t5', 'mt5', 'llama', 'mistral', 'mixtral', 'gemma', 'gemma2', 'xlmroberta'), file)
    model = read_model(file.read_bytes(), str(file))
    if kind == 'xlmroberta':
        model = _fairseq(model, file)
        inner = convert(model)
        inner.post_processor = template('<s> $A </s>', '<s> $A </s> </s> $B </s>', inner)
        roles = {'bos': '<s>', 'eos': '</s>', 'unk': '<unk>', 'sep': '</s>', 'pad': '<pad>', 'cls': '<s>', 'mask': '<mask>'}
        return inner, {f'{role}_token': token for role, token in roles.items()}
    inner = convert(model)
    roles = {f'{role}_token': token for role, token in model.roles.items()}
    bos, eos = (_text({**roles, **config}.get(f'{role}_token')) for role in ('bos', 'eos'))
    if kind in ('t5', 'mt5'):
        if eos is None:
            raise BadInput(
                f'{file} has no end of text, which a {kind} tokenizer puts behind each; give tokenizer_config.json with its kind'
            )
        inner.add_special_tokens([f'<extra_id_{index}>' for index in reversed(range(config.get('extra_ids', 100)))])
        inner.post_processor = template(f'$A {eos}', f'$A {eos} $B {eos}', inner)
        return inner, roles
    _bound(inner, bos if config.get('add_bos_token', True) else None, eos if config.get('add_eos_token', False) else None)
    return inner, roles


def _bound(inner: Any, bos: str | None, eos: str | None) -> None:
    """Puts a token before and behind each text; one that the files lack gets the next id."""
    inner.add_special_tokens([token for token in (bos, eos) if token])
    single, second = (' '.join(f'{item}:{kind}' for item in (bos, text, eos) if item) for kind, text in enumerate(('$A', '$B')))
    inner.post_processor = template(single, f'{single} {second}', inner)


def _text(token: Any) -> Any:
    return token['content'] if isinstance(token, Mapping) else token


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


def _fairseq(model: Model, file: pathlib.Path) -> Model:
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
