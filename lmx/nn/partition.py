"""The one place where a model says how its activations lie on a mesh: the residual stream and the scores of the vocabulary.

Everything else follows from the parameters' layouts. Without a mesh in scope (`jax.set_mesh`), or where an axis does not divide, nothing
is said.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from lmx.types import Array

DATA_AXES = ('data', 'fsdp')
"""The mesh axes that share the rows of a batch."""


def rows(x: Array) -> Array:
    """[B, ...] or [B, T, D]: rows over the data axes, T over `context`. Vectors that were looked up are told so, else the whole table would
    be gathered for them."""
    return _constrained(x, DATA_AXES, *('context',) * (x.ndim > 2))


def table(embedding: Array) -> Array:
    """[V, D], where it is used: the vocabulary over `tensor`, vectors whole."""
    return _constrained(embedding, 'tensor')


def residual(x_BTD: Array) -> Array:
    """Rows over the data axes, positions over `context` and, for norms and dropout, over `tensor` (Korthikanti et al. 2022, arXiv:2205.05198)."""
    return _constrained(x_BTD, DATA_AXES, *(('context', 'tensor'),) * (x_BTD.ndim > 2))


def scores(x: Array) -> Array:
    """[B, ..., V]: rows over the data axes, the vocabulary over `tensor`, so that no device ever holds all scores of its rows; the first axis
    between them, positions, over `context`."""
    return _constrained(x, DATA_AXES, *('context', *(None,) * (x.ndim - 3))[: x.ndim - 2], 'tensor')


def splits_positions() -> bool:
    """Whether the mesh in scope splits sequences through the whole model, over `context`."""
    return dict(jax.sharding.get_abstract_mesh().shape).get('context', 1) > 1


def _constrained(x: Array, *axes: Any) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {name: mesh.shape[name] for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto}
    if math.prod(sizes.values()) == 1:
        return x
    named = [tuple(name for name in ((axis,) if isinstance(axis, str) else axis or ()) if name in sizes) for axis in axes]
    fitting = [names if size % math.prod(sizes[name] for name in names) == 0 else () for size, names in zip(x.shape, named)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(names or None for names in fitting)))
