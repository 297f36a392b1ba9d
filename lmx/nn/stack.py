"""Layers are always stacked: every parameter of a block has a leading axis [L, ...], on every backend and for every remat policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmx.nn import partition, pipeline
from lmx.nn.attention import Context
from lmx.nn.cache import Cache, LayerCache, Memory
from lmx.nn.dropout import Dropout
from lmx.nn.embed import Embed
from lmx.nn.linear import Init
from lmx.nn.masks import Before, Mask, Segments
from lmx.nn.positions import Positions, within_segments
from lmx.types import Array, BadInput

POLICIES: Mapping[str, Any] = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass finds saved within a layer: nothing, or the results of products with weights."""

COLLECTIONS = {'params': 0, 'losses': 0, 'intermediates': 0}


class Stack(nn.Module):
    """Vectors of tokens -> vectors of tokens in their context: positions, `num_layers` stacked blocks, a last norm.

    With a cache every row is one sequence: `segments` then only tells padding (0) from tokens, and padding, wherever it stands,
    neither enters the cache nor counts.

    Attributes:
      block: (name=) -> a module (x, context, layer cache, layer memory) -> (x, layer cache); see `lmx.nn.block`.
      num_layers: L, the first block included where it is another one.
      mask: who may attend to whom, on top of segments: `Causal()` in decoders, None in encoders.
      positions: adds to the embeddings, if it has something to add. The blocks get the same value from whoever assembles.
      relative_bias: (name=) -> a module (query positions, key positions) -> [B, H, T, S], for the self-attention of all layers.
      num_types: rows of a table of token types; 0 = none.
      embed_norm, norm: (name=) -> a norm of the embeddings, and of the output; None = none.
      first_block: (name=) -> the first block, where it differs in shape from the others. Takes no cache.
      dropout_rate, output_dropout_rate: of the embeddings, and behind the last norm.
      remat: None keeps every intermediate for the backward pass; else a key of `POLICIES`.
    """

    block: Callable[..., nn.Module]
    num_layers: int
    mask: Mask | None = None
    positions: Positions = Positions()
    relative_bias: Callable[..., nn.Module] | None = None
    num_types: int = 0
    embed_norm: Callable[..., nn.Module] | None = None
    norm: Callable[..., nn.Module] | None = None
    first_block: Callable[..., nn.Module] | None = None
    dropout_rate: Any = None
    output_dropout_rate: Any = None
    remat: str | None = None
    embed_init: Init = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        *,
        segments: Array | None = None,
        positions: Array | None = None,
        types: Array | None = None,
        prefix: Array | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> tuple[Array, Cache | None]:
        """-> (x_BTD, the cache with the new tokens).

        Args:
          prefix: int32 [B], tokens at the start of each row that every token of the row may see (prefix language models).

        Raises:
          BadInput: more tokens than the positions allow.
        """
        check_length(self.positions, x_BTD.shape[1], 'the input has {} tokens')
        if self.num_layers < 1:
            raise BadInput(f'num_layers {self.num_layers} is below 1')
        context, cache = self._context(x_BTD, segments, positions, prefix, cache, memory)
        x_BTD = self._embedded(x_BTD, context, types)
        self.sow('intermediates', 'embedded', x_BTD)
        first = 0
        if self.first_block is not None:
            x_BTD, _ = self.first_block(name='first_block')(x_BTD, context)
            first = 1
        if self.num_layers > first:
            x_BTD, layers = scan(
                self.block(name='blocks'),
                x_BTD,
                context,
                None if cache is None else cache.layers,
                None if memory is None else memory.layers,
                num_layers=self.num_layers - first,
                first=first,
                remat=self.remat,
            )
            cache = None if cache is None else cache.replace(layers=layers)
        if self.norm is not None:
            x_BTD = self.norm(name='final_norm')(x_BTD)
        return Dropout(self.output_dropout_rate, name='output_dropout')(x_BTD), cache

    def _context(
        self,
        x_BTD: Array,
        segments: Array | None,
        positions: Array | None,
        prefix: Array | None,
        cache: Cache | None,
        memory: Memory | None,
    ) -> tuple[Context, Cache | None]:
        batch, length = x_BTD.shape[:2]
        index_BT, mask, key_positions = jnp.arange(length, dtype=jnp.int32)[None], self.mask, None
        if prefix is not None and mask is not None:
            mask = mask | Before(prefix)
        if cache is not None:
            real_BT = jnp.ones((batch, length), bool) if segments is None else segments != 0
            index_BT = cache.slots(real_BT)
            cache = cache.replace(length_B=cache.length_B + jnp.sum(real_BT, axis=1, dtype=jnp.int32))
            positions = jnp.minimum(index_BT, cache.max_length - 1) if positions is None else positions
            key_positions = jnp.arange(cache.max_length, dtype=jnp.int32)[None]
        elif segments is not None:
            alike = Segments(segments, segments)
            mask = alike if mask is None else mask & alike
            positions = within_segments(segments) if positions is None else positions
        positions = index_BT if positions is None else positions
        bias = None
        if self.relative_bias is not None:
            bias = self.relative_bias(name='relative_bias')(positions, positions if key_positions is None else key_positions)
        memory_mask = None
        if memory is not None and memory.segments_BS is not None:
            memory_mask = Segments(jnp.ones((batch, length), jnp.int32) if segments is None else segments, memory.segments_BS)
        return Context(positions_BT=positions, index_BT=index_BT, mask=mask, bias=bias, memory_mask=memory_mask), cache

    def _embedded(self, x_BTD: Array, context: Context, types: Array | None) -> Array:
        dim = x_BTD.shape[-1]
        if self.num_types:
            table = Embed(self.num_types, dim, x_BTD.dtype, self.embed_init, name='type_embed')
            x_BTD = x_BTD + table(jnp.zeros(x_BTD.shape[:2], jnp.int32) if types is None else types)
        elif types is not None:
            raise BadInput('this model has no token types; leave `types` out')
        if self.positions.table_length is not None:
            table = Embed(self.positions.table_length, dim, x_BTD.dtype, self.embed_init, name='position_embed')
            x_BTD = x_BTD + table(self.positions.rows(context.positions_BT))
        added_BTD = self.positions.added(context.positions_BT, dim)
        if added_BTD is not None:
            x_BTD = x_BTD + added_BTD.astype(x_BTD.dtype)
        if self.embed_norm is not None:
            x_BTD = self.embed_norm(name='embed_norm')(x_BTD)
        return Dropout(self.dropout_rate, name='embed_dropout')(x_BTD)


def check_length(positions: Positions, length: int, what: str) -> None:
    """Raises BadInput where `positions` cannot tell so many tokens apart; `what` has a {} for their number."""
    if positions.longest is not None and length > positions.longest:
        raise BadInput(f'{what.format(length)}, the limit is max_length {positions.longest}; shorten it, or train with a larger max_length')


def scan(
    block: nn.Module,
    x_BTD: Array,
    context: Context,
    cache: LayerCache | None = None,
    memory: LayerCache | None = None,
    *,
    num_layers: int,
    first: int = 0,
    remat: str | None = None,
) -> tuple[Array, LayerCache | None]:
    """x through `num_layers` layers of the shape of `block`, each with parameters, dropout, a cache and a memory [L, ...] of its own.

    On a mesh with stages by `lmx.nn.pipeline`, except where parameters are made, and where a cache or intermediates are to be kept.

    Args:
      first: the index of the first of them.
      remat: see `Stack`.

    Raises:
      BadInput: an unknown remat policy.
    """
    if remat is not None and remat not in POLICIES:
        raise BadInput(f'remat {remat!r} is unknown; there are None, {", ".join(map(repr, POLICIES))}')
    schedule = pipeline.current()
    if schedule and cache is None and not block.is_initializing() and not block.is_mutable_collection('intermediates'):
        return _pipelined(block, x_BTD, context, memory, jnp.arange(first, first + num_layers, dtype=jnp.int32), remat, schedule), None

    def layer(block: nn.Module, x_BTD: Array, context: Context, index: Array, cache: Any, memory: Any) -> tuple[Array, LayerCache | None]:
        x_BTD, cache = block(partition.residual(x_BTD), context.replace(layer=index), cache, memory)
        return partition.residual(x_BTD), cache

    if remat is not None:
        layer = nn.remat(layer, policy=POLICIES[remat], prevent_cse=False)
    layers = nn.scan(
        layer,
        variable_axes=COLLECTIONS,
        split_rngs={'params': True, 'dropout': True},
        in_axes=(nn.broadcast, 0, 0, 0),
        out_axes=0,
        length=num_layers,
        # A loop costs XLA's CPU backend a third of its speed; accelerators gain compile time and memory from it.
        unroll=num_layers if jax.default_backend() == 'cpu' else 1,
    )
    return layers(block, x_BTD, context, jnp.arange(first, first + num_layers, dtype=jnp.int32), cache, memory)


def _pipelined(
    block: nn.Module,
    x_BTD: Array,
    context: Context,
    memory: LayerCache | None,
    index_L: Array,
    remat: str | None,
    schedule: pipeline.Schedule,
) -> Array:
    """`scan` in stages. What layers sow is summed over layers, as whoever reads it does."""
    pure = block.clone(parent=None)
    key = block.make_rng('dropout') if block.has_rng('dropout') else None

    def layer(own: Any, x_BTD: Array, shared: Any, memory: Any, microbatch: Array) -> tuple[Array, Any]:
        (params, index), (context, key) = own, shared
        rngs = None if key is None else {'dropout': jax.random.fold_in(jax.random.fold_in(key, index), microbatch)}
        call = (partition.residual(x_BTD), context.replace(layer=index), None, memory)
        (x_BTD, _), kept = pure.apply({'params': params}, *call, rngs=rngs, mutable=['losses'])
        return partition.residual(x_BTD), kept.get('losses', {})

    if remat is not None:
        layer = jax.checkpoint(layer, policy=POLICIES[remat], prevent_cse=False)
    shared = (context.replace(layer=jnp.zeros((), jnp.int32)), key)
    x_BTD, sown = pipeline.pipelined(layer, (block.variables['params'], index_L), x_BTD, shared, memory, schedule)
    for name, losses in sown.items() if block.is_mutable_collection('losses') else ():
        block.put_variable('losses', name, losses)
    return x_BTD


def remember(module: nn.Module, states_BSD: Array, *, num_layers: int) -> LayerCache:
    """What each of `num_layers` decoder layers reads of a memory, [L, B, S, H, C]; every layer has parameters of its own."""
    each = nn.vmap(
        lambda module, states_BSD: module(states_BSD),
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=None,
        axis_size=num_layers,
    )
    return each(module, states_BSD)
