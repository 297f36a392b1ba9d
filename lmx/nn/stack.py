"""Layers are always stacked: every parameter of a block has a leading axis [L, ...], on every backend and for every remat policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from lmx.nn.attention import Context
from lmx.nn.cache import LayerCache
from lmx.types import Array, BadInput

POLICIES: Mapping[str, Any] = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass finds saved within a layer: nothing, or the results of products with weights."""


def scan(
    block: nn.Module, x_BTD: Array, context: Context, cache: LayerCache | None = None, *, num_layers: int, remat: str | None = None
) -> tuple[Array, LayerCache | None]:
    """x through `num_layers` layers of the shape of `block`, each with parameters, dropout and a cache [L, ...] of its own.

    Args:
      remat: None keeps every intermediate for the backward pass; else a key of `POLICIES`.

    Raises:
      BadInput: an unknown remat policy.
    """

    def layer(block: nn.Module, x_BTD: Array, context: Context, cache: LayerCache | None) -> tuple[Array, LayerCache | None]:
        return block(x_BTD, context, cache)

    if remat is not None:
        if remat not in POLICIES:
            raise BadInput(f'remat {remat!r} is unknown; there are None, {", ".join(map(repr, POLICIES))}')
        layer = nn.remat(layer, policy=POLICIES[remat], prevent_cse=False)
    layers = nn.scan(
        layer,
        variable_axes={'params': 0, 'losses': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=(nn.broadcast, 0),
        out_axes=0,
        length=num_layers,
        # A loop costs XLA's CPU backend a third of its speed; accelerators gain compile time and memory from it.
        unroll=num_layers if jax.default_backend() == 'cpu' else 1,
    )
    return layers(block, x_BTD, context, cache)
