"""Attention by other means than XLA's own, behind one table of what each can do: cuDNN's fused attention through
`jax.nn.dot_product_attention`, JAX's Splash attention for TPUs (after Dao et al. 2022, arXiv:2205.14135), and `lmx.nn.ring` on meshes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lmx.nn import attention, ring
from lmx.nn.masks import Before, Both, Causal, Either, Mask, Segments, Window
from lmx.types import Array, BadInput

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Implementation:
    """What one implementation of attention can do. What it is not declared to do is refused before anything runs.

    All take grouped heads, a traced scale and queries and keys of unequal number.

    Attributes:
      run: `attend` without its first argument and with every keyword given.
      platforms: names of JAX backends; () = all.
      dtypes: of queries, keys and values; () = all.
      head_dim: C is a multiple of the first and at most the second; None = any.
      length_multiple: T and S are multiples of it.
      masks: the mask and all masks within it are of these types.
      takes: which it takes of 'bias', 'softcap', 'traced softcap', 'dropout', and 'index' (tokens that stand elsewhere than they lie:
        a cache).
      limit: (T, S, mask, bias) -> None, or what else stands in the way.
    """

    name: str
    run: Callable[..., Array]
    platforms: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    head_dim: tuple[int, int] | None = None
    length_multiple: int = 1
    masks: tuple[type[Mask], ...] = (Mask,)
    takes: frozenset[str] = frozenset()
    limit: Callable[[int, int, Mask | None, Any], str | None] = lambda *_: None


def supported(
    implementation: str | Implementation,
    q_shape: Shape,
    k_shape: Shape,
    dtype: Any,
    mask: Mask | None = None,
    bias: Any = None,
    softcap: Any = None,
    dropout: Any = None,
    platform: str | None = None,
    *,
    q_index: Array | None = None,
    k_index: Array | None = None,
) -> str | None:
    """None where `attend` would run, else the reason in one line, with the fix. Arrays may be shapes.

    Args:
      q_shape, k_shape: (B, T, H, C) and (B, S, K, C).
      platform: 'cpu', 'gpu' (or 'cuda') or 'tpu'; None is the one that JAX runs on.
    """
    if isinstance(implementation, str):
        if implementation not in IMPLEMENTATIONS:
            return f'attention implementation {implementation!r} is unknown; there are {", ".join(IMPLEMENTATIONS)}'
        implementation = IMPLEMENTATIONS[implementation]
    entry = implementation
    platform = jax.default_backend() if platform is None else 'gpu' if platform == 'cuda' else platform
    (_, length, heads, channels), (_, keys, kv_heads, _) = q_shape, k_shape
    dtype = jnp.dtype(dtype).name
    unknown = [type(node).__name__ for node in _nodes(mask) if not isinstance(node, entry.masks)]
    given = {
        'bias': bias is not None,
        'softcap': softcap is not None,
        'traced softcap': softcap is not None and not isinstance(softcap, (int, float)),
        'dropout': dropout is not None,
        'index': _elsewhere(mask, length, keys, q_index, k_index),
    }
    refused = [name for name, present in given.items() if present and name not in entry.takes]
    reason = None
    if entry.platforms and platform not in entry.platforms:
        reason = f'runs on {" or ".join(entry.platforms)}, not on {platform}'
    elif entry.dtypes and dtype not in entry.dtypes:
        reason = f'takes {" or ".join(entry.dtypes)}, not {dtype}: compute in {entry.dtypes[0]}'
    elif heads % kv_heads:
        return f'num_heads {heads} is not divisible by num_kv_heads {kv_heads}; give a divisor'
    elif entry.head_dim is not None and (channels % entry.head_dim[0] or channels > entry.head_dim[1]):
        reason = f'takes a head_dim that is a multiple of {entry.head_dim[0]} up to {entry.head_dim[1]}, not {channels}'
    elif length % entry.length_multiple or keys % entry.length_multiple:
        reason = f'takes lengths that are multiples of {entry.length_multiple}, not {length} queries and {keys} keys: pad them'
    elif unknown:
        reason = f'knows no mask {unknown[0]}'
    elif refused == ['index']:
        reason = f'counts tokens as they lie, and {type(mask).__name__} reads a cache or other indices'
    elif refused:
        reason = f'takes no {refused[0]}'
    else:
        reason = entry.limit(length, keys, mask, bias)
    return None if reason is None else f"attention implementation '{entry.name}' {reason}; or take 'xla', which does all"


def attend(
    implementation: str | Implementation,
    q_BTHC: Array,
    k_BSKC: Array,
    v_BSKC: Array,
    *,
    mask: Mask | None = None,
    q_index: Array | None = None,
    k_index: Array | None = None,
    scale: Any = None,
    bias: Array | None = None,
    softcap: Any = None,
    dropout: Callable[[Array], Array] | None = None,
) -> Array:
    """`lmx.nn.attention.attend`, to rounding, by another implementation: -> [B, T, H, C] in q's dtype.

    Args:
      q_index, k_index: None, or one and the same array [1, T]: self-attention without a cache, where a token's index is its place in
        the row. Others are refused where the mask reads them.

    Raises:
      BadInput: what `supported` says, before anything runs.
    """
    shapes = q_BTHC.shape, k_BSKC.shape, q_BTHC.dtype
    reason = supported(implementation, *shapes, mask, bias, softcap, dropout, q_index=q_index, k_index=k_index)
    if reason is not None:
        raise BadInput(reason)
    entry = IMPLEMENTATIONS[implementation] if isinstance(implementation, str) else implementation
    indices = {'q_index': q_index, 'k_index': k_index}
    return entry.run(q_BTHC, k_BSKC, v_BSKC, mask=mask, **indices, scale=scale, bias=bias, softcap=softcap, dropout=dropout)


def of_the_mesh() -> str:
    """The implementation that the mesh in scope asks for."""
    return 'ring' if ring.devices() > 1 else 'xla'


def cudnn(
    q_BTHC: Array, k_BSKC: Array, v_BSKC: Array, *, mask: Mask | None, scale: Any, bias: Array | None, backend: Any = 'cudnn', **_: Any
) -> Array:
    """Fused attention on NVIDIA GPUs. No [B, H, T, S] is ever stored.

    `Causal` alone, with `Window` or with `Before` costs nothing, as does `Before` alone. All other masks become a dense [B, 1, T, S],
    packed segments among them: JAX opens no other way to cuDNN. A bias is rounded to q's dtype.

    Args:
      backend: what `jax.nn.dot_product_attention` calls its implementation.
    """
    (batch, length), keys = q_BTHC.shape[:2], k_BSKC.shape[1]
    causal, beside, dense = _cudnn_masks(length, keys, mask, bias)
    terms: dict[str, Any] = {'is_causal': causal}
    sees_BT = None
    if bias is not None:
        bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
        terms['bias'] = jnp.broadcast_to(bias, (*bias.shape[:2], length, keys)).astype(q_BTHC.dtype)
    if isinstance(beside, Before):
        length_B = jnp.broadcast_to(jnp.minimum(beside.length_B, keys), (batch,)).astype(jnp.int32)
        terms['key_value_seq_lengths'] = jnp.maximum(length_B, 1)
        sees_BT = (length_B > 0)[:, None]
    elif isinstance(beside, Window):
        terms['local_window_size'] = (beside.size - 1, 0)
    elif mask is not None and dense:
        allowed = mask.dense(jnp.arange(length)[None], jnp.arange(keys)[None])
        terms['mask'] = jnp.broadcast_to(allowed, (*allowed.shape[:2], length, keys))
        sees_BT = jnp.any(terms['mask'], axis=-1)[:, 0]
    q_BTHC = _scaled(q_BTHC, scale)
    return _where(sees_BT, jax.nn.dot_product_attention(q_BTHC, k_BSKC, v_BSKC, scale=1.0, implementation=backend, **terms))


def splash(
    q_BTHC: Array,
    k_BSKC: Array,
    v_BSKC: Array,
    *,
    mask: Mask | None,
    scale: Any,
    softcap: float | None,
    block: int = 512,
    interpret: bool = False,
    **_: Any,
) -> Array:
    """Splash attention on TPUs: neither scores nor a dense mask are stored, and blocks that `Causal` and `Window` rule out are skipped.

    XLA does not partition Pallas kernels: on a mesh, call it within `jax.shard_map`.

    Args:
      block: rows and columns of a block, at most; a power of 2 from 128 on.
      interpret: computes the kernel on any platform, slowly.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as ops  # seconds to import

    (_, length, heads, channels), keys = q_BTHC.shape, k_BSKC.shape[1]
    q_ids, k_ids, sees_BT = _splash_segments(mask, length, keys)
    q_block, k_block = (next(b for b in (block, 256, 128) if b <= block and size % b == 0) for size in (length, keys))
    sizes = ops.BlockSizes(
        block_q=q_block, block_kv=k_block, block_q_dkv=q_block, block_kv_dkv=k_block, block_q_dq=q_block, block_kv_dq=k_block
    )
    band = _band(mask)
    local = ops.FullMask((length, keys)) if band == (None, None) else ops.LocalMask((length, keys), band, 0)
    masks = ops.MultiHeadMask([local] * heads)
    kernel = ops.make_splash_mha_single_device(masks, block_sizes=sizes, attn_logits_soft_cap=softcap, interpret=interpret)
    # A TPU computes 128 channels at once in any case, and zeros change no sum.
    pad = ((0, 0), (0, 0), (0, 0), (0, -channels % 128))
    q, k, v = (jnp.pad(x, pad).swapaxes(1, 2) for x in (_scaled(q_BTHC, scale), k_BSKC, v_BSKC))
    if q_ids is None:
        out_BHTC = jax.vmap(kernel)(q, k, v)
    else:
        batch = q.shape[0]
        ids = ops.SegmentIds(jnp.broadcast_to(q_ids, (batch, length)), jnp.broadcast_to(k_ids, (batch, keys)))
        out_BHTC = jax.vmap(kernel)(q, k, v, ids)
    return _where(sees_BT, out_BHTC.swapaxes(1, 2)[..., :channels])


def _cudnn_masks(length: int, keys: int, mask: Mask | None, bias: Any) -> tuple[bool, Mask | None, bool]:
    """Whether `Causal` is cuDNN's own, what stands beside it and is so too, and whether anything remains to be made dense."""
    parts = _conjuncts(mask)
    causal = length == keys and any(isinstance(part, Causal) for part in parts)
    rest = [part for part in parts if not (causal and isinstance(part, Causal))]
    own = len(rest) == 1 and bias is None and (isinstance(rest[0], Before) or (causal and isinstance(rest[0], Window)))
    return causal, rest[0] if own else None, bool(rest) and not own


def _splash_segments(mask: Mask | None, length: int, keys: int) -> tuple[Array | None, Array | None, Array | None]:
    """Ids of queries and keys that stand for `Segments` and `Before` in the mask, and which queries see a key at all."""
    parts = _conjuncts(mask)
    dynamic = [part for part in parts if isinstance(part, (Segments, Before))]
    if mask is None or not dynamic:
        return None, None, None
    segments = [part for part in dynamic if isinstance(part, Segments)]
    q_index, k_index = jnp.arange(length)[None], jnp.arange(keys)[None]
    q_ids, k_ids = jnp.ones((1, length), jnp.int32), jnp.ones((1, keys), jnp.int32)
    if segments:
        q_ids, k_ids = segments[0].q_ids_BT, segments[0].k_ids_BS
    # A key that nobody sees gets an id that no query has. Padding sees padding in the kernel, and then comes out as zero.
    for part in dynamic:
        if isinstance(part, Before):
            k_ids = jnp.where(part.dense(q_index, k_index)[:, 0, 0], k_ids, -1)
    # XLA fuses this comparison of all pairs with the sum: it is never stored, and costs a C-th of the scores of one head.
    sees_BT = jnp.any(mask.dense(q_index, k_index), axis=-1)[:, 0]
    return q_ids, k_ids, sees_BT


def _splash_limit(length: int, keys: int, mask: Mask | None, bias: Any) -> str | None:
    left, _ = _band(mask)
    if sum(isinstance(part, Segments) for part in _conjuncts(mask)) > 1:
        return 'takes one mask Segments, not more'
    if any(isinstance(part, Window) and not isinstance(part.size, int) for part in _conjuncts(mask)):
        return 'takes windows of one size for all layers'
    if left is not None and length - 1 - left > keys - 1:
        return f'takes no query that stands more than a window of {left + 1} behind the last of {keys} keys'
    return None


def _cudnn_limit(length: int, keys: int, mask: Mask | None, bias: Any) -> str | None:
    dense = bias is not None or _cudnn_masks(length, keys, mask, bias)[2]
    if dense and (length % 2 or keys % 2):
        return f'takes a bias or a dense mask with even lengths only, not {length} queries and {keys} keys: pad them'
    return None


def _ring_limit(length: int, keys: int, mask: Mask | None, bias: Any) -> str | None:
    pieces = ring.pieces(length, keys, mask)
    odd = next((size for size in (length, keys) if size % pieces), None)
    if odd is not None:
        return f'splits a sequence into {pieces} pieces, and {odd} is no multiple of it: pad it, or take a smaller mesh axis context'
    return None


def _conjuncts(mask: Mask | None) -> list[Mask]:
    """The masks that `&` joins."""
    if mask is None:
        return []
    return _conjuncts(mask.a) + _conjuncts(mask.b) if isinstance(mask, Both) else [mask]


def _nodes(mask: Mask | None) -> list[Mask]:
    """The mask and all masks within it."""
    if mask is None:
        return []
    return [mask, *_nodes(mask.a), *_nodes(mask.b)] if isinstance(mask, (Both, Either)) else [mask]


def _band(mask: Mask | None) -> tuple[int | None, int | None]:
    """How far a query sees to its left and to its right by `Causal` and `Window`; None = without limit."""
    left = [part.size - 1 for part in _conjuncts(mask) if isinstance(part, Window) and isinstance(part.size, int)]
    right = left + [0 for part in _conjuncts(mask) if isinstance(part, Causal)]
    return min(left, default=None), min(right, default=None)


def _elsewhere(mask: Mask | None, length: int, keys: int, q_index: Any, k_index: Any) -> bool:
    """Whether the mask reads indices that may be others than 0, 1, 2, ..."""
    if all(isinstance(node, (Segments, Both, Either)) for node in _nodes(mask)):
        return False
    if q_index is None and k_index is None:
        return False
    return not (q_index is k_index and length == keys and q_index.shape[0] == 1)


def _scaled(q_BTHC: Array, scale: Any) -> Array:
    # As the reference does it; so a scale may be traced.
    return q_BTHC * jnp.asarray(q_BTHC.shape[-1] ** -0.5 if scale is None else scale, q_BTHC.dtype)


def _where(sees_BT: Array | None, out_BTHC: Array) -> Array:
    """Zero for queries that see no key; kernels give them an average of all values."""
    return out_BTHC if sees_BT is None else jnp.where(sees_BT[:, :, None, None], out_BTHC, jnp.zeros((), out_BTHC.dtype))


IMPLEMENTATIONS: Mapping[str, Implementation] = {
    entry.name: entry
    for entry in (
        Implementation(name='xla', run=attention.attend, takes=frozenset({'bias', 'softcap', 'traced softcap', 'dropout', 'index'})),
        Implementation(
            name='cudnn',
            run=cudnn,
            platforms=('gpu',),
            dtypes=('bfloat16', 'float16'),
            head_dim=(8, 128),  # 256 from Hopper on
            takes=frozenset({'bias'}),
            limit=_cudnn_limit,
        ),
        Implementation(
            name='tpu',
            run=splash,
            platforms=('tpu',),
            dtypes=('bfloat16', 'float32'),
            head_dim=(8, 256),
            length_multiple=128,
            masks=(Causal, Window, Segments, Before, Both),
            takes=frozenset({'softcap'}),
            limit=_splash_limit,
        ),
        Implementation(name='ring', run=ring.ring, takes=frozenset({'bias', 'softcap', 'traced softcap', 'dropout'}), limit=_ring_limit),
    )
}
"""By name. cuDNN's and the TPU's kernels have not yet run on a GPU or a TPU; the tests prove what can be proved without: numbers, gradients, lowering."""
