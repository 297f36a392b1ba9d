"""Named random streams: one seed, a name and some integers give a key, in JAX or in numpy."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jax


def key(root: jax.Array, name: str, *numbers: Any) -> jax.Array:
    """The key of stream `name` at `numbers` (a step, a microbatch), derived from `root` by folding in; numbers may be traced."""
    import jax

    out = jax.random.fold_in(root, zlib.crc32(name.encode()))
    for number in numbers:
        out = jax.random.fold_in(out, number)
    return out


def numpy_rng(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """The numpy generator of stream `name` at `numbers` (an epoch, an index): the same on every machine and process."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode()), *numbers])))
