"""`lmx search`: the texts of a corpus that are nearest to a query, by a model that gives vectors."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.run.predict import predictions, read_inputs
from lmx.run.restore import restore
from lmx.text.tokenizers import cache_dir
from lmx.types import BadInput

EXACT = 100_000
"""Texts up to which all are compared; beyond, `jax.lax.approx_max_k` looks for the best (recall 0.95) unless exactness is asked for."""


def search(
    workdir: str | os.PathLike[str],
    corpus: str | os.PathLike[str],
    queries: str | Sequence[str],
    *,
    top: int = 5,
    exact: bool = False,
    checkpoint: str = 'last',
    config: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
    batch_size: int = 32,
) -> list[list[dict[str, Any]]]:
    """For each query its best texts, [{'score': cosine, 'line': from 1, 'text': ...}, ...].

    The corpus is embedded once for each model; its vectors lie in the cache, by a hash of the texts and of the model.

    Args:
      corpus: a file with a text per line, or .jsonl with texts or records {'text': ...}. Long texts are read in windows.
      top: texts per query.
      exact: compare with all texts, however many.
      checkpoint, config, allow: see `lmx.run.restore`.

    Raises:
      BadInput: a model that gives no vectors, an empty corpus or query.
    """
    parts, params, _ = restore(workdir, checkpoint, config, allow)
    texts = [item if isinstance(item, str) else _text(item, number) for number, item in enumerate(read_inputs(corpus), 1)]
    queries = [queries] if isinstance(queries, str) else list(queries)
    if not all(query.strip() for query in queries):
        raise BadInput('a query is empty; give at least one word')
    embed = functools.partial(_vectors, parts, params, batch_size)
    identity = hashlib.blake2b('\n'.join([_model(parts, params), *map(repr, texts)]).encode(), digest_size=16).hexdigest()
    path = cache_dir() / 'vectors' / f'{identity}.npy'
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f'{identity}.{os.getpid()}.part.npy')
        np.save(part, embed(texts))
        part.replace(path)
    scores, places = _nearest(embed(queries), np.load(path), min(top, len(texts)), exact or len(texts) <= EXACT)
    return [
        [{'score': float(score), 'line': int(place) + 1, 'text': texts[place]} for score, place in zip(*row)]
        for row in zip(np.asarray(scores), np.asarray(places))
    ]


def _nearest(queries: np.ndarray, vectors: np.ndarray, top: int, exact: bool) -> Any:
    @jax.jit
    def nearest(queries: Any, vectors: Any) -> Any:
        scores = queries @ vectors.T
        return jax.lax.top_k(scores, top) if exact else jax.lax.approx_max_k(scores, top)

    return nearest(jnp.asarray(queries), jnp.asarray(vectors))


def _vectors(parts: Any, params: Any, batch_size: int, texts: Sequence[str]) -> np.ndarray:
    made = predictions(parts, params, [{'text': text} for text in texts], batch_size=batch_size)
    if 'embedding' not in made[0]:
        raise BadInput(f'the task {parts.config.task.call} gives no vectors; search needs lmx.tasks.semantic_search')
    return np.array([each['embedding'] for each in made], np.float32)


def _model(parts: Any, params: Any) -> str:
    """What the vectors depend on beside the texts."""
    digest = hashlib.blake2b(repr((parts.config.model.to_json_best_effort(), parts.config.task.to_json_best_effort())).encode())
    digest.update(parts.builder('tokenizer').fingerprint.encode())
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _text(item: Any, number: int) -> str:
    if 'text' not in item:
        raise BadInput(f'line {number} of the corpus has no field "text", only {", ".join(item)}; name it so')
    return item['text']
