"""Parts and the whole Transformer against `torch.nn`, on the same weights."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from lmx import models
from lmx.interop import huggingface, torch_transformer
from lmx.nn.attention import Attention, Context
from lmx.nn.block import post_norm, pre_norm
from lmx.nn.masks import Causal

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.parity
B, S, T, D, H, V = 2, 7, 5, 16, 4, 23
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)  # float32 sums in another order; outputs are of order 1


@pytest.mark.filterwarnings('ignore:enable_nested_tensor')  # PyTorch on its own choice of a fast path
@pytest.mark.parametrize('residual', [post_norm, pre_norm])
def test_the_transformer_loads_torchs_weights_and_gives_its_outputs(residual):
    torch.manual_seed(0)
    layers = {'num_encoder_layers': 2, 'num_decoder_layers': 3}
    theirs = torch.nn.Transformer(D, H, **layers, dim_feedforward=24, batch_first=True, norm_first=residual is pre_norm).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    sizes = {'vocab_size': V, 'dim': D, 'num_heads': H, 'mlp_dim': 24, 'num_layers': 2, 'num_decoder_layers': 3}
    ours = models.transformer(**sizes, residual=residual, last_norm=True)
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, V, (B, S)), rng.integers(0, V, (B, T))
    segments = np.array([[1] * S, [1] * 4 + [0] * 3])
    shapes = huggingface.shapes_of(ours)
    loaded = torch_transformer.to_ours({name: tensor.numpy() for name, tensor in theirs.state_dict().items()}, 2, 3)
    loaded['embed/embedding'] = rng.normal(size=(V, D)).astype(np.float32)
    assert {path: leaf.shape for path, leaf in loaded.items()} == {path: leaf.shape for path, leaf in shapes.items()}
    params = huggingface.nested(loaded)

    def embedded(ids):  # what our model does before its first layer
        angle = np.arange(ids.shape[1])[:, None] * 10_000.0 ** (-np.arange(0, D, 2) / D)
        table = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(ids.shape[1], D)
        return torch.tensor(loaded['embed/embedding'][ids] * D**0.5 + table, dtype=torch.float32)

    padding = torch.tensor(segments == 0)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(T)
    masks = {'src_key_padding_mask': padding, 'memory_key_padding_mask': padding, 'tgt_mask': causal, 'tgt_is_causal': True}
    want = theirs(embedded(source), embedded(target), **masks).detach().numpy()
    memory = ours.apply({'params': params}, source, segments=segments, method='encode')
    got, _ = ours.apply({'params': params}, target, memory, method='hidden')
    close(got, want)


def test_attention_equals_multihead_attention():
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(D, H, batch_first=True)
    x = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
    weight, bias = (tensor.detach().numpy() for tensor in (theirs.in_proj_weight, theirs.in_proj_bias))
    bias = bias + 0.1
    theirs.in_proj_bias.data += 0.1
    names = ('query', 'key', 'value')
    params = {name: {'kernel': w.T, 'bias': b} for name, w, b in zip(names, np.split(weight, 3), np.split(bias, 3))}
    params['out'] = {'kernel': theirs.out_proj.weight.detach().numpy().T, 'bias': theirs.out_proj.bias.detach().numpy()}
    mask = torch.nn.Transformer.generate_square_subsequent_mask(T)
    want, weights = theirs(*[torch.tensor(x)] * 3, attn_mask=mask, average_attn_weights=False)
    index = jnp.arange(T)[None]
    context = Context(positions_BT=index, index_BT=index, mask=Causal())
    (got, _), sown = Attention(num_heads=H).apply({'params': params}, x, context, mutable=['intermediates'])
    close(got, want.detach().numpy())
    close(sown['intermediates']['weights'][0], weights.detach().numpy())
