"""Word vectors by skip-gram with negative sampling (Mikolov et al. 2013, arXiv:1310.4546)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmx.data.cache import token_cache
from lmx.data.skip_gram import Pairs
from lmx.objectives import merge
from lmx.spec import nearest
from lmx.types import Apply, Array, BadInput, Batch, Features, Mean, Record, Sums, Task


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
      draws: how often the text stands among the examples, each time without other words. Windows and negatives are new in every epoch.
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
      batch: see `lmx.data.skip_gram.Pairs`. A negative that is the context itself does not count, as in word2vec.

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
