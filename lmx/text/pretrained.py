"""Tokenizers of Hugging Face directories, in every format that they come in, and back (SentencePiece: Kudo & Richardson 2018, 1808.06226)."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from lmx.text.ids import Tokenizer, configured, load, read_config, read_object, template, write
from lmx.text.sentencepiece import convert, fairseq, read_model
from lmx.text.tokenizers import bert
from lmx.types import BadInput

SENTENCEPIECE = ('spiece.model', 'sentencepiece.bpe.model', 'tokenizer.model')


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
        model = fairseq(model, file)
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
