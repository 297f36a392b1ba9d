"""The next-token objective against PyTorch's cross-entropy, and what chunking, packing and padding must not change."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import models, objectives
from lmx.nn.positions import Rotary

B, T, V, D = 2, 10, 11, 16
model = models.gpt(vocab_size=V, dim=D, num_layers=1, num_heads=2, max_length=T, positions=Rotary())
params = {'params': jax.tree.map(lambda x: 8 * x, jax.jit(model.init)(jax.random.key(0), jnp.zeros((B, T), jnp.int32))['params'])}


@partial(jax.jit, static_argnames='method')
def call(params, *args, method, **kwargs):
    return model.apply(params, *args, method=method, **kwargs)


def apply(*args, method=None, params=params, **kwargs):
    return call(params, *args, method=method, **kwargs), {}


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, V, (B, T + 1), np.int32)
    return {'inputs': ids[:, :-1], 'targets': ids[:, 1:], 'weights': (rng.random((B, T)) < 0.7).astype(np.float32)}


def close(a, b, rtol=1e-5, atol=1e-5):  # float32 sums in another order
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


@pytest.mark.parity
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_loss_equals_pytorch(smoothing):
    torch = pytest.importorskip('torch')
    data = batch()
    (logits, _), _ = apply(data['inputs'])
    targets = torch.tensor(data['targets'], dtype=torch.long)
    want = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits)).swapaxes(1, 2), targets, label_smoothing=smoothing, reduction='none'
    ).numpy()
    sums = objectives.next_token(apply, data, label_smoothing=smoothing)
    close(sums['loss/next_token'].total, (want * data['weights']).sum())
    close(sums['loss/next_token'].count, data['weights'].sum())
    plain = objectives.next_token(apply, data)
    close(sums['nll'], plain['loss/next_token'])
    right = np.asarray(logits).argmax(-1) == data['targets']
    assert sums['accuracy'].total == (right * data['weights']).sum()


@pytest.mark.parametrize('chunk', [1, 3, 64])
def test_chunked_loss_equals_whole_with_its_gradient(chunk):
    def loss(params, chunk):
        sums = objectives.next_token(partial(apply, params=params), batch(), chunk=chunk, label_smoothing=0.1, z_loss=1e-2)
        return sums['loss/next_token'].total + sums['loss/z'].total, sums

    got, want = (jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(params, c) for c in (chunk, None))
    close(got, want, rtol=1e-4, atol=1e-4)  # sums over all tokens in another order; entries reach 9, where float32's step is 1e-6


@pytest.mark.optimized
def test_chunking_never_holds_all_logits():
    vocab, length, chunk = 4001, 64, 8
    wide = models.gpt(vocab_size=vocab, dim=8, num_layers=1, num_heads=1, max_length=length)
    data = {
        'inputs': np.zeros((B, length), np.int32),
        'targets': np.zeros((B, length), np.int32),
        'weights': np.ones((B, length), np.float32),
    }
    weights = wide.init(jax.random.key(0), data['inputs'])

    def temporaries(chunk):
        def loss(weights):
            bound = lambda *args, **kwargs: (wide.apply(weights, *args, **kwargs), {})  # noqa: E731
            return objectives.next_token(bound, data, chunk=chunk)['loss/next_token'].total

        return jax.jit(jax.grad(loss)).lower(weights).compile().memory_analysis().temp_size_in_bytes

    logits = B * length * vocab * 4
    assert temporaries(None) > logits > temporaries(chunk)


def test_packed_loss_equals_separate_losses():
    data = batch()
    lengths = [5, 5]
    row = {name: array[:1] for name, array in data.items()}
    packed = {
        **row,
        'weights': np.array([[1.0] * 10], np.float32),
        'segments': np.array([[1] * 5 + [2] * 5], np.int32),
        'positions': np.array([[*range(5), *range(5)]], np.int32),
    }
    separate, start = {}, 0
    for length in lengths:
        part = {name: row[name][:, start : start + length] for name in ('inputs', 'targets')}
        separate = objectives.merge(separate, objectives.next_token(apply, {**part, 'weights': np.ones((1, length), np.float32)}))
        start += length
    close(objectives.next_token(apply, packed), separate)


def test_padding_counts_nothing_whatever_it_holds():
    data = batch()
    other = {**data, 'targets': np.where(data['weights'] > 0, data['targets'], (data['targets'] + 1) % V)}
    close(objectives.next_token(apply, data), objectives.next_token(apply, other), rtol=0, atol=0)


def test_z_loss_and_smoothing_may_be_traced():
    def loss(smoothing, z):
        return objectives.next_token(apply, batch(), label_smoothing=smoothing, z_loss=z)

    traced = jax.vmap(loss)(jnp.array([0.0, 0.1]), jnp.array([1e-3, 1e-2]))
    close(jax.tree.map(lambda x: x[1], traced), loss(0.1, 1e-2))
    (logits, _), _ = apply(batch()['inputs'])
    z = 1e-2 * (np.square(jax.nn.logsumexp(logits, axis=-1)) * batch()['weights']).sum()
    close(traced['loss/z'].total[1], z)
    assert 'loss/z' not in objectives.next_token(apply, batch())


PIECES = [b'', b'a', b' b', b'c d', b'\n', b'e\n', b' ', b'f g h', b'\n\n', b'i \nj', b' \n k']


def count_words(text: bytes, newline_is_word: bool) -> int:
    return len(text.split()) + (text.count(b'\n') if newline_is_word else 0)


@pytest.mark.parametrize('newline_is_word', [False, True])
def test_words_are_counted_as_in_the_text(newline_is_word):
    words = objectives.Words.of(PIECES, newline_is_word)
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = np.concatenate([[0], rng.integers(1, len(PIECES), 12)])  # id 0 is no text, as the start of a document
        got = words.inner_V[ids[1:]] + words.ends_V[ids[:-1]] * words.begins_V[ids[1:]]
        assert got.sum() == count_words(b''.join(PIECES[i] for i in ids), newline_is_word)


def test_bits_per_byte_and_word_nats_divide_the_same_nats():
    data = {**batch(), 'weights': np.ones((B, T), np.float32)}
    lengths = np.array([len(piece) for piece in PIECES], np.float32)
    sums = objectives.next_token(apply, data, byte_counts_V=lengths, words=objectives.Words.of(PIECES))
    nats = float(sums['nll'].total)
    assert sums['bits_per_byte'].count == lengths[data['targets']].sum()
    close(sums['bits_per_byte'].total, nats / math.log(2))
    close(sums['word_nats'].total, nats)
    words = objectives.Words.of(PIECES)
    assert sums['word_nats'].count == sum(
        words.inner_V[t] + words.ends_V[i] * words.begins_V[t] for i, t in zip(data['inputs'].ravel(), data['targets'].ravel())
    )


def test_merge_adds():
    a, b = objectives.next_token(apply, batch()), objectives.next_token(apply, batch(1))
    merged = objectives.merge(a, b)
    for part in range(2):
        np.testing.assert_allclose(merged['nll'][part], float(a['nll'][part]) + float(b['nll'][part]), rtol=1e-6)
