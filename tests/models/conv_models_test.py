"""Convolutional models: PyTorch's numbers on the same weights, padding, packing, short texts, cached decoding."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import models
from lmx.models.text_cnn import max_over_time
from lmx.train.state import bind
from lmx.types import BadInput

V, D, B, T, S = 19, 12, 2, 8, 7
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)  # float32 rounding; outputs are of order 1


def tokens(seed, length):
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (B, length), np.int32))


SOURCE, TARGET, TEXT = tokens(1, S), tokens(2, T), tokens(3, T)


def rough(params, scale=0.3):
    """Fresh parameters with noise, so that biases and gains take part."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [x + scale * np.std(x) * rng.normal(size=x.shape).astype(np.float32) + 0.01 for x in leaves])


# -- text_cnn


@cache
def text_cnn():
    model = models.text_cnn(vocab_size=V, dim=D, widths=(2, 3, 5), features=4, num_classes=3)
    return model, rough(jax.jit(model.init)(jax.random.key(0), TEXT)['params'])


def scores(text, segments=None):
    model, params = text_cnn()  # outside the trace, which would leave tracers in the cache
    return jax.jit(model.apply)({'params': params}, text, segments=segments)


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore:Using padding=.same. with even kernel:UserWarning')
def test_text_cnn_is_pytorchs():
    torch = pytest.importorskip('torch')
    model, params = text_cnn()
    weights = jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), params)
    x = torch.nn.functional.embedding(torch.tensor(np.asarray(TEXT)).long(), weights['embed']['embedding']).transpose(1, 2)
    maxima = []
    for width in (2, 3, 5):
        layer = weights['encoder'][f'conv_{width}']
        y = torch.nn.functional.conv1d(x, layer['kernel'].permute(2, 1, 0), layer['bias'], padding='same')
        maxima.append(torch.relu(y).amax(-1))
    out = weights['output']['out']
    want = torch.cat(maxima, -1) @ out['kernel'] + out['bias']
    want.square().sum().backward()
    close(scores(TEXT), want.detach().numpy())
    got = jax.grad(lambda params: jnp.sum(jnp.square(model.apply({'params': params}, TEXT))))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.grad.numpy(), rtol=1e-4, atol=1e-4), got, weights)


@pytest.mark.parametrize('length', [1, 2, 4, 8])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_text_cnn_sees_no_padding_and_reads_short_texts(length, side):
    alone = scores(TEXT[:, :length])
    pad = ((0, 0), (3, 0) if side == 'left' else (0, 3))
    padded = jnp.pad(TEXT[:, :length], pad, constant_values=V - 1)
    close(scores(padded, jnp.pad(jnp.ones((B, length), jnp.int32), pad)), alone)
    assert np.isfinite(alone).all()


def test_max_over_time():
    x = jnp.asarray([[[-3.0, 1.0], [-1.0, -2.0], [9.0, 9.0]]] * 2)
    got = max_over_time(x, jnp.array([[1, 1, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(got, [[-1, 1], [0, 0]])  # the padding's 9 is not seen; no token, no value
    np.testing.assert_array_equal(max_over_time(x, None)[0], [9, 9])


def test_text_cnn_drops_only_with_a_key_and_learns_an_order():
    """A filter tells 'a b' from 'b a', which no bag of words does."""
    import optax

    model = models.text_cnn(vocab_size=V, dim=D, widths=(2,), features=8, num_classes=2, dropout_rate=0.2)
    rng = np.random.default_rng(0)
    text = rng.integers(2, V, (64, 6)).astype(np.int32)
    label = rng.integers(0, 2, 64)
    text[:, 2:4] = np.where(label[:, None] == 0, [0, 1], [1, 0])
    params = model.init(jax.random.key(0), text)['params']
    assert not np.array_equal(bind(model, params, jax.random.key(1))(text)[0], bind(model, params)(text)[0])
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(bind(model, params, key)(text)[0], label).mean()

        updates, state = tx.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for index in range(100):
        params, state = step(params, state, jax.random.key(index))
    assert (np.argmax(bind(model, params)(text)[0], -1) == label).mean() == 1


def test_text_cnn_refuses():
    with pytest.raises(BadInput, match='widths'):
        models.text_cnn(vocab_size=V, dim=D, widths=(3, 3), num_classes=2).init(jax.random.key(0), TEXT)
    with pytest.raises(BadInput, match='types'):
        models.text_cnn(vocab_size=V, dim=D, num_classes=2).init(jax.random.key(0), TEXT, types=TEXT)


# -- conv_seq2seq

MODELS = {
    'shared': partial(models.conv_seq2seq, vocab_size=V, dim=D, num_layers=2, max_length=16, dropout_rate=0.0),
    'apart': partial(
        models.conv_seq2seq,
        vocab_size=V,
        target_vocab_size=V + 2,
        dim=D,
        conv_dim=10,
        num_layers=1,
        num_decoder_layers=2,
        width=4,
        max_length=16,
        dropout_rate=0.0,
        tied=True,
    ),
}
both = pytest.mark.parametrize('name', MODELS)


@cache
def seq2seq(name):
    model = MODELS[name]()
    return model, rough(jax.jit(model.init)(jax.random.key(0), SOURCE, TARGET)['params'])


@partial(jax.jit, static_argnames=('name', 'method'))
def run(name, *args, method=None, **kwargs):
    model, params = seq2seq(name)
    return model.apply({'params': params}, *args, method=method, **kwargs)


@cache
def gradient(name, **keywords):
    params = seq2seq(name)[1]
    model = MODELS[name](**keywords)
    return jax.jit(jax.value_and_grad(lambda params: jnp.mean(jnp.square(model.apply({'params': params}, SOURCE, TARGET)))))(params)


def reference(torch, p, source, target, width, tied):
    """The paper in PyTorch: source, target -> logits. `p` is our tree of parameters as tensors."""
    F, half = torch.nn.functional, 0.5**0.5

    def conv(p, x, left, right):
        w = p['kernel'].permute(2, 1, 0)
        weight = torch._weight_norm(w, p['gain'][:, None, None], 0)
        return F.conv1d(F.pad(x.transpose(1, 2), (left, right)), weight, p['bias']).transpose(1, 2)

    def layer(p, index):
        return {k: layer(v, index) if isinstance(v, dict) else v[index] for k, v in p.items()}

    def side(p, x, left, right, attend=lambda p, y, e: y):
        e = x + p['position_embed']['embedding'][: x.shape[1]]
        x = conv(p['first'], e, 0, 0)
        for index in range(len(p['blocks']['conv']['bias'])):
            block = layer(p['blocks'], index)
            x = (x + attend(block, F.glu(conv(block['conv'], x, left, right), -1), e)) * half
        return conv(p['last'], x, 0, 0), e

    z, e = side(p['encoder'], F.embedding(source, p['embed']['embedding']), (width - 1) // 2, width // 2)
    values = (z + e) * half

    def attend(block, y, embedded):
        query = (conv(block['attention']['query'], y, 0, 0) + embedded) * half
        weights = torch.softmax(query @ z.transpose(1, 2), -1)
        c = weights @ values * source.shape[1] ** 0.5
        return (y + conv(block['attention']['out'], c, 0, 0)) * half

    table = p.get('target_embed', p['embed'])['embedding']
    h, _ = side(p['decoder'], F.embedding(target, table), width - 1, 0, attend)
    return h @ table.T if tied else h @ p['head']['embedding'].T + p['head']['bias']


@pytest.mark.parity
@both
def test_conv_seq2seq_is_pytorchs(name):
    torch = pytest.importorskip('torch')
    _, params = seq2seq(name)
    weights = jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), params)
    ids = [torch.tensor(np.asarray(x)).long() for x in (SOURCE, TARGET)]
    want = reference(torch, weights, *ids, width=4 if name == 'apart' else 3, tied=name == 'apart')
    want.square().mean().backward()
    close(run(name, SOURCE, TARGET), want.detach().numpy())
    _, got = gradient(name, encoder_gradient=1.0)  # whole, as autograd has them
    # Relative to each gradient's size: another order of float32 sums over a dozen layers.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.grad.numpy(), rtol=0, atol=1e-4 * (np.abs(a).max() + 1e-4)), got, weights)


def test_the_encoders_gradient_is_scaled_and_nothing_else():
    (loss, whole), (same_loss, scaled) = gradient('shared', encoder_gradient=1.0), gradient('shared')
    assert loss == same_loss
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), scaled['decoder'], whole['decoder'])
    for part in ('blocks', 'last'):  # one half: two attentions
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b / 2, rtol=1e-3, atol=1e-6), scaled['encoder'][part], whole['encoder'][part]
        )
    # Word vectors have a part that is not scaled.
    assert np.abs(scaled['encoder']['position_embed']['embedding'] - whole['encoder']['position_embed']['embedding'] / 2).max() > 1e-5


@both
def test_padding_leaves_no_trace(name):
    full = run(name, SOURCE, TARGET)
    for pad in ((0, 3), (3, 0)):
        around = partial(jnp.pad, pad_width=((0, 0), pad))
        keywords = {'source_segments': around(jnp.ones_like(SOURCE)), 'segments': around(jnp.ones_like(TARGET))}
        padded = run(name, around(SOURCE, constant_values=V - 1), around(TARGET, constant_values=V - 1), **keywords)
        close(padded[:, pad[0] : pad[0] + T], full)
        assert np.isfinite(padded).all()


@both
def test_packed_pairs_equal_separate_pairs(name):
    segments = {'source_segments': jnp.array([[1, 1, 1, 2, 2, 2, 0]]), 'segments': jnp.array([[1, 1, 1, 1, 1, 2, 2, 0]])}
    packed = run(name, SOURCE[:1], TARGET[:1], **segments)
    close(packed[:, :5], run(name, SOURCE[:1, :3], TARGET[:1, :5]))
    close(packed[:, 5:7], run(name, SOURCE[:1, 3:6], TARGET[:1, 5:7]))


@both
def test_targets_are_causal_and_read_the_source(name):
    plain = run(name, SOURCE, TARGET)
    changed = run(name, SOURCE, TARGET.at[:, 5].set((TARGET[:, 5] + 1) % V))
    np.testing.assert_array_equal(changed[:, :5], plain[:, :5])
    assert np.abs(changed[:, 5:] - plain[:, 5:]).max(-1).min() > 1e-4  # the filters of all layers reach that far
    other = run(name, SOURCE.at[:, 2].set((SOURCE[:, 2] + 1) % V), TARGET)
    assert np.abs(other - plain).max(-1).min() > 1e-5


@both
@pytest.mark.parametrize('side', ['right', 'left', 'between'])
def test_cached_decoding_of_ragged_rows_equals_the_full_forward(name, side):
    """Prompts of 4 and 2 tokens among padding, then one token a time; sources of unequal length."""
    model, _ = seq2seq(name)
    source_segments = jnp.array([[1] * S, [1] * (S - 3) + [0] * 3])
    full = run(name, SOURCE, TARGET, source_segments=source_segments)
    memory = run(name, SOURCE, segments=source_segments, method='encode')
    lengths, width = np.array([4, 2]), 6
    places = {'right': (range(4), range(2)), 'left': (range(2, 6), range(4, 6)), 'between': ((0, 2, 3, 5), (1, 4))}[side]
    prompt, segments = np.full((B, width), V - 1, np.int32), np.zeros((B, width), np.int32)
    for row, place in enumerate(places):
        prompt[row, list(place)], segments[row, list(place)] = TARGET[row, : lengths[row]], 1
    hidden, cache = run(name, prompt, memory, segments=segments, cache=model.init_cache(B, T), method='hidden')
    logits = run(name, hidden, method='unembed')
    for row, place in enumerate(places):
        close(logits[row, list(place)], full[row, : lengths[row]])
    for step in range(3):
        at = lengths + step
        hidden, cache = run(name, TARGET[np.arange(B), at][:, None], memory, cache=cache, method='hidden')
        close(run(name, hidden, method='unembed')[:, 0], full[np.arange(B), at])
    np.testing.assert_array_equal(cache.length_B, lengths + 3)
    rows = jnp.array([1, 0, 1])
    hidden, _ = run(name, TARGET[rows, (lengths + 3)[rows]][:, None], memory.take(rows), cache=cache.take(rows), method='hidden')
    close(run(name, hidden, method='unembed')[:, 0], full[rows, (lengths + 3)[rows]])


def test_every_layer_attends_and_its_weights_can_be_asked_for():
    model, params = seq2seq('apart')
    half = MODELS['apart'](dtype='bfloat16')
    segments = jnp.array([[1] * S, [1] * (S - 3) + [0] * 3])
    for each, kind in ((model, 'float32'), (half, 'bfloat16')):
        apply = jax.jit(partial(each.apply, mutable=['intermediates']))
        logits, sown = apply({'params': params}, SOURCE, TARGET, source_segments=segments)
        assert logits.dtype == jnp.float32
        (weights,) = sown['intermediates']['decoder']['blocks']['attention']['weights']
        assert weights.shape == (2, B, 1, T, S)
        assert weights.dtype == jnp.float32
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        assert not weights[:, 1, ..., S - 3 :].any()
        (hidden,) = sown['intermediates']['decoder']['blocks']['hidden']
        assert hidden.dtype == kind


def test_activations_keep_their_size():
    """Section 3.5: with the paper's scales, the residual stream neither grows nor vanishes over six layers."""
    model = models.conv_seq2seq(vocab_size=50, dim=64, num_layers=6, max_length=32, dropout_rate=0.0)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 50, (4, 24)))
    sown = jax.jit(lambda key: model.init_with_output(key, ids, ids, mutable=['params', 'intermediates'])[1])(jax.random.key(0))
    for side in ('encoder', 'decoder'):
        (hidden_LBTF,) = sown['intermediates'][side]['blocks']['hidden']
        size = np.sqrt(np.mean(np.square(hidden_LBTF), axis=(1, 2, 3)))
        assert 0.5 < size[-1] / size[0] < 2, side


def test_remat_changes_nothing():
    # The same operations, run twice and fused otherwise.
    close_to = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close_to, gradient('shared', remat='full')[1], gradient('shared')[1])


def test_conv_seq2seq_refuses():
    with pytest.raises(BadInput, match='width 0 is below 1'):
        MODELS['shared'](width=0)
    with pytest.raises(BadInput, match='max_length 16'):
        MODELS['shared']().init_cache(1, 17)
    with pytest.raises(BadInput, match='17 tokens, the limit is max_length 16'):
        jax.eval_shape(MODELS['shared']().init, jax.random.key(0), jnp.zeros((1, 17), jnp.int32), TARGET[:1])
