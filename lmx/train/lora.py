"""Low-rank adapters (Hu et al. 2021, "LoRA", arXiv:2106.09685): a small addition is trained, the parameters under it stay as they are.

In a config:

    c.init = spec(init.run, workdir='runs/base')
    c.adapter = spec(lora.lora, rank=8, alpha=16, targets=r'attention/(query|value)/kernel$')

The run then holds, averages, shards and saves the addition alone: parameters `a/PATH` and `b/PATH` for every target, `whole/PATH` for what
is trained whole. Patterns of the optimizer and sharding rules see these paths, so `scale=((r'^b/', 16.0),)` is LoRA+ (Hayou et al. 2024,
arXiv:2402.12354). The base is read through `config.init` at every start and known again by `base.json` in the workdir.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from lmx import rng
from lmx.optim.rules import STACKED
from lmx.train.init import Loaded, flat
from lmx.types import BadInput, Params

Base = Mapping[str, Any]
"""Frozen parameters by path."""


def by_rank(alpha: float, rank: int) -> float:
    """alpha / rank (arXiv:2106.09685, section 4.1)."""
    return alpha / rank


def by_root_of_rank(alpha: float, rank: int) -> float:
    """alpha / sqrt(rank), with which large ranks learn as fast as small ones (Kalajdzievski 2023, "rsLoRA", arXiv:2312.03732)."""
    return alpha / rank**0.5


def lora(
    *,
    rank: int,
    targets: str,
    alpha: float = 16.0,
    scaling: Callable[[float, int], float] = by_rank,
    also_train: str | None = None,
    base_dtype: str = 'float32',
) -> Lora:
    """Effective weight = base + scaling(alpha, rank) a b, for every matrix [..., I, O] of the model that `targets` selects.

    Args:
      rank: columns of a [..., I, rank] and rows of b [..., rank, O].
      targets: regular expression over the model's parameter paths. The last two axes are the matrix; those before them count layers and
        experts, each of which has an a and a b of its own.
      alpha: see `scaling`.
      scaling: `by_rank` or `by_root_of_rank`.
      also_train: regular expression; these parameters (biases, norms, a new head) are trained whole, and are no targets.
      base_dtype: 'bfloat16' halves the memory of the frozen parameters; they are rounded once, the addition and the sum stay float32.

    Raises:
      BadInput: a rank below 1, or a pattern that is no regular expression; later, in `Lora.init`, a pattern that fits nothing.
    """
    if not isinstance(rank, int) or rank < 1:
        raise BadInput(f'adapter.rank {rank!r} must be a whole number of at least 1')
    for pattern in filter(None, (targets, also_train)):
        try:
            re.compile(pattern)
        except re.error as error:
            raise BadInput(f'adapter pattern {pattern!r} is no regular expression ({error}); escape it with a backslash') from None
    return Lora(rank, float(scaling(alpha, rank)), targets, also_train, base_dtype)


@dataclasses.dataclass(frozen=True)
class Lora:
    """What the runner asks of an adapter: how its parameters begin, what they make of the base, and where the base comes from."""

    rank: int
    scale: float
    targets: str
    also_train: str | None
    base_dtype: str

    def init(self, fresh: Params, base: Base, key: Any) -> Params:
        """{'a': tree, 'b': tree, 'whole': tree}, float32: a uniform in +-1 / sqrt(I), as PyTorch begins a Linear, and b zero, so that
        `merge` gives the base.

        Args:
          fresh: the model's own fresh parameters; shapes and paths count, and the values of what is trained whole and not in the base.

        Raises:
          BadInput: a pattern that selects no parameter, or a target that is no matrix.
        """
        leaves = flat(fresh)
        whole = self._found(self.also_train, leaves) if self.also_train else []
        parts: dict[str, dict[str, Any]] = {'a': {}, 'b': {}, 'whole': {name: jnp.copy(base.get(name, leaves[name])) for name in whole}}
        for name in self._found(self.targets, leaves):
            if name in whole:
                continue
            *stack, rows, columns = _matrix(name, leaves[name].shape)
            bound = rows**-0.5
            parts['a'][name] = jax.random.uniform(rng.key(key, name), (*stack, rows, self.rank), jnp.float32, -bound, bound)
            parts['b'][name] = jnp.zeros((*stack, self.rank, columns), jnp.float32)
        return {part: _nested(found) for part, found in parts.items() if found}

    def merge(self, base: Base, trained: Params) -> Params:
        """The model's parameters, float32: base + scale a b, and in place of the base what is trained whole."""
        a, b, whole = (flat(trained.get(part, {})) for part in ('a', 'b', 'whole'))
        merged = {name: leaf.astype('float32') for name, leaf in base.items() if name not in whole}
        merged |= {name: merged[name] + self.scale * (a[name] @ b[name]) for name in a}
        return _nested(merged | whole)

    def freeze(self, load: Callable[[Any], Loaded], shapes: Params) -> Loaded:
        """The base: what `load` (of `config.init`) has for a model, by path.

        Args:
          load: fresh parameters -> Loaded. It is given shapes: only what it loads is kept.
          shapes: the model's parameters as ShapeDtypeStructs with shardings, which the base takes over.

        Raises:
          BadInput: a parameter that would stay random and frozen.
        """

        def stored(name: str, leaf: Any) -> Any:
            dtype = leaf.dtype if self._whole(name) else self.base_dtype
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

        loaded = load(_nested({name: stored(name, leaf) for name, leaf in flat(shapes).items()}))
        random = [name for name in loaded.fresh if not self._whole(name)]
        if random:
            raise BadInput(
                f'{len(random)} parameters ({random[0]}, ...) are not in the source of config.init and would be frozen at random values; '
                'find them with its rename, or train them whole with adapter.also_train'
            )
        found = flat(loaded.params)
        return dataclasses.replace(loaded, params={name: found[name] for name in loaded.loaded})

    def recall(self, workdir: str | os.PathLike[str], load: Callable[[Any], Loaded]) -> Base:
        """The base of a run, without its model. Raises BadInput where it is another one by now; see `recognise`."""
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        path = pathlib.Path(workdir) / 'base.json'
        if not path.exists():
            raise BadInput(f'{path} is missing, which knows what the adapter adds to; copy it from where the run was trained')
        known = json.loads(path.read_text())['parameters']
        shapes = {name: jax.ShapeDtypeStruct(tuple(shape), jnp.float32, sharding=here) for name, shape in known.items()}
        base = self.freeze(load, _nested(shapes)).params
        recognise(workdir, base)
        return base

    def _whole(self, name: str) -> bool:
        return bool(self.also_train and re.search(self.also_train, name))

    def _found(self, pattern: str, names: Mapping[str, Any]) -> list[str]:
        found = [name for name in names if re.search(pattern, name)]
        if not found:
            raise BadInput(f'adapter pattern {pattern!r} matches no parameter; there are {", ".join(sorted(names)[:6])}, ...')
        return found


def recognise(workdir: str | os.PathLike[str], base: Base) -> None:
    """Notes in `WORKDIR/base.json` what a run is trained on top of; once noted, another base is refused.

    Raises:
      BadInput: the parameters differ from the noted ones, by name, shape or value.
    """
    path = pathlib.Path(workdir) / 'base.json'
    found = fingerprint(base)
    if not path.exists():
        if jax.process_index() == 0:
            note = {'fingerprint': found, 'parameters': {name: leaf.shape for name, leaf in base.items()}}
            part = path.with_name('base.json.part')
            part.write_text(json.dumps(note, indent=2) + '\n')
            part.replace(path)
        return
    known = json.loads(path.read_text())['fingerprint']
    if found != known:
        raise BadInput(
            f'{workdir} was trained on top of other parameters ({known}) than config.init gives now ({found}); '
            'name the checkpoint that it read then (--config.init.checkpoint=STEP), or give a new --workdir'
        )


def fingerprint(base: Base) -> str:
    """16 hexadecimal digits of the names, shapes and bits; the layout over devices does not matter."""
    sums = {name: _checksum(leaf) for name, leaf in base.items()}
    rows = [(name, base[name].shape, str(base[name].dtype), int(sums[name])) for name in sorted(base)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@jax.jit
def _checksum(leaf: Any) -> Any:
    """The sum of bits x (2 index + 1) mod 2^32: whole numbers add up to the same in any order, so shards need not be gathered."""
    bits = jax.lax.bitcast_convert_type(leaf, f'uint{8 * leaf.dtype.itemsize}').astype(jnp.uint32)
    index = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        index = index * size + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)


def _matrix(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, if its last two axes are a matrix: in stacked layers the first axis is none of them."""
    if len(shape) < (3 if re.search(STACKED, name) else 2):
        raise BadInput(f'adapter.targets selects {name!r} of shape {shape}, which is no matrix; leave it out, or train it with also_train')
    return shape


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(dict(leaves), sep='/')
