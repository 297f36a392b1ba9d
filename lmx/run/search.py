"""`lmx search`: the texts of a corpus that are nearest to a query, by a model that gives vectors."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.run.predict import Predictor, predictions, read_inputs
from lmx.run.restore import restore
from lmx.text.tokenizers import cache_dir
from lmx.types import BadInput

EXACT = 100_000
"""Texts up to which all are compared; beyond, `jax.lax.approx_max_k` looks for the best (recall 0.95) unless exactness is asked for."""


def search(
    workdir: str | os.PathLike[str], corpus: str | os.PathLike[str], queries: str | Sequence[str], *, top: int = 5, **options: Any
) -> list[list[dict[str, Any]]]:
    """For each query its best texts, [{'score': cosine, 'line': from 1, 'text': ...}, ...].

    Args:
      top: texts per query.
      options: see `Searcher`.
    """
    return Searcher(workdir, corpus, **options)([queries] if isinstance(queries, str) else list(queries), top)


class Searcher:
    """A run and a corpus, opened once: `searcher(['a query'])` embeds the query and takes milliseconds.

    The corpus is embedded once for each model; its vectors lie in the cache, by a hash of the texts and of the model. Long texts are
    read in windows, or as the run's task says.

    Args:
      corpus: a file with a text per line, or .jsonl with texts or records {'text': ...}. Lines without text are no answers.
      exact: compare with all texts, however many.
      checkpoint, config, allow: see `lmx.run.restore`.
      batch_size: texts embedded together.

    Raises:
      BadInput: a model that gives no vectors, an empty corpus.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        corpus: str | os.PathLike[str],
        *,
        exact: bool = False,
        checkpoint: str = 'last',
        config: Mapping[str, Any] | None = None,
        allow: Sequence[str] = (),
        batch_size: int = 32,
    ):
        given = [item if isinstance(item, str) else _text(item, number) for number, item in enumerate(read_inputs(corpus), 1)]
        self.lines = [number for number, text in enumerate(given, 1) if text.strip()]
        self.texts = [given[number - 1] for number in self.lines]
        if not self.texts:
            raise BadInput(f'{corpus} holds no text; give at least one')
        self.parts, self.params, _ = restore(workdir, checkpoint, config, allow)
        self.predictor, self.batch_size = Predictor(self.parts, self.params, 0, self.parts.task), batch_size
        self.vectors = jnp.asarray(self._corpus())
        self.exact = exact or len(self.texts) <= EXACT

    def __call__(self, queries: Sequence[str], top: int = 5) -> list[list[dict[str, Any]]]:
        """See `search`.

        Raises:
          BadInput: an empty query, one of unknown tokens alone, a `top` below 1.
        """
        if top < 1:
            raise BadInput(f'top {top} is below 1; ask for at least one text')
        if not all(query.strip() for query in queries):
            raise BadInput('a query is empty; give at least one word')
        asked = jnp.asarray(self._embed(queries, self.parts.builder('tokenizer'))[0])
        scores, places = jax.device_get(_nearest(asked, self.vectors, min(top, len(self.texts)), self.exact))
        return [
            [{'score': float(score), 'line': self.lines[place], 'text': self.texts[place]} for score, place in zip(*row)]
            for row in zip(scores, places)
        ]

    def _corpus(self) -> np.ndarray:
        """The vectors of the corpus, [N, D]."""
        identity = hashlib.blake2b('\n'.join([_model(self.parts, self.params), *map(repr, self.texts)]).encode(), digest_size=16)
        path = cache_dir() / 'vectors' / f'{identity.hexdigest()}.npz'
        if not path.exists():
            vectors, cut = self._embed(self.texts)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f'{path.stem}.{os.getpid()}.part.npz')
            np.savez(part, vectors=vectors, cut=cut)
            part.replace(path)
        with np.load(path) as arrays:
            if arrays['cut']:
                print(
                    f'lmx: {arrays["cut"]} of {len(self.texts)} texts were cut; --config.task.too_long=windows reads all', file=sys.stderr
                )
            return arrays['vectors']

    def _embed(self, texts: Sequence[str], tokenizer: Any = None) -> tuple[np.ndarray, int]:
        """(vectors [N, D], how many texts lost their end)."""
        records = [{'text': text} for text in texts]
        made = predictions(self.parts, self.params, records, batch_size=self.batch_size, predictor=self.predictor, tokenizer=tokenizer)
        if 'embedding' not in made[0]:
            raise BadInput(f'the task {self.parts.config.task.call} gives no vectors; search needs lmx.tasks.semantic_search')
        return np.array([each['embedding'] for each in made], np.float32), sum('tokens_cut' in each for each in made)


@functools.partial(jax.jit, static_argnames=('top', 'exact'))
def _nearest(queries: Any, vectors: Any, top: int, exact: bool) -> Any:
    scores = queries @ vectors.T
    return jax.lax.top_k(scores, top) if exact else jax.lax.approx_max_k(scores, top)


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
