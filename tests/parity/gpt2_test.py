"""GPT-2 with the same random weights in transformers and here: logits, gradients, generated tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx import models
from lmx.decode import sample

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.parity

L, D, H, V, T, B = 3, 32, 4, 53, 24, 2


def to_lmx(state: dict[str, np.ndarray], num_layers: int) -> dict:
    """transformers' GPT-2 arrays by name, weights or gradients, as our parameter tree."""

    def stack(name: str) -> np.ndarray:
        return np.stack([state[f'transformer.h.{layer}.{name}'] for layer in range(num_layers)])

    def linear(name: str) -> dict:  # Conv1D stores [in, out], as we do
        return {'kernel': stack(f'{name}.weight'), 'bias': stack(f'{name}.bias')}

    def norm(name: str) -> dict:
        return {'scale': stack(f'{name}.weight'), 'bias': stack(f'{name}.bias')}

    joint = {name: np.split(array, 3, axis=-1) for name, array in linear('attn.c_attn').items()}
    query, key, value = ({name: parts[index] for name, parts in joint.items()} for index in range(3))
    return {
        'embed': {'embedding': state['transformer.wte.weight']},
        'decoder': {
            'position_embed': {'embedding': state['transformer.wpe.weight']},
            'blocks': {
                'attention': {'query': query, 'key': key, 'value': value, 'out': linear('attn.c_proj')},
                'attention_norm': norm('ln_1'),
                'mlp_norm': norm('ln_2'),
                'mlp': {'up': linear('mlp.c_fc'), 'down': linear('mlp.c_proj')},
            },
            'final_norm': {'scale': state['transformer.ln_f.weight'], 'bias': state['transformer.ln_f.bias']},
        },
    }


@pytest.fixture(scope='module')
def theirs():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=V, n_embd=D, n_layer=L, n_head=H, n_positions=T, initializer_range=0.2, bos_token_id=None, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():  # biases and norms away from 0 and 1, so that a swap would show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope='module')
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, V, (B, T), np.int32)


ours = models.gpt(vocab_size=V, dim=D, num_layers=L, num_heads=H, max_length=T)


def arrays(model, pick=lambda parameter: parameter) -> dict[str, np.ndarray]:
    return {name: pick(parameter).detach().numpy() for name, parameter in model.named_parameters()}


def test_logits(theirs, tokens):
    want = theirs(torch.tensor(tokens, dtype=torch.long)).logits.detach().numpy()
    got, _ = ours.apply({'params': to_lmx(arrays(theirs), L)}, tokens)
    # Relative to the largest logit; float32 sums in another order give 1e-6.
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def test_gradients(theirs, tokens):
    theirs.zero_grad()
    long = torch.tensor(tokens, dtype=torch.long)
    theirs(long, labels=long).loss.backward()
    want = to_lmx(arrays(theirs, lambda parameter: parameter.grad), L)

    def loss(params):
        logits, _ = ours.apply({'params': params}, tokens[:, :-1])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1))

    got = jax.grad(loss)(to_lmx(arrays(theirs), L))

    # Relative to the largest gradient of the parameter; the key bias has none but rounding, since softmax ignores a shift.
    def close(path, got, want):
        scale = np.abs(want).max()
        if 'key' in str(path) and 'bias' in str(path):
            scale = 1.0
        assert np.abs(got - want).max() < 1e-4 * scale, path

    jax.tree_util.tree_map_with_path(close, got, want)


def test_greedy_tokens(theirs, tokens):
    prompt, new = tokens[:, :6], 16
    want = theirs.generate(torch.tensor(prompt, dtype=torch.long), do_sample=False, max_new_tokens=new, pad_token_id=0).numpy()
    logits = theirs(torch.tensor(want)).logits[:, 5:-1].detach().numpy()
    best = np.sort(logits, axis=-1)
    assert (best[..., -1] - best[..., -2]).min() > 1e-3  # no near tie: rounding of 1e-5 cannot change a token
    params = {'params': to_lmx(arrays(theirs), L)}
    got = sample.generate(
        lambda x, cache, segments: ours.apply(params, x, segments=segments, cache=cache),
        ours.init_cache(B, T),
        jnp.array(prompt),
        jnp.array([6, 6]),
        jax.random.key(0),
        max_tokens=new,
        sampling=sample.Sampling(temperature=0),
    )
    np.testing.assert_array_equal(got['tokens'], want[:, 6:])
