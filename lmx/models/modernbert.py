"""ModernBERT (Warner et al. 2024, arXiv:2412.13663)."""

from __future__ import annotations

from functools import partial
from typing import Any

from flax import linen as nn

from lmx.nn.attention import Attention, head_sizes
from lmx.nn.block import Block
from lmx.nn.encoder import HeadedEncoder
from lmx.nn.heads import Classifier, Head, MaskedLm, PerToken, Transform, filled
from lmx.nn.masks import Window
from lmx.nn.mlp import GatedMlp, gelu
from lmx.nn.norms import LayerNorm
from lmx.nn.positions import Rotary
from lmx.nn.stack import Stack
from lmx.types import Array


class Unchanged(nn.Module):
    """x -> x, where others have a norm."""

    def __call__(self, x: Array) -> Array:
        return x


def modernbert(
    *,
    vocab_size: int,
    dim: int,
    num_layers: int,
    num_heads: int,
    mlp_dim: int,
    window: int = 128,
    global_every: int = 3,
    global_base: float = 160_000.0,
    local_base: float = 10_000.0,
    head: Head | None = None,
    eps: float = 1e-5,
    dropout_rate: Any = 0.0,
    remat: str | None = None,
    dtype: str = 'float32',
) -> HeadedEncoder:
    """Pre-norm encoder with rotary positions, GeGLU and no biases; one layer of `global_every` sees all, the others their surroundings.

    The first layer's attention has no norm, since the embeddings have just been normalised.

    Args:
      window: tokens that local layers see, half of them on either side.
      global_base, local_base: of the rotary positions in global and in local layers.
      head: see `lmx.nn.heads`; `masked_lm()`, `classifier(...)` and `per_token(...)` get ModernBERT's transform.
      dropout_rate: of embeddings, attention weights, hidden channels and residual branches; the paper's pretraining has little or none.
      eps, remat, dtype: as `lmx.models.bert`.

    Raises:
      BadInput: heads that do not divide.
    """
    head_sizes(dim, num_heads, None, None)
    everywhere = [layer % global_every == 0 for layer in range(num_layers)]
    weights = nn.initializers.normal(0.02)
    inits = {'kernel_init': weights, 'out_init': weights}
    attention = partial(
        Attention,
        num_heads=num_heads,
        positions=Rotary(tuple(global_base if wide else local_base for wide in everywhere)),
        mask=Window(tuple(None if wide else window // 2 + 1 for wide in everywhere)),
        use_bias=False,
        dropout_rate=dropout_rate,
        **inits,
    )
    norm = partial(LayerNorm, eps=eps, use_bias=False)
    mlp = partial(GatedMlp, mlp_dim=mlp_dim, activation=gelu, dropout_rate=dropout_rate, **inits)
    block = partial(Block, attention=attention, mlp=mlp, norm=norm, dropout_rate=dropout_rate)

    def norm_but_of_attention(name: str) -> nn.Module:
        return Unchanged(name=name) if name == 'attention_norm' else norm(name=name)

    stack = partial(
        Stack,
        block=block,
        num_layers=num_layers,
        embed_norm=norm,
        norm=norm,
        first_block=partial(block, norm=norm_but_of_attention),
        dropout_rate=dropout_rate,
        remat=remat,
    )
    transform = {'transform': partial(Transform, activation=gelu, norm=norm, use_bias=False)}
    fillings = {MaskedLm: transform, Classifier: transform, PerToken: transform}
    return HeadedEncoder(vocab_size=vocab_size, dim=dim, stack=stack, head=filled(head, fillings), dtype=dtype)
