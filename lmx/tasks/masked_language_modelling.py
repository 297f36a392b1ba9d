"""Tokens that were hidden, from what is around them (Devlin et al. 2018, arXiv:1810.04805; Liu et al. 2019, arXiv:1907.11692)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx import objectives, rng
from lmx.data import corrupt, examples, packing
from lmx.data.cache import token_cache
from lmx.types import Apply, Array, BadInput, Batch, Features, Record, Task


def masked_language_modelling(
    *,
    tokenizer: Any,
    max_length: int,
    field: str = 'text',
    rate: float = 0.15,
    shares: tuple[float, float] = (0.8, 0.1),
    unit: str = 'token',
    seed: int = 0,
    chunk: int | None = None,
    top: int = 5,
) -> Task:
    """Maximum likelihood of hidden tokens under any `Encoder` with `unembed`; records are {field: text}.

    Documents run on, with the separator between them, and are cut into windows with the tokenizer's special tokens around each. The
    places that are hidden are a function of `seed` and of the index that a window is asked for: every epoch hides others.

    Args:
      tokenizer: one with a mask token.
      max_length: tokens with their special tokens.
      rate, shares: see `lmx.data.corrupt.mask_tokens`.
      unit: what is hidden together: 'token', or 'word' (whole words).
      seed: of the places.
      chunk: see `lmx.objectives.token_losses`.
      top: tokens that a prediction names for each mask.

    Raises:
      BadInput: a tokenizer without a mask token, an unknown unit, a rate outside 0 to 1.
    """
    if tokenizer.mask_id is None:
        raise BadInput('masked_language_modelling needs a tokenizer with a mask token; use text.wordpiece, or the tokenizer of an encoder')
    if unit not in ('token', 'word'):
        raise BadInput(f'unit {unit!r} is unknown; there are token, word')
    if not 0 < rate < 1:
        raise BadInput(f'rate {rate} is not between 0 and 1')
    room = max_length - len(tokenizer.join([])[0])
    if room < 2:
        raise BadInput(f'max_length {max_length} leaves no room beside {max_length - room} special tokens; give more')
    hidden = corrupt.count(room, rate)
    masking = {'mask_id': tokenizer.mask_id, 'is_special': tokenizer.is_special, 'rate': rate, 'shares': tuple(shares)}
    starts_word = tokenizer.starts_word if unit == 'word' else None
    separator = tokenizer.eos_id if tokenizer.sep_id is None else tokenizer.sep_id

    def example(index: int, window: Features) -> Features:
        ids = tokenizer.join(window['inputs'][window['weights'] > 0])[0]
        spoilt, places = corrupt.mask_tokens(ids, rng=rng.numpy_rng(seed, 'mask', index), starts_word=starts_word, **masking)
        found = {'places': places, 'targets': ids[places], 'weights': np.ones(len(places), np.float32)}
        return {
            **examples.tokens_of(spoilt, length=max_length),
            **{name: examples.padded(values, hidden) for name, values in found.items()},
        }

    def features(records: Any) -> Any:
        cache = token_cache(records, tokenizer, field=field)
        windows = packing.concatenated(cache, length=room, eos_id=separator)
        settings = (tokenizer.fingerprint, max_length, rate, tuple(shares), unit, seed)
        return examples.named(windows.map_with_index(example), windows.lmx_fingerprint, *settings)

    def encode(record: Record) -> list[Features]:
        ids = tokenizer.join(masked_ids(tokenizer, record[field]))[0]
        places = np.flatnonzero(ids == tokenizer.mask_id)
        if not len(places):
            raise BadInput(f'the text has no {tokenizer.specials["mask"]}; put it where a word is wanted')
        if len(ids) > max_length:
            raise BadInput(f'the text has {len(ids)} tokens, the limit is max_length {max_length}; shorten it')
        count = examples.size(len(places), max_length, least=1)
        masks = {'places': examples.padded(places, count), 'masks': np.int32(len(places))}
        return [{**examples.tokens_of(ids, length=examples.size(len(ids), max_length)), **masks}]

    def predict(apply: Apply, batch: Batch, key: Any, emit: Any = None) -> Mapping[str, Array]:
        hidden_BTD, _ = apply(batch['tokens'], segments=batch['segments'], method='hidden')
        hidden_BND = jnp.take_along_axis(hidden_BTD, batch['places'][..., None], axis=1)
        logits_BNV, _ = apply(hidden_BND, method='unembed')
        probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits_BNV.astype(jnp.float32)), min(top, logits_BNV.shape[-1]))
        return {'probabilities': probabilities, 'tokens': tokens}

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        ((features, arrays),) = windows
        count = int(features['masks'])
        best, ids = arrays['tokens'][:count], np.array(features['tokens'][features['segments'] > 0])
        ids[features['places'][:count]] = best[:, 0]
        masks = [
            [{'token': tokenizer.decode([token]).strip(), 'probability': float(p)} for token, p in zip(tokens, probabilities)]
            for tokens, probabilities in zip(best, arrays['probabilities'][:count])
        ]
        return {'text': tokenizer.decode(ids), 'masks': masks}

    def describe(example: Features) -> str:
        return tokenizer.inner.decode(example['tokens'][example['segments'] > 0].tolist(), skip_special_tokens=False)

    return Task(
        inputs=(field,),
        features=features,
        objective=functools.partial(objectives.masked_token, chunk=chunk),
        encode=encode,
        predict=predict,
        decode=decode,
        describe=describe,
    )


def masked_ids(tokenizer: Any, text: str) -> np.ndarray:
    """Ids of a text in which the mask token is spelt out; blanks beside it go where the tokenizer says that they are part of it."""
    said = tokenizer.inner.get_added_tokens_decoder().get(tokenizer.mask_id)
    first, *others = text.split(tokenizer.specials['mask'])
    ids = [tokenizer.encode(first.rstrip() if others and said is not None and said.lstrip else first)]
    for place, part in enumerate(others, 1):
        part = part.lstrip() if said is not None and said.rstrip else part
        part = part.rstrip() if said is not None and said.lstrip and place < len(others) else part
        ids += [np.array([tokenizer.mask_id], np.int32), tokenizer.encode(part)]
    return np.concatenate(ids)
