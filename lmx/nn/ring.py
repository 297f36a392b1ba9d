"""Attention over sequences that are split over the mesh axis `context`: keys and values travel around the ring of devices while each keeps
its queries and the running softmax (Liu et al. 2023, arXiv:2310.01889). The backward pass sends them around once more, and their gradients
with them, so that no device ever keeps another's.

Under `Causal` the sequence is dealt out so that device i holds the pieces i and 2c - 1 - i of 2c ("zigzag", Llama 3, arXiv:2407.21783,
section 3.3.2): every device then computes the same half of each step's scores, and none that the mask rules out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmx.nn.attention import MASKED, attend, soft_cap
from lmx.nn.dropout import Drawn
from lmx.nn.masks import Both, Causal, Either, Mask, Segments
from lmx.types import Array

AXIS = 'context'


class _Queries(NamedTuple):
    """What a device keeps: [B, T, H, C], where they stand [1, T], a bias [B, T, H, S] against all keys, and the mask with their ids."""

    q: Array
    index: Array
    bias: Array | None
    mask: Mask | None


class _Keys(NamedTuple):
    """What travels."""

    k: Array
    v: Array
    index: Array
    mask: Mask | None


class _Fixed(NamedTuple):
    """What has no gradient: which device this is, the mask with its ids of queries and keys, and the dropout of weights."""

    me: Array
    mask: Mask | None
    dropout: Drawn | None


NOTHING = (0.0, MASKED / 2, 0.0)
"""The softmax of no keys: output, highest score, sum of exponentials."""


def devices() -> int:
    """How many devices share a sequence, by the mesh in scope."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)


def pieces(length: int, keys: int, mask: Mask | None) -> int:
    """What the number of queries and of keys must be a multiple of."""
    count = devices()
    return 2 * count if count > 1 and length == keys and _is_causal(mask) else count


def ring(
    q_BTHC: Array,
    k_BSKC: Array,
    v_BSKC: Array,
    *,
    mask: Mask | None,
    scale: Any,
    bias: Array | None,
    softcap: Any,
    dropout: Drawn | None,
    **_: Any,
) -> Array:
    """`lmx.nn.attention.attend`, to rounding, of queries and keys that stand where their index says; T and S are multiples of `pieces`."""
    if devices() == 1:
        return attend(q_BTHC, k_BSKC, v_BSKC, mask=mask, scale=scale, bias=bias, softcap=softcap, dropout=dropout)
    length, keys = q_BTHC.shape[1], k_BSKC.shape[1]
    zigzag = pieces(length, keys, mask) > devices()
    q_BTHC = q_BTHC * jnp.asarray(q_BTHC.shape[-1] ** -0.5 if scale is None else scale, q_BTHC.dtype)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (*jnp.shape(bias)[:2], length, keys)).astype(jnp.float32).swapaxes(1, 2)
    softcap = None if softcap is None else jnp.asarray(softcap, jnp.float32)

    def local(q: Array, k: Array, v: Array, bias: Array | None, softcap: Array | None, fixed: _Fixed) -> Array:
        fixed = fixed._replace(me=fixed.me[0])
        if not zigzag:
            return _attention(False, q, k, v, bias, softcap, fixed)
        q, k, v, bias, fixed = jax.tree.map(lambda x: _dealt(x, fixed.me) if x.ndim > 1 else x, (q, k, v, bias, fixed))
        return _collected(_attention(True, q, k, v, bias, softcap, fixed), fixed.me)

    # Did the devices' numbers not hang on the queries, JAX would take the mask of all blocks out of a scan over layers, and keep it.
    me, q_BTHC = jax.lax.optimization_barrier((jnp.arange(devices(), dtype=jnp.int32), q_BTHC))
    along, everywhere = PartitionSpec(None, AXIS), PartitionSpec()
    fixed = _Fixed(me, mask, dropout)
    where = jax.tree.map(lambda leaf: along if jnp.ndim(leaf) == 2 else everywhere, fixed)._replace(me=PartitionSpec(AXIS))  # ids: [B, T]
    specs = (along, along, along, along, everywhere, where)
    mapped = jax.shard_map(local, in_specs=specs, out_specs=along, axis_names={AXIS}, check_vma=False)
    return mapped(q_BTHC, k_BSKC, v_BSKC, bias, softcap, fixed)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(zigzag: bool, q: Array, k: Array, v: Array, bias: Array | None, softcap: Array | None, fixed: _Fixed) -> Array:
    """This device's queries against the keys of all: [B, T, H, C]."""
    return _forward(zigzag, q, k, v, bias, softcap, fixed)[0]


def _forward(zigzag: bool, q: Array, k: Array, v: Array, bias: Any, softcap: Any, fixed: _Fixed) -> tuple[Array, Any]:
    queries = _Queries(q, _index(fixed.me, q.shape[1], zigzag), bias, fixed.mask)

    def step(so_far: Any, block: _Keys, source: Array, early: Array | None) -> tuple[Any, _Keys]:
        def meet(queries: _Queries, keys: _Keys, which: int) -> Any:
            """The softmax of a part: (unnormalised output [B, T, H, C], highest score, sum of exponentials [B, T, H])."""
            scores_BHTS = _scores(queries, keys, softcap)
            highest_BHT = jnp.maximum(scores_BHTS.max(axis=-1), MASKED / 2)
            weights_BHTS = jnp.exp(scores_BHTS - highest_BHT[..., None])
            out = _weighted(_dropped(weights_BHTS, fixed, source, which), keys.v)
            return out, highest_BHT.swapaxes(1, 2), weights_BHTS.sum(axis=-1).swapaxes(1, 2)

        return _joined(so_far, _meetings(meet, _joined, NOTHING, queries, block, early)), block

    shape = q.shape[:3]
    start = (jnp.zeros((*shape, v.shape[-1]), jnp.float32), jnp.full(shape, MASKED / 2), jnp.zeros(shape, jnp.float32))
    (out, highest, total), _ = _around(step, start, _Keys(k, v, _index(fixed.me, k.shape[1], zigzag), fixed.mask), fixed.me, zigzag)
    total = jnp.maximum(total, 1e-30)
    out_BTHC = (out / total[..., None]).astype(q.dtype)
    return out_BTHC, (q, k, v, bias, softcap, fixed, out_BTHC, highest + jnp.log(total))


def _backward(zigzag: bool, saved: Any, grad_BTHC: Array) -> tuple[Any, ...]:
    """With the normaliser known, out is a sum over blocks, and that weights are a share of it costs the gradient of their sum."""
    q, k, v, bias, softcap, fixed, out_BTHC, normaliser_BTH = saved
    grad_BTHC = grad_BTHC.astype(jnp.float32)
    share_BTH = -jnp.sum(grad_BTHC * out_BTHC.astype(jnp.float32), axis=-1)
    add = lambda a, b: jax.tree.map(jnp.add, a, b)  # noqa: E731
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)  # noqa: E731
    index = _index(fixed.me, q.shape[1], zigzag)

    def step(so_far: Any, travelling: Any, source: Array, early: Array | None) -> tuple[Any, Any]:
        block, grads = travelling

        def outputs(q: Array, k: Array, v: Array, bias: Any, softcap: Any) -> Any:
            def meet(queries: Any, keys: _Keys, which: int) -> Any:
                queries, normaliser_BTH = queries
                weights_BHTS = jnp.exp(_scores(queries, keys, softcap) - normaliser_BTH.swapaxes(1, 2)[..., None])
                out = _weighted(_dropped(weights_BHTS, fixed, source, which), keys.v)
                return out, weights_BHTS.sum(axis=-1).swapaxes(1, 2)

            queries = (_Queries(q, index, bias, fixed.mask), normaliser_BTH)
            return _meetings(meet, add, (0.0, 0.0), queries, block._replace(k=k, v=v), early)

        _, pull = jax.vjp(outputs, q, block.k, block.v, bias, softcap)
        dq, dk, dv, *others = pull((grad_BTHC, share_BTH))
        return add(so_far, (dq, *others)), (block, add(grads, (dk, dv)))

    block = _Keys(k, v, _index(fixed.me, k.shape[1], zigzag), fixed.mask)
    (dq, dbias, dsoftcap), (_, (dk, dv)) = _around(step, zeros((q, bias, softcap)), (block, zeros((k, v))), fixed.me, zigzag)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dbias, dsoftcap, None


_attention.defvjp(_forward, _backward)


def _around(step: Callable[..., tuple[Any, Any]], so_far: Any, travelling: Any, me: Array, zigzag: bool) -> tuple[Any, Any]:
    """(so_far, travelling) after every block has passed, each back where it began; `step` gets both, whose block it is, and as `_meetings`
    whether that device comes before this one."""
    count = devices()

    def onward(block: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, [(source, (source + 1) % count) for source in range(count)]), block)

    def turn(carry: Any, number: Array) -> tuple[Any, None]:
        so_far, travelling = step(*carry, (me - number) % count, me >= number if zigzag else None)
        return (so_far, onward(travelling)), None

    so_far, travelling = step(so_far, travelling, me, None)
    return jax.lax.scan(turn, (so_far, onward(travelling)), jnp.arange(1, count, dtype=jnp.int32))[0]


def _meetings(meet: Callable[..., Any], join: Callable[..., Any], nothing: Any, queries: Any, keys: Any, early: Array | None) -> Any:
    """What a device's queries make of a block of keys. Of two halves of each, under a causal mask and between different devices, the later
    queries see the earlier keys, and besides either the earlier queries too, or the later queries the later keys: half of the whole.

    No device branches, for what XLA puts into a branch might have to wait for devices that take the other.

    Args:
      meet: (queries, keys, number of the part) -> arrays [B, T, ...] of what they make of them.
      join: adds two such up; `nothing` is what no keys make.
      early: whether the keys are of a device before this one; None = every query meets every key.
    """
    if early is None:
        return meet(queries, keys, 0)

    def half(tree: Any, which: int) -> Any:
        return jax.tree.map(lambda x: jnp.split(x, 2, axis=1)[which] if x.ndim > 1 else x, tree)

    def either(a: Any, b: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(early, a, b), a, b)

    q1, q2, k1, k2 = half(queries, 0), half(queries, 1), half(keys, 0), half(keys, 1)
    always, chosen = meet(q2, k1, 0), meet(either(q1, q2), either(k1, k2), 1)
    halved = either(chosen, nothing), join(always, either(nothing, chosen))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), *halved)


def _joined(a: Any, b: Any) -> Any:
    """The softmax of the keys of both."""
    (a_out, a_highest, a_total), (b_out, b_highest, b_total) = a, b
    highest = jnp.maximum(a_highest, b_highest)
    a_kept, b_kept = jnp.exp(a_highest - highest), jnp.exp(b_highest - highest)
    return a_out * a_kept[..., None] + b_out * b_kept[..., None], highest, a_total * a_kept + b_total * b_kept


def _scores(queries: _Queries, keys: _Keys, softcap: Any) -> Array:
    """[B, H, T, S] float32."""
    q_BTHC, k_BSKC = queries.q, keys.k
    q_BTKMC = q_BTHC.reshape(*q_BTHC.shape[:2], k_BSKC.shape[2], -1, q_BTHC.shape[3])
    scores = jnp.einsum('BTKMC,BSKC->BKMTS', q_BTKMC, k_BSKC, preferred_element_type=jnp.float32)
    scores_BHTS = soft_cap(scores.reshape(q_BTHC.shape[0], -1, *scores.shape[3:]), softcap)
    if queries.bias is not None:
        scores_BHTS += jnp.take(queries.bias, keys.index[0], axis=3).swapaxes(1, 2)
    if queries.mask is not None:
        scores_BHTS = jnp.where(_met(queries.mask, keys.mask).dense(queries.index, keys.index), scores_BHTS, MASKED)
    return scores_BHTS


def _weighted(weights_BHTS: Array, v_BSKC: Array) -> Array:
    """Sums of values, [B, T, H, C] float32."""
    batch, heads, length, keys = weights_BHTS.shape
    weights_BKMTS = weights_BHTS.astype(v_BSKC.dtype).reshape(batch, v_BSKC.shape[2], -1, length, keys)
    out_BTKMC = jnp.einsum('BKMTS,BSKC->BTKMC', weights_BKMTS, v_BSKC, preferred_element_type=jnp.float32)
    return out_BTKMC.reshape(batch, length, heads, -1)


def _dropped(weights_BHTS: Array, fixed: _Fixed, source: Array, which: int) -> Array:
    """After dropout, with numbers of its own for each part of each pair of devices, the same ones in the backward pass."""
    if fixed.dropout is None:
        return weights_BHTS
    return fixed.dropout.fold(2 * (fixed.me * devices() + source) + which)(weights_BHTS)


def _index(device: Array, size: int, zigzag: bool) -> Array:
    """Where the tokens that a device holds stand in the sequence, [1, size] int32."""
    if not zigzag:
        return (device * size + jnp.arange(size, dtype=jnp.int32))[None]
    half = jnp.arange(size // 2, dtype=jnp.int32)
    return jnp.concatenate([device * (size // 2) + half, (2 * devices() - 1 - device) * (size // 2) + half])[None]


def _dealt(x: Array, me: Array) -> Array:
    """The pieces 2i and 2i + 1 that device i holds -> i and 2c - 1 - i. The even pieces go to as many devices as there are, and the odd ones."""
    even, odd = (jax.lax.ppermute(half, AXIS, _ways(first)) for first, half in enumerate(jnp.split(x, 2, axis=1)))
    ordered = me % 2 == 0
    return jnp.concatenate([jnp.where(ordered, even, odd), jnp.where(ordered, odd, even)], axis=1)


def _collected(x_BTHC: Array, me: Array) -> Array:
    """`_dealt`, undone."""
    ordered = me % 2 == 0
    early, late = jnp.split(x_BTHC, 2, axis=1)
    halves = jnp.where(ordered, early, late), jnp.where(ordered, late, early)
    back = [[(there, here) for here, there in _ways(first)] for first in (0, 1)]
    return jnp.concatenate([jax.lax.ppermute(half, AXIS, ways) for half, ways in zip(halves, back)], axis=1)


def _ways(first: int) -> list[tuple[int, int]]:
    """(from, to) of each device's first or second piece, when they are dealt out."""
    count = devices()
    return [(device, min(piece, 2 * count - 1 - piece)) for device, piece in enumerate(range(first, 2 * count, 2))]


def _is_causal(mask: Mask | None) -> bool:
    """Whether no query sees what comes after it, whatever else holds."""
    return isinstance(mask, Causal) or (isinstance(mask, Both) and (_is_causal(mask.a) or _is_causal(mask.b)))


def _met(here: Mask, there: Any) -> Mask:
    """The mask with the queries' ids as they are here and the keys' as they came from `there`."""
    if isinstance(here, (Both, Either)):
        return here.replace(a=_met(here.a, there.a), b=_met(here.b, there.b))
    return Segments(here.q_ids_BT, there.k_ids_BS) if isinstance(here, Segments) else here
