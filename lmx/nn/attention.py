"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2) with grouped heads (Ainslie et al. 2023, arXiv:2305.13245)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lmx.nn import cache as caches
from lmx.nn.dropout import Dropout
from lmx.nn.linear import Init, Linear
from lmx.nn.masks import Mask
from lmx.nn.positions import Positions
from lmx.types import Array, BadInput

MASKED = -1e30  # a score that is surely lost and still finite, so that no gradient meets inf - inf


class Context(struct.PyTreeNode):
    """What every layer is told about the tokens.

    Attributes:
      positions_BT: int32, what positional encodings read.
      index_BT: int32, where a token stands in its row; with a cache, the slot it goes to. What masks read. [1, T] where all rows agree.
      mask: who may attend to whom; None = everyone to everyone.
      bias: [B, H, T, S], added to the scores of self-attention.
      memory_mask: which tokens of the memory cross-attention may see, by their index there.
      layer: int32, which layer of the stack this is.
    """

    positions_BT: Array
    index_BT: Array
    mask: Mask | None = None
    bias: Array | None = None
    memory_mask: Mask | None = None
    layer: Any = 0


def attention_weights(
    q_BTHC: Array,
    k_BSKC: Array,
    *,
    mask: Mask | None = None,
    q_index: Array | None = None,
    k_index: Array | None = None,
    scale: Any = None,
    bias: Array | None = None,
    softcap: float | None = None,
) -> Array:
    """softmax(q k^T scale + bias) over the allowed keys, in float32: [B, H, T, S]. A query that may see no key gets zeros.

    Args:
      k_BSKC: K divides H; query head h attends to key head h // (H / K).
      mask: None allows everything.
      q_index, k_index: [B or 1, T] and [B or 1, S] int32 for the mask; by default 0, 1, 2, ...
      scale: by default 1 / sqrt(C).
      bias: broadcastable to [B, H, T, S], added to the scaled scores.
      softcap: scaled scores s become softcap tanh(s / softcap) (Gemma 2, arXiv:2408.00118, section 2), before the bias.
    """
    (batch, length, heads, channels), (keys, groups) = q_BTHC.shape, k_BSKC.shape[1:3]
    scale = channels**-0.5 if scale is None else scale
    q_BKMC = _grouped(q_BTHC * jnp.asarray(scale, q_BTHC.dtype), groups)
    scores = jnp.einsum('BKMC,BSKC->BKMS', q_BKMC, k_BSKC, preferred_element_type=jnp.float32)
    scores_BHTS = soft_cap(scores.reshape(batch, heads, length, keys), softcap)
    if bias is not None:
        scores_BHTS += bias.astype(jnp.float32)
    if mask is not None:
        q_index = jnp.arange(length)[None] if q_index is None else q_index
        k_index = jnp.arange(keys)[None] if k_index is None else k_index
        scores_BHTS = jnp.where(mask.dense(q_index, k_index), scores_BHTS, MASKED)
    highest = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores_BHTS, axis=-1, keepdims=True), MASKED / 2))
    unnormalised = jnp.exp(scores_BHTS - highest)
    return unnormalised / jnp.maximum(jnp.sum(unnormalised, axis=-1, keepdims=True), 1e-30)


def attend(
    q_BTHC: Array,
    k_BSKC: Array,
    v_BSKC: Array,
    *,
    mask: Mask | None = None,
    q_index: Array | None = None,
    k_index: Array | None = None,
    scale: Any = None,
    bias: Array | None = None,
    softcap: float | None = None,
    dropout: Callable[[Array], Array] | None = None,
) -> Array:
    """-> [B, T, H, C] in q's dtype: the values, averaged by `attention_weights`, after `dropout` of the weights."""
    weights_BHTS = attention_weights(q_BTHC, k_BSKC, mask=mask, q_index=q_index, k_index=k_index, scale=scale, bias=bias, softcap=softcap)
    if dropout is not None:
        weights_BHTS = dropout(weights_BHTS)
    batch, heads, length, keys = weights_BHTS.shape
    groups = v_BSKC.shape[2]
    weights_BKMS = weights_BHTS.astype(v_BSKC.dtype).reshape(batch, groups, heads // groups * length, keys)
    out_BKMC = jnp.einsum('BKMS,BSKC->BKMC', weights_BKMS, v_BSKC)
    return out_BKMC.reshape(batch, heads, length, -1).swapaxes(1, 2).astype(q_BTHC.dtype)


def _grouped(q_BTHC: Array, groups: int) -> Array:
    """[B, T, H, C] -> [B, K, H / K * T, C]: the queries of a group side by side, so that grouped heads are one product."""
    batch, length, heads, channels = q_BTHC.shape
    return q_BTHC.swapaxes(1, 2).reshape(batch, groups, heads // groups * length, channels)


class Attention(nn.Module):
    """Self-attention over x [B, T, D]. Parameters: `query`, `key`, `value`, `out`, all 2-D kernels; `query_norm`, `key_norm`.

    Attributes:
      num_heads, num_kv_heads, head_dim: H, K (default H; divides H) and C (default D / H).
      positions: rotates queries and keys, or adds a bias.
      mask: this layer's own, on top of the context's, such as `Window(4096)`.
      dropout_rate: of the attention weights.
      scale: of the scores; default 1 / sqrt(C).
      softcap: of the scores; see `attention_weights`.
      qk_norm: (name=) -> a module that normalises each head of queries and keys (Henry et al. 2020, arXiv:2010.04245; Qwen3).
      kernel_init, out_init: of the kernels of query, key and value, and of out. query_init: of query, where it is another one.
      implementation: 'xla', or another of `lmx.nn.kernels`, which says what it supports. None: 'ring' where the mesh splits sequences
        (axis `context`), else 'xla'.

    Raises:
      BadInput: heads that do not divide, or a kernel that cannot do what is asked.
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    positions: Positions = Positions()
    mask: Mask | None = None
    use_bias: bool = True
    dropout_rate: Any = None
    scale: Any = None
    softcap: float | None = None
    qk_norm: Callable[..., nn.Module] | None = None
    kernel_init: Init = nn.initializers.lecun_normal()
    out_init: Init = nn.initializers.lecun_normal()
    query_init: Init | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x_BTD: Array, context: Context, cache: caches.LayerCache | None = None) -> tuple[Array, caches.LayerCache | None]:
        heads, kv_heads, channels = head_sizes(x_BTD.shape[-1], self.num_heads, self.num_kv_heads, self.head_dim)

        def project(name: str, heads: int, kernel_init: Init) -> Array:
            return Linear(heads * channels, self.use_bias, kernel_init, name=name)(x_BTD).reshape(*x_BTD.shape[:2], heads, channels)

        q_BTHC = project('query', heads, self.kernel_init if self.query_init is None else self.query_init)
        k_BTKC, v_BTKC = project('key', kv_heads, self.kernel_init), project('value', kv_heads, self.kernel_init)
        if self.qk_norm is not None:
            q_BTHC, k_BTKC = self.qk_norm(name='query_norm')(q_BTHC), self.qk_norm(name='key_norm')(k_BTKC)
        positions = self.positions.at(context.layer)
        q_BTHC = positions.rotate(q_BTHC, context.positions_BT)
        k_BSKC, v_BSKC = positions.rotate(k_BTKC, context.positions_BT), v_BTKC
        k_index = k_positions = context.positions_BT
        if cache is not None:
            cache = caches.write(cache, k_BSKC, v_BSKC, context.index_BT)
            k_BSKC, v_BSKC = (array.astype(x_BTD.dtype) for array in cache)
            k_index = k_positions = jnp.arange(k_BSKC.shape[1], dtype=jnp.int32)[None]
        bias = positions.bias(context.positions_BT, k_positions)
        scores = {
            'mask': _both(context.mask, None if self.mask is None else self.mask.at(context.layer)),
            'q_index': None if cache is None else context.index_BT,
            'k_index': None if cache is None else k_index,
            'scale': self.scale,
            'bias': context.bias if bias is None else bias,
            'softcap': self.softcap,
        }
        # Kernels are for whole sequences; one token against a cache is a small product.
        return _output(self, q_BTHC, k_BSKC, v_BSKC, scores, x_BTD, self.implementation if cache is None else 'xla'), cache


class CrossAttention(nn.Module):
    """Attention from x [B, T, D] to a memory, whose keys and values are `Remember`'s. Parameters: `query`, `out`. Attributes as above."""

    num_heads: int
    head_dim: int | None = None
    use_bias: bool = True
    dropout_rate: Any = None
    scale: Any = None
    kernel_init: Init = nn.initializers.lecun_normal()
    out_init: Init = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x_BTD: Array, context: Context, memory: caches.LayerCache) -> Array:
        heads, _, channels = head_sizes(x_BTD.shape[-1], self.num_heads, None, self.head_dim)
        query = Linear(heads * channels, self.use_bias, self.kernel_init, name='query')
        q_BTHC = query(x_BTD).reshape(*x_BTD.shape[:2], heads, channels)
        scores = {'mask': context.memory_mask, 'scale': self.scale}
        return _output(self, q_BTHC, memory.keys, memory.values, scores, x_BTD)


class Remember(nn.Module):
    """Keys and values of a memory [B, S, D] for one layer of a decoder, [B, S, H, C] each. Parameters: `key`, `value`."""

    num_heads: int
    head_dim: int | None = None
    use_bias: bool = True
    kernel_init: Init = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, states_BSD: Array) -> caches.LayerCache:
        heads, _, channels = head_sizes(states_BSD.shape[-1], self.num_heads, None, self.head_dim)

        def project(name: str) -> Array:
            out = Linear(heads * channels, self.use_bias, self.kernel_init, name=name)(states_BSD)
            return out.reshape(*states_BSD.shape[:2], heads, channels)

        return caches.LayerCache(keys=project('key'), values=project('value'))


def _output(
    module: Any, q_BTHC: Array, k_BSKC: Array, v_BSKC: Array, scores: dict[str, Any], x_BTD: Array, implementation: str | None = None
) -> Array:
    """Attends and projects to [B, T, D]; with the collection 'intermediates' asked for, the weights [B, H, T, S] go there."""
    if module.is_mutable_collection('intermediates'):
        module.sow('intermediates', 'weights', attention_weights(q_BTHC, k_BSKC, **scores))
    from lmx.nn import kernels  # which needs this module

    function: Callable[..., Array] = attend
    implementation = kernels.of_the_mesh() if implementation is None else implementation
    if implementation != 'xla':
        function = partial(kernels.attend, implementation)
    out_BTHC = function(q_BTHC, k_BSKC, v_BSKC, **scores, dropout=Dropout(module.dropout_rate).drawn())
    out = Linear(x_BTD.shape[-1], module.use_bias, module.out_init, name='out')
    return out(out_BTHC.reshape(*x_BTD.shape[:2], -1))


def _both(a: Mask | None, b: Mask | None) -> Mask | None:
    return b if a is None else a if b is None else a & b


def soft_cap(x: Array, cap: float | None) -> Array:
    """cap tanh(x / cap), which stays within +-cap; x itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def head_sizes(dim: int, num_heads: int, num_kv_heads: int | None, head_dim: int | None) -> tuple[int, int, int]:
    """(H, K, C), the defaults filled in: K = H, C = dim / H.

    Raises:
      BadInput: heads that do not divide.
    """
    if head_dim is None and dim % num_heads:
        raise BadInput(f'dim {dim} is not divisible by num_heads {num_heads}; give another num_heads, or head_dim')
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if num_heads % kv_heads:
        raise BadInput(f'num_heads {num_heads} is not divisible by num_kv_heads {kv_heads}; give a divisor')
    return num_heads, kv_heads, dim // num_heads if head_dim is None else head_dim
