"""Recurrent layers against PyTorch's, with the same weights; padding, segments, and what regularises them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import models
from lmx.models.rnn_seq2seq import Additive, Multiplicative
from lmx.nn.rnn import CELLS, Bidirectional, LockedDropout, Recurrent
from lmx.train.state import sown
from lmx.types import BadInput

B, T, D, F = 3, 7, 5, 6
LENGTHS = np.array([7, 3, 5])
SEGMENTS = (np.arange(T) < LENGTHS[:, None]).astype(np.int32)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def direction(theirs, suffix: str = ''):
    """One direction of a torch layer's tensors as our parameters."""

    def own(kind, name):
        return getattr(theirs, f'{name}_{kind}_l0{suffix}')

    names = {'input': 'ih', 'recurrent': 'hh'}
    return {ours: {'kernel': own(kind, 'weight').T, 'bias': own(kind, 'bias')} for ours, kind in names.items()}


@pytest.mark.parity
@pytest.mark.parametrize('both_ways', [False, True])
@pytest.mark.parametrize('cell', CELLS)
def test_outputs_states_and_gradients_equal_pytorch(cell, both_ways):
    torch = pytest.importorskip('torch')
    torch.manual_seed(0)
    kind = {'elman': torch.nn.RNN, 'lstm': torch.nn.LSTM, 'gru': torch.nn.GRU}[cell]
    theirs = kind(D, F, batch_first=True, bidirectional=both_ways)
    x = random(B, T, D)
    x_ = torch.tensor(x, requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x_, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    out_, state_ = theirs(packed)
    out_, _ = torch.nn.utils.rnn.pad_packed_sequence(out_, batch_first=True)
    weights = random(*out_.shape, seed=1)
    (out_ * torch.tensor(weights)).sum().backward()

    def params(pick):
        ahead = direction(theirs)
        tree = {'forward': ahead, 'backward': direction(theirs, '_reverse')} if both_ways else ahead
        return jax.tree.map(lambda tensor: pick(tensor), tree, is_leaf=lambda node: isinstance(node, torch.Tensor))

    ours = Bidirectional(F, CELLS[cell]) if both_ways else Recurrent(F, CELLS[cell])

    def total(params, x):
        args = (x, jnp.asarray(SEGMENTS)) if both_ways else (x, None, jnp.asarray(SEGMENTS))
        out, state = ours.apply({'params': params}, *args)
        return jnp.sum(out * weights), (out, state)

    own = params(lambda tensor: jnp.asarray(tensor.detach().numpy()))
    (_, (out, state)), (gradients, on_x) = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(own, jnp.asarray(x))
    close = lambda a, b, tolerance: np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)  # noqa: E731
    close(out, out_.detach().numpy(), 1e-5)  # float32 sums in another order
    last = state if both_ways else (state,)
    for index, arrays in enumerate(zip(*last)):
        want = (state_[index] if cell == 'lstm' else state_).detach().numpy()
        close(np.stack(arrays), want, 1e-5)
    close(on_x, x_.grad.numpy(), 1e-4)
    grads = {id(parameter): parameter.grad for parameter in theirs.parameters()}
    names = {'input': 'ih', 'recurrent': 'hh'}
    for suffix, tree in (('', gradients['forward']), ('_reverse', gradients['backward'])) if both_ways else (('', gradients),):
        for ours_name, short in names.items():
            for leaf, long in (('kernel', 'weight'), ('bias', 'bias')):
                want = grads[id(getattr(theirs, f'{long}_{short}_l0{suffix}'))].numpy()
                close(tree[ours_name][leaf], want.T if leaf == 'kernel' else want, 1e-4)


@pytest.mark.parametrize('reverse', [False, True])
def test_left_padding_and_segments_change_nothing(reverse):
    layer = Recurrent(F, CELLS['gru'], reverse=reverse)
    x = jnp.asarray(random(1, 10, D))
    params = layer.init(jax.random.key(0), x)
    segments = jnp.array([[0, 0, 1, 1, 1, 2, 2, 2, 2, 0]])
    packed, _ = layer.apply(params, x, None, segments)
    for start, end in ((2, 5), (5, 9)):
        alone, _ = layer.apply(params, x[:, start:end])
        np.testing.assert_allclose(packed[:, start:end], alone, atol=1e-6)
    assert not np.any(packed[:, :2])


def test_a_traced_weight_drop_drops_recurrent_weights_alone():
    layer = lambda rate: Recurrent(F, CELLS['lstm'], weight_drop_rate=rate)  # noqa: E731
    x = jnp.asarray(random(2, 4, D))
    params = layer(None).init(jax.random.key(0), x)
    run = jax.jit(lambda rate, key: layer(rate).apply(params, x, rngs={'dropout': key})[0])
    plain = layer(None).apply(params, x)[0]
    np.testing.assert_allclose(run(0.0, jax.random.key(1)), plain, atol=1e-6)
    dropped = run(0.5, jax.random.key(1))
    np.testing.assert_allclose(dropped[:, 0], plain[:, 0], atol=1e-6)  # the first token meets a state of zeros
    assert np.abs(dropped[:, 1:] - plain[:, 1:]).max() > 1e-3


def test_locked_dropout_drops_the_same_channels_at_every_token():
    out = LockedDropout(0.5).apply({}, jnp.ones((4, 9, 50)), rngs={'dropout': jax.random.key(0)})
    assert np.all(out == out[:, :1])
    assert 0.3 < float((out == 0).mean()) < 0.7
    assert len({bytes(np.asarray(row[0])) for row in out}) == 4


def test_regularisers_are_sown_as_means():
    model = models.rnn_lm(vocab_size=11, dim=F, num_layers=2, activation_l2=2.0, temporal_l2=3.0)
    tokens, segments = jnp.arange(8).reshape(2, 4), jnp.array([[1, 1, 2, 2], [1, 1, 1, 0]])
    params = {'params': model.init(jax.random.key(0), tokens)['params']}
    (hidden, _), found = model.apply(params, tokens, segments=segments, method='hidden', mutable=['losses'])
    losses = sown(found)
    square, change = jnp.mean(hidden**2, -1), jnp.mean(jnp.diff(hidden, axis=1) ** 2, -1)
    np.testing.assert_allclose(losses['loss/activation_l2'].total, 2 * (square[0].sum() + square[1, :3].sum()), rtol=1e-6)
    assert losses['loss/activation_l2'].count == 7
    np.testing.assert_allclose(losses['loss/temporal_l2'].total, 3 * (change[0, 0] + change[0, 2] + change[1, 0] + change[1, 1]), rtol=1e-6)
    assert losses['loss/temporal_l2'].count == 4
    plain = models.rnn_lm(vocab_size=11, dim=F, num_layers=2)
    assert not plain.apply(params, tokens, method='hidden', mutable=['losses'])[1]


def test_state_is_carried_in_its_collection():
    model = models.rnn_lm(vocab_size=11, dim=F, num_layers=2, cell='gru')
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 9)))
    variables = model.init(jax.random.key(0), tokens)
    whole, _ = model.apply({'params': variables['params']}, tokens)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(variables['carry']))
    parts, carry = [], variables['carry']
    for start, end in ((0, 4), (4, 5), (5, 9)):
        (logits, _), new = model.apply({'params': variables['params'], 'carry': carry}, tokens[:, start:end], mutable=['carry'])
        parts, carry = [*parts, logits], new['carry']
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)


def test_attention_scores_as_the_papers_have_them():
    state, keys = random(2, F), random(2, 4, F, seed=1)
    params = Additive().init(jax.random.key(0), state, keys)
    w, v = params['params']['query']['kernel'], params['params']['score']['kernel']
    np.testing.assert_allclose(Additive().apply(params, state, keys), (np.tanh((state @ w)[:, None] + keys) @ v)[..., 0], atol=1e-6)
    np.testing.assert_allclose(Multiplicative().apply({}, state, keys), (keys * state[:, None]).sum(-1), atol=1e-6)


def test_bilstm_sees_no_padding_and_refuses_types():
    model = models.bilstm(vocab_size=11, dim=F, hidden_dim=4, num_layers=2, num_classes=3)
    tokens = jnp.arange(1, 6)[None]
    params = {'params': model.init(jax.random.key(0), tokens)['params']}
    alone = model.apply(params, tokens)
    assert alone.shape == (1, 3)
    for pad in (lambda x: jnp.pad(x, ((0, 0), (0, 3))), lambda x: jnp.pad(x, ((0, 0), (3, 0)))):
        np.testing.assert_allclose(model.apply(params, pad(tokens), segments=pad(jnp.ones_like(tokens))), alone, atol=1e-6)
    with pytest.raises(BadInput, match='no token types'):
        model.apply(params, tokens, types=tokens)
    with pytest.raises(BadInput, match="cell 'lstn' is unknown"):
        models.bilstm(vocab_size=11, num_classes=2, cell='lstn')
