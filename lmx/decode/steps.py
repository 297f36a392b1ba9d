"""The step callbacks of models: what `sample`, `beam` and `speculative` call, and the cache that they begin with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmx.types import Apply, Array, Batch


def decoder(apply: Apply, tokens_BT: Array, cache: Any, segments: Array | None = None) -> tuple[Array, Any]:
    """A `Decoder`'s step, but for its first argument."""
    (logits_BTV, cache), _ = apply(tokens_BT, cache=cache, segments=segments)
    return logits_BTV, cache


def empty_cache(apply: Apply, batch_size: int, max_length: int) -> Any:
    """A `Decoder`'s cache."""
    cache, _ = apply(batch_size, max_length, method='init_cache')
    return cache


def reader(apply: Apply, batch: Batch, count: int, copies: int = 1) -> tuple[Any, Any]:
    """(step, empty cache) of a model that has read the sources, each of them `copies` times."""
    memory, _ = apply(batch['source'], segments=batch['source_segments'], method='encode')
    rows = len(batch['source'])
    memory = memory if copies == 1 else memory.take(jnp.repeat(jnp.arange(rows), copies))
    return functools.partial(_seq2seq, apply, memory), apply(rows * copies, count, method='init_cache')[0]


def _seq2seq(apply: Apply, memory: Any, tokens_BT: Array, cache: Any, segments: Array | None = None) -> tuple[Array, Any]:
    (hidden_BTD, cache), _ = apply(tokens_BT, memory, segments=segments, cache=cache, method='hidden')
    return apply(hidden_BTD, memory, method='unembed')[0], cache


def told(arrays: Mapping[str, Any], count: int, draft_tokens: int) -> dict[str, float]:
    """How likely a row's first `count` tokens are, or a beam's score; and the share of a small model's proposals that was kept."""
    made = {'score': float(arrays['scores'])} if 'scores' in arrays else {'logprob': float(np.sum(arrays['logprobs'][:count]))}
    if 'rounds' in arrays:
        made['draft_accepted'] = float(arrays['accepted'] / np.maximum(draft_tokens * arrays['rounds'], 1))
    return made
