"""`lmx train --dry_run`: what lies where and what is sent, from the compiled step; nothing is trained and nothing is written."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lmx import spec, trees
from lmx.run.parts import Parts
from lmx.types import BadInput

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
_SIZES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 'f32': 4, 's32': 4, 'u32': 4, 'f64': 8, 's64': 8, 'u64': 8}
_ARRAY = re.compile(r'\b(\w+)\[([\d,]*)\]')


def dry_run(config: Any) -> str:
    """The mesh, every parameter's layout, the bytes that a device holds, and the collectives of one step.

    Raises:
      BadInput: as `lmx.run.train`, before its first step.
    """
    parts = Parts(spec.finish(config))
    parts.check()
    state, batch, mesh = parts.abstract_state(), parts.abstract_batch(), parts.mesh
    if parts.config.parallel != 'mesh':
        raise BadInput(f'parallel {parts.config.parallel!r}: a dry run shows meshes; add --config.parallel=mesh')
    compiled = parts.jitted_train_step(lower=True)(state, batch, parts.values).compile()
    axes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
    rows = [('parameter', 'shape', 'layout', 'per device')]
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        rows.append((trees.path_name(path), str(leaf.shape), _spec(leaf), size(held(leaf))))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f'mesh {axes}: {mesh.size} {mesh.devices.flat[0].device_kind} device(s)', '']
    lines += ['  '.join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]) for row in rows]
    memory = compiled.memory_analysis()
    lines += [
        '',
        f'a device holds {size(_held(state.params))} of parameters, {size(_held(state.opt_state))} of optimizer state, '
        f'{size(_held(batch))} of the batch, and at most {size(memory.temp_size_in_bytes)} of temporaries in a step',
        '',
    ]
    found = collectives(compiled.as_text())
    lines += [f'a step has {count} {what}, {size(sent)} in all' for what, (count, sent) in found.items()]
    return '\n'.join(lines if found else [*lines, 'a step sends nothing'])


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """{operation: (how often, bytes of the results)} of a compiled program's text; what stands in a loop of known length counts as often."""
    bodies: dict[str, list[str]] = {}
    entry, name = '', ''
    for line in text.splitlines():
        if line.endswith('{') and (opened := re.match(r'(ENTRY )?%?([\w.\-]+) \(', line)):
            name = opened[2]
            entry = name if opened[1] else entry
            bodies[name] = []
        elif line.startswith('  '):
            bodies.setdefault(name, []).append(line)
    total: dict[str, tuple[int, int]] = {}
    _walk(entry, bodies, 1, total)
    return dict(sorted(total.items()))


def _walk(name: str, bodies: Mapping[str, list[str]], times: int, total: dict[str, tuple[int, int]]) -> None:
    for line in bodies.get(name, ()):
        operation = re.search(rf' ({"|".join(COLLECTIVES)})(-start)?\(', line)
        if operation:
            arrays = [_bytes(kind, dims) for kind, dims in _ARRAY.findall(line[: operation.start()])]
            count, sent = total.get(operation[1], (0, 0))
            total[operation[1]] = (count + times, sent + times * (max(arrays) if operation[2] else sum(arrays)))
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        for called in re.findall(r'(?:body|calls|true_computation|false_computation)=%?([\w.\-]+)', line):
            _walk(called, bodies, times * (int(trips[1]) if trips and 'body=' in line else 1), total)
        for several in re.findall(r'branch_computations=\{([^}]*)\}', line):
            for called in several.split(','):
                _walk(called.strip().lstrip('%'), bodies, times, total)


def _bytes(kind: str, dims: str) -> int:
    return _SIZES.get(kind, 4) * math.prod(int(size) for size in dims.split(',') if size)


def held(leaf: Any) -> int:
    """The bytes of an array's part on one device."""
    shape = leaf.sharding.shard_shape(leaf.shape)
    wide = np.dtype(leaf.dtype).itemsize if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else 8
    return math.prod(shape) * wide


def _held(tree: Any) -> int:
    return sum(held(leaf) for leaf in jax.tree.leaves(tree))


def _spec(leaf: Any) -> str:
    names = ['x'.join(axis) if isinstance(axis, tuple) else axis or '-' for axis in leaf.sharding.spec]
    return ' '.join(names) if collections.Counter(names).keys() - {'-'} else 'everywhere'


def size(count: float) -> str:
    """Bytes for a reader: '1.5 MB'."""
    for unit in ('B', 'kB', 'MB', 'GB', 'TB'):
        if count < 1000 or unit == 'TB':
            return f'{count:.0f} {unit}' if unit == 'B' else f'{count:.3g} {unit}'
        count /= 1000
    raise AssertionError
