"""Word vectors by skip-gram with negative sampling (Mikolov et al. 2013, arXiv:1310.4546)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx import rng
from lmx.data.cache import TokenCache, token_cache
from lmx.data.packing import Windows
from lmx.objectives import merge
from lmx.spec import nearest
from lmx.types import Apply, Array, BadInput, Batch, Features, Mean, Record, Sums, Task

CHUNK = 1 << 22  # positions that are decided at once


def word_vectors(
    *,
    tokenizer: Any,
    window: int = 5,
    negatives: int = 5,
    subsample: float | None = 1e-3,
    power: float = 0.75,
    draws: int = 1,
    seed: int = 0,
    field: str = 'text',
    neighbours: int = 10,
) -> Task:
    """A word's vector foretells the words around it; records are {field: text}, and prediction names a word's nearest words.

    Every word of the text is the center of one example. Its contexts are the words within a distance that is drawn from 1 to `window`,
    in the text that is left when frequent words are dropped: an occurrence of a word with share f of the text stays with probability
    sqrt(subsample / f) (section 2.3). Windows end with their document. Unknown words and special tokens are dropped.

    All that is drawn is a function of `seed` and the example's index, so that any batch can be made again.

    Args:
      tokenizer: text -> ids; `lmx.text.words`, or any other.
      window: the largest distance of a context, in words.
      negatives: K, words drawn for each pair.
      subsample: 1e-5 in the paper; word2vec's 1e-3 suits small texts; None = nothing is dropped.
      power: negatives are drawn by (count in the text) ^ power.
      draws: how often the text stands among the examples, each time with other choices. With 1, every epoch sees the same negatives.
      neighbours: words that a prediction names.

    The model is `lmx.models.skip_gram`, or another with its two methods.

    Raises:
      BadInput: a window, a number of negatives, draws or neighbours below 1, a subsample that is not positive.
    """
    for name, value in (('window', window), ('negatives', negatives), ('draws', draws), ('neighbours', neighbours)):
        if value < 1:
            raise BadInput(f'{name} {value} is below 1')
    if subsample is not None and subsample <= 0:
        raise BadInput(f'subsample {subsample} drops every word; give a share such as 1e-3, or None to drop none')
    allowed_V = ~tokenizer.is_special
    vocab = [tokenizer.inner.id_to_token(index) or '' for index in range(tokenizer.vocab_size)]
    found = min(neighbours, int(allowed_V.sum()) - 1)

    def features(records: Any) -> Any:
        import grain

        cache = token_cache(records, tokenizer, field=field)
        pairs = Pairs(cache, allowed_V, window=window, negatives=negatives, subsample=subsample, power=power, draws=draws, seed=seed)
        dataset = grain.MapDataset.source(pairs)
        dataset.lmx_windows, dataset.lmx_fingerprint = pairs, pairs.fingerprint
        return dataset

    def encode(record: Record) -> list[Features]:
        word = record['word'].strip()
        ids = tokenizer.encode(word)
        if len(ids) != 1 or not allowed_V[ids[0]]:
            raise BadInput(f'{word!r} is not one of the {int(allowed_V.sum())} words{nearest(word, vocab)}')
        return [{'word': np.int32(ids[0])}]

    def predict(apply: Apply, batch: Batch, key: Any, emit: Any = None) -> Mapping[str, Array]:
        (ids, cosines), _ = apply(batch['word'], found, allowed_V, method='nearest')
        return {'ids': ids, 'cosines': cosines}

    def decode(record: Record, windows: Sequence[tuple[Features, Mapping[str, Any]]]) -> dict[str, Any]:
        ((_, arrays),) = windows
        pairs = zip(arrays['ids'].tolist(), arrays['cosines'].tolist())
        return {'neighbours': [{'word': vocab[index], 'cosine': round(cosine, 4)} for index, cosine in pairs]}

    def describe(example: Features) -> str:
        contexts = [vocab[index] for index, weight in zip(example['context'], example['weights']) if weight > 0]
        return f'{vocab[int(example["center"])]}: {" ".join(contexts)}'

    return Task(inputs=('word',), features=features, objective=objective, encode=encode, predict=predict, decode=decode, describe=describe)


def objective(apply: Apply, batch: Batch) -> Sums:
    """-log sigmoid(u_o . v_c) - sum over negatives n of log sigmoid(-u_n . v_c), equation 4, averaged over pairs of center c and context o.

    Args:
      batch: see `Pairs`. A negative that is the context itself does not count, as in word2vec.

    Returns:
      'loss/skip_gram', nats per pair; 'accuracy', the share of pairs whose context scores higher than all its negatives.
    """
    context_BC1, weights_BC = batch['context'][..., None], batch['weights'].astype(jnp.float32)
    scores_BCK, sown = apply(batch['center'], jnp.concatenate([context_BC1, batch['negatives']], axis=-1))
    counts_BCK = batch['negatives'] != context_BC1
    loss_BC = jax.nn.softplus(-scores_BCK[..., 0]) + jnp.sum(counts_BCK * jax.nn.softplus(scores_BCK[..., 1:]), axis=-1)
    first_BC = jnp.all(~counts_BCK | (scores_BCK[..., :1] > scores_BCK[..., 1:]), axis=-1)
    count = jnp.sum(weights_BC)
    sums = {'loss/skip_gram': Mean(jnp.sum(weights_BC * loss_BC), count), 'accuracy': Mean(jnp.sum(weights_BC * first_BC), count)}
    return merge(sums, sown)


class Pairs(Windows):
    """Example i: 'center' [] int32, 'context' [2 window] int32, 'weights' [2 window] float32 (0 = no context), 'negatives' [2 window, K]
    int32. Random access; the arguments are those of `word_vectors`.

    Raises:
      BadInput: fewer than two words in the text.
    """

    def __init__(
        self,
        cache: TokenCache,
        allowed_V: np.ndarray,
        *,
        window: int,
        negatives: int,
        subsample: float | None,
        power: float,
        draws: int,
        seed: int,
    ):
        super().__init__(f'skip_gram/{cache.fingerprint}/{window}/{negatives}/{subsample}/{power}/{draws}/{seed}')
        self.cache, self.window, self.negatives, self.seed = cache, window, negatives, seed
        counts_V = np.bincount(cache.tokens, minlength=len(allowed_V)) * allowed_V
        if np.count_nonzero(counts_V) < 2:
            raise BadInput(f'the data holds {np.count_nonzero(counts_V)} different words of the vocabulary; at least 2 are needed')
        stays_V = allowed_V.astype(np.float64)
        if subsample is not None:
            stays_V *= np.minimum(1, np.sqrt(subsample * counts_V.sum() / np.maximum(counts_V, 1)))
        smoothed = np.cumsum(np.where(counts_V > 0, np.maximum(counts_V, 1.0) ** power, 0))
        self.cumulated_V = smoothed / smoothed[-1]
        kept = [self._kept(draw, stays_V) for draw in range(draws)]
        self.places = np.concatenate(kept)  # in the tokens, one draw after the other
        self.bounds = np.cumsum([0, *map(len, kept)])
        if not len(self.places):
            raise BadInput(f'subsample {subsample} leaves none of {int(counts_V.sum())} words; give a larger share')

    def _kept(self, draw: int, stays_V: np.ndarray) -> np.ndarray:
        """The places of the words that stay."""
        total, out = len(self.cache.tokens), []
        for start in range(0, total, CHUNK):
            places = np.arange(start, min(start + CHUNK, total))
            out.append(places[uniform(self.seed, 'subsample', places + draw * total) < stays_V[self.cache.tokens[places]]])
        return np.concatenate(out)

    def __len__(self) -> int:
        return len(self.places)

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        indices = np.asarray(indices, np.int64)
        reach_B = 1 + (uniform(self.seed, 'window', indices) * self.window).astype(np.int64)
        offsets_C = np.concatenate([np.arange(-self.window, 0), np.arange(1, self.window + 1)])
        near_BC = indices[:, None] + offsets_C
        draw_B = np.searchsorted(self.bounds, indices, side='right') - 1
        inside_BC = (near_BC >= self.bounds[draw_B][:, None]) & (near_BC < self.bounds[draw_B + 1][:, None])
        inside_BC &= np.abs(offsets_C) <= reach_B[:, None]
        center_B, near_BC = self.places[indices], self.places[np.clip(near_BC, 0, len(self.places) - 1)]
        inside_BC &= self._document(near_BC) == self._document(center_B)[:, None]
        each = np.arange(near_BC.shape[1] * self.negatives).reshape(-1, self.negatives)
        drawn_BCK = uniform(self.seed, 'negatives', indices[:, None, None] * each.size + each)
        return {
            'center': self.cache.tokens[center_B].astype(np.int32),
            'context': np.where(inside_BC, self.cache.tokens[near_BC], 0).astype(np.int32),
            'weights': inside_BC.astype(np.float32),
            'negatives': np.searchsorted(self.cumulated_V, drawn_BCK, side='right').astype(np.int32),
        }

    def _document(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.cache.offsets, places, side='right')


def uniform(seed: int, stream: str, numbers: np.ndarray) -> np.ndarray:
    """A float64 in [0, 1) for each of `numbers` (int64), a function of seed, stream and number alone: the finaliser of splitmix64
    (Steele et al. 2014) over a Weyl sequence. A generator for each example would take a hundred times as long."""
    x = np.asarray(numbers).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x += rng.numpy_rng(seed, stream).integers(0, 1 << 64, dtype=np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def export(
    workdir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    checkpoint: str = 'last',
    table: str = 'embed/embedding',
    style: str = 'word2vec',
) -> int:
    """Writes a trained run's vectors as a text file and returns how many.

    Args:
      workdir: the run's folder, with its tokenizer.
      path: the file, compressed if its name ends in .gz; see `lmx.text.vectors.save`.
      checkpoint: 'last', 'best', 'average:K' or a step.
      table: the path of the parameter [V, D]; that of the input vectors in every model of lmx.
      style: 'word2vec' or 'glove'.

    Special tokens and tokens with a blank in them are left out, for which the format has no place.

    Raises:
      BadInput: no such run, checkpoint or parameter.
    """
    from lmx import text
    from lmx.text import vectors
    from lmx.train import init

    params = init.flat(init.read_params(str(workdir), checkpoint))
    if table not in params:
        raise BadInput(f'{workdir} has no parameter {table!r}{nearest(table, list(params))}')
    tokenizer = text.load(path=str(workdir))
    vocab = [tokenizer.inner.id_to_token(index) or '' for index in range(tokenizer.vocab_size)]
    kept = [index for index, word in enumerate(vocab) if word and not tokenizer.is_special[index] and not any(c.isspace() for c in word)]
    vectors.save(path, [vocab[index] for index in kept], np.asarray(params[table])[kept], style=style)
    return len(kept)
