"""What is minimised: (apply, batch) -> Sums. Every mean is undivided, so that microbatches and devices add up exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmx.types import Apply, Array, Batch, Mean, Sums

WHITESPACE = b' \t\n\r\v\f'


class Words(NamedTuple):
    """Counts words from token ids: target t starts inner[t] + ends[input] * begins[t] words. float32 [V] each.

    inner: words that start inside the token, behind its first byte; ends: 1 where a word may start right after the token;
    begins: 1 where the token's first byte belongs to a word.
    """

    inner_V: Array
    ends_V: Array
    begins_V: Array

    @classmethod
    def of(cls, pieces: Sequence[bytes], newline_is_word: bool = False) -> Words:
        """The tables of a vocabulary. Words are what whitespace separates.

        Args:
          pieces: each token's bytes; b'' for tokens that are no text, behind which a word may start.
          newline_is_word: every line end counts as one word more, as the figures on WikiText do.
        """
        space = [np.array([byte in WHITESPACE for byte in piece], bool) for piece in pieces]
        lines = [piece.count(b'\n') if newline_is_word else 0 for piece in pieces]
        return cls(
            inner_V=np.array([np.sum(s[:-1] & ~s[1:]) + n for s, n in zip(space, lines)], np.float32),
            ends_V=np.array([not len(s) or s[-1] for s in space], np.float32),
            begins_V=np.array([len(s) > 0 and not s[0] for s in space], np.float32),
        )


def next_token(
    apply: Apply,
    batch: Batch,
    *,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    chunk: int | None = None,
    byte_counts_V: Array | None = None,
    words: Words | None = None,
) -> Sums:
    """Maximum likelihood of the next token under a `Decoder`.

    Args:
      batch: inputs, targets [B, T] int32; weights [B, T] float32, 0 = padding; optional segments and positions [B, T] int32.
      label_smoothing, z_loss, chunk: see `token_losses`.
      byte_counts_V: float32 [V], the bytes that each token stands for.
      words: see `Words`.

    Returns:
      'loss/next_token' (cross-entropy, smoothing included) and, with z_loss, 'loss/z' (coefficient included) are minimised. Metrics:
      'nll' (nats per token, never smoothed), 'accuracy', with byte_counts_V 'bits_per_byte', with words 'word_nats' (nats per word;
      exp of it is the word-level perplexity).
    """
    inputs, targets, weights = batch['inputs'], batch['targets'], batch['weights'].astype(jnp.float32)
    (hidden_BTD, _), sown = apply(inputs, segments=batch.get('segments'), positions=batch.get('positions'), method='hidden')
    totals, sown_out = token_losses(apply, hidden_BTD, targets, weights, chunk=chunk, label_smoothing=label_smoothing, z_loss=z_loss)
    count = jnp.sum(weights)
    sums = {
        'loss/next_token': Mean(totals['loss'], count),
        'nll': Mean(totals['nll'], count),
        'accuracy': Mean(totals['correct'], count),
    }
    if 'z' in totals:
        sums['loss/z'] = Mean(totals['z'], count)
    if byte_counts_V is not None:
        sums['bits_per_byte'] = Mean(totals['nll'] / math.log(2), jnp.sum(weights * jnp.asarray(byte_counts_V)[targets]))
    if words is not None:
        inner, ends, begins = map(jnp.asarray, words)
        sums['word_nats'] = Mean(totals['nll'], jnp.sum(weights * (inner[targets] + ends[inputs] * begins[targets])))
    return merge(sums, sown, sown_out)


def token_losses(
    apply: Apply,
    hidden: Array,
    targets: Array,
    weights: Array,
    *,
    memory: Any = None,
    chunk: int | None = None,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
) -> tuple[dict[str, Array], Sums]:
    """Cross-entropy over the vocabulary, the one place where logits of a training batch exist.

    Args:
      hidden: [..., T, D]; `apply(hidden, method='unembed')` gives the logits, `apply(hidden, memory, method='unembed')` with a memory.
      targets, weights: [..., T].
      chunk: positions of T that are unembedded at a time (and again in the backward pass), so that the logits of all never exist at
        once. None = all.
      label_smoothing: this share of the target is spread over the whole vocabulary, as PyTorch's cross_entropy does it (Szegedy et al.
        2016, arXiv:1512.00567). May be traced.
      z_loss: coefficient of the squared log normaliser (PaLM, arXiv:2204.02311, section 5). A static 0 or None: none. May be traced.

    Returns:
      (weighted float32 totals: 'loss', 'nll', 'correct' and, with z_loss, 'z'; what the unembedding sowed).
    """

    def losses(hidden: Array, targets: Array, weights: Array) -> tuple[dict[str, Array], Sums]:
        logits, sown = apply(hidden, *(() if memory is None else (memory,)), method='unembed')
        return _weighted_totals(logits.astype(jnp.float32), targets, weights, label_smoothing, z_loss), sown

    length = hidden.shape[-2]
    if chunk is None or chunk >= length:
        return losses(hidden, targets, weights)
    # Chunks of positions, not of rows: the batch axis may be spread over devices.
    parts = tuple(_chunked(array, axis, chunk) for array, axis in ((hidden, -2), (targets, -1), (weights, -1)))
    _, stacked = jax.lax.scan(lambda carry, part: (carry, jax.checkpoint(losses, prevent_cse=False)(*part)), None, parts)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), stacked)


def _weighted_totals(logits: Array, targets: Array, weights: Array, label_smoothing: Any, z_loss: Any) -> dict[str, Array]:
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # Compared, not gathered: the gradient of a gather is a scatter over the whole vocabulary.
    hot = jnp.arange(logits.shape[-1]) == targets[..., None]
    nll = normaliser - jnp.sum(jnp.where(hot, logits, 0), axis=-1)
    loss = nll if _off(label_smoothing) else (1 - label_smoothing) * nll + label_smoothing * (normaliser - jnp.mean(logits, axis=-1))
    correct = jnp.argmax(logits, axis=-1) == targets
    totals = {'loss': loss, 'nll': jax.lax.stop_gradient(nll), 'correct': correct}
    if not _off(z_loss):
        totals['z'] = z_loss * jnp.square(normaliser)
    return {name: jnp.sum(weights * value) for name, value in totals.items()}


def _off(value: Any) -> bool:
    """Whether a hyperparameter is statically absent; a traced 0 is not."""
    return value is None or (isinstance(value, (int, float)) and value == 0)


def _chunked(x: Array, axis: int, chunk: int) -> Array:
    """Splits an axis, padded with zeros, into chunks: [..., T, ...] -> [T / chunk, ..., chunk, ...], positions dealt out in turn, so that
    every chunk has some of each device's."""
    axis %= x.ndim
    count = -(-x.shape[axis] // chunk)
    padded = jnp.pad(x, [(0, count * chunk - size if index == axis else 0) for index, size in enumerate(x.shape)])
    return jnp.moveaxis(padded.reshape(*x.shape[:axis], chunk, count, *x.shape[axis + 1 :]), axis + 1, 0)


def merge(*parts: Sums) -> dict[str, Mean]:
    """Adds sums up by name."""
    out: dict[str, Mean] = {}
    for name, mean in (item for part in parts for item in part.items()):
        out[name] = Mean(out[name].total + mean.total, out[name].count + mean.count) if name in out else mean
    return out


def seq2seq(apply: Apply, batch: Batch, *, label_smoothing: Any = 0.0, z_loss: Any = 0.0, chunk: int | None = None) -> Sums:
    """Maximum likelihood of a target text given a source, under an `EncoderDecoder` that reads the true target (teacher forcing).

    Args:
      batch: source, source_segments [B, S] int32, segments 0 = padding; inputs (the targets shifted right), targets [B, T] int32; weights
        [B, T] float32, 0 = padding; optional segments [B, T] where several pairs share a row.
      label_smoothing, z_loss, chunk: see `token_losses`.

    Returns:
      'loss/seq2seq' (smoothing included) and, with z_loss, 'loss/z' are minimised; 'nll' (nats per token, never smoothed), 'accuracy'.
    """
    memory, sown_in = apply(batch['source'], segments=batch['source_segments'], method='encode')
    (hidden_BTD, _), sown = apply(batch['inputs'], memory, segments=batch.get('segments'), method='hidden')
    sums, sown_out = _vocabulary(
        'seq2seq', apply, hidden_BTD, batch, memory=memory, chunk=chunk, label_smoothing=label_smoothing, z_loss=z_loss
    )
    return merge(sums, sown_in, sown, sown_out)


def masked_token(apply: Apply, batch: Batch, *, label_smoothing: Any = 0.0, z_loss: Any = 0.0, chunk: int | None = None) -> Sums:
    """Maximum likelihood of tokens that were hidden from an `Encoder` with `unembed` (Devlin et al. 2018, arXiv:1810.04805).

    Args:
      batch: tokens [B, T] int32, spoilt; optional segments, positions, types [B, T]; places [B, N] int32, where the hidden tokens stood;
        targets [B, N] int32, what they were; weights [B, N] float32, 0 = no such place. Only these places are unembedded.
      label_smoothing, z_loss, chunk: see `token_losses`.

    Returns:
      'loss/masked_token' and, with z_loss, 'loss/z' are minimised; 'nll' (nats per hidden token), 'accuracy'.
    """
    hidden_BTD, sown = apply(batch['tokens'], **_context(batch), method='hidden')
    hidden_BND = jnp.take_along_axis(hidden_BTD, batch['places'][..., None], axis=1)
    sums, sown_out = _vocabulary('masked_token', apply, hidden_BND, batch, chunk=chunk, label_smoothing=label_smoothing, z_loss=z_loss)
    return merge(sums, sown, sown_out)


def classify(apply: Apply, batch: Batch, *, label_smoothing: Any = 0.0) -> Sums:
    """Cross-entropy of a text's class, for any model whose `__call__` gives scores [B, N].

    Args:
      batch: tokens [B, T] int32; optional segments, positions, types [B, T]; label [B] int32; weights [B] float32.

    Returns:
      'loss/classify' is minimised; 'accuracy'.
    """
    logits_BN, sown = apply(batch['tokens'], **_context(batch))
    return merge(_classes('classify', logits_BN, batch['label'], batch['weights'], label_smoothing), sown)


def regress(apply: Apply, batch: Batch) -> Sums:
    """Squared error of a text's value, for any model whose `__call__` gives [B, 1]; the batch as in `classify`, label [B] float32.

    Returns:
      'loss/regress' is minimised.
    """
    values_B1, sown = apply(batch['tokens'], **_context(batch))
    weights_B = batch['weights'].astype(jnp.float32)
    error_B = jnp.square(values_B1[:, 0].astype(jnp.float32) - batch['label'])
    return merge({'loss/regress': Mean(jnp.sum(weights_B * error_B), jnp.sum(weights_B))}, sown)


def token_classes(apply: Apply, batch: Batch, *, label_smoothing: Any = 0.0) -> Sums:
    """Cross-entropy of the classes of tokens, for any model whose `__call__` gives scores [B, T, N].

    Args:
      batch: as in `classify`, but targets [B, T] int32 and weights [B, T] float32, 0 where a token has no class of its own.

    Returns:
      'loss/token_classes' is minimised; 'accuracy' per token that counts.
    """
    logits_BTN, sown = apply(batch['tokens'], **_context(batch))
    return merge(_classes('token_classes', logits_BTN, batch['targets'], batch['weights'], label_smoothing), sown)


def span(apply: Apply, batch: Batch) -> Sums:
    """Cross-entropy of where an answer begins and ends, for any model whose `__call__` gives scores [B, T, 2] (arXiv:1810.04805, 4.2).

    Args:
      batch: tokens, segments [B, T] int32; optional positions, types [B, T]; start, end [B] int32, the answer's first and last token, both
        0 where there is none; weights [B] float32.

    Returns:
      'loss/span', the mean of both ends' losses, is minimised; 'accuracy': both ends right.
    """
    logits_BT2, sown = apply(batch['tokens'], **_context(batch))
    weights_B = batch['weights'].astype(jnp.float32)
    logits_2BT = jnp.moveaxis(span_scores(logits_BT2, batch['segments']), -1, 0)
    ends_2B = jnp.stack([batch['start'], batch['end']])
    nll_2B = -jnp.take_along_axis(jax.nn.log_softmax(logits_2BT), ends_2B[..., None], axis=-1)[..., 0]
    right_B = jnp.all(jnp.argmax(logits_2BT, axis=-1) == ends_2B, axis=0)
    count = jnp.sum(weights_B)
    sums = {
        'loss/span': Mean(jnp.sum(weights_B * jnp.mean(nll_2B, axis=0)), count),
        'accuracy': Mean(jnp.sum(weights_B * right_B), count),
    }
    return merge(sums, sown)


def span_scores(logits_BT2: Array, segments_BT: Array) -> Array:
    """Scores of starts and ends, float32, where padding has none."""
    return jnp.where((segments_BT != 0)[..., None], logits_BT2.astype(jnp.float32), -1e30)


def _vocabulary(name: str, apply: Apply, hidden: Array, batch: Batch, **losses: Any) -> tuple[dict[str, Mean], Sums]:
    """The sums of an objective over the vocabulary, and what the unembedding sowed."""
    weights = batch['weights'].astype(jnp.float32)
    totals, sown = token_losses(apply, hidden, batch['targets'], weights, **losses)
    names = {'loss': f'loss/{name}', 'nll': 'nll', 'correct': 'accuracy', 'z': 'loss/z'}
    return {names[key]: Mean(total, jnp.sum(weights)) for key, total in totals.items()}, sown


def _classes(name: str, logits: Array, targets: Array, weights: Array, label_smoothing: Any) -> dict[str, Mean]:
    weights = weights.astype(jnp.float32)
    totals = _weighted_totals(logits.astype(jnp.float32), targets, weights, label_smoothing, None)
    return {f'loss/{name}': Mean(totals['loss'], jnp.sum(weights)), 'accuracy': Mean(totals['correct'], jnp.sum(weights))}


def _context(batch: Batch) -> dict[str, Array]:
    """What a batch says about its tokens beside which they are."""
    return {name: batch[name] for name in ('segments', 'positions', 'types') if name in batch}


def contrastive(apply: Apply, batch: Batch, *, temperature: Any = 0.05) -> Sums:
    """Each query is to find its document among those of the batch, and each document its query (InfoNCE; arXiv:1807.03748; hard negatives:
    Karpukhin et al. 2020, arXiv:2004.04906).

    Args:
      batch: query_tokens, query_segments, document_tokens, document_segments [B, T] int32; weights [B] float32, 0 = padding; optional
        negative_tokens and negative_segments [B, N, T], documents that do not answer the row's query, and count for all queries.
      temperature: of the softmax over cosines; may be traced.

    Returns:
      'loss/contrastive', the mean of both directions, is minimised. Metrics: 'accuracy' and 'reciprocal_rank' of queries. Examples couple.
    """
    query_BD, document_BD, sown = _vectors(apply, batch)
    weights_B = batch['weights'].astype(jnp.float32)
    scores_BB = query_BD @ document_BD.T / temperature
    blocked_BB = jnp.where((weights_B[:, None] * weights_B[None]) > 0, scores_BB, -1e9)
    own_B, all_BN = jnp.diagonal(scores_BB), blocked_BB
    if 'negative_tokens' in batch:
        tokens_BNT = batch['negative_tokens']
        flat = {name: batch[f'negative_{name}'].reshape(-1, tokens_BNT.shape[-1]) for name in ('tokens', 'segments')}
        negative_ND, more = apply(flat['tokens'], segments=flat['segments'], method='documents')
        real_N = jnp.repeat(weights_B, tokens_BNT.shape[1])
        scores_BN = jnp.where(weights_B[:, None] * real_N > 0, query_BD @ negative_ND.T / temperature, -1e9)
        all_BN, sown = jnp.concatenate([blocked_BB, scores_BN], axis=1), merge(sown, more)
    loss_B = (jax.nn.logsumexp(all_BN, axis=1) + jax.nn.logsumexp(blocked_BB, axis=0)) / 2 - own_B
    rank_B = 1 + jnp.sum(all_BN > own_B[:, None], axis=1)
    count = jnp.sum(weights_B)
    totals = {'loss/contrastive': loss_B, 'accuracy': rank_B == 1, 'reciprocal_rank': 1 / rank_B}
    return merge({name: Mean(jnp.sum(weights_B * value), count) for name, value in totals.items()}, sown)


def cosine(apply: Apply, batch: Batch) -> Sums:
    """Squared error of the cosine of two texts' vectors; the batch as in `contrastive`, similarity [B] float32 beside.

    Returns:
      'loss/cosine' is minimised.
    """
    query_BD, document_BD, sown = _vectors(apply, batch)
    weights_B = batch['weights'].astype(jnp.float32)
    error_B = jnp.square(jnp.sum(query_BD * document_BD, axis=-1) - batch['similarity'])
    return merge({'loss/cosine': Mean(jnp.sum(weights_B * error_B), jnp.sum(weights_B))}, sown)


def _vectors(apply: Apply, batch: Batch) -> tuple[Array, Array, Sums]:
    query_BD, first = apply(batch['query_tokens'], segments=batch['query_segments'])
    document_BD, second = apply(batch['document_tokens'], segments=batch['document_segments'], method='documents')
    return query_BD, document_BD, merge(first, second)
