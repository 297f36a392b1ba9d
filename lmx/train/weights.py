"""Parameters without a training state, in one safetensors file: what an imported model's folder holds in place of checkpoints."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from lmx.types import BadInput

FILE = 'params.safetensors'


def write(
    path: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    make: Callable[[str], np.ndarray],
    progress: Callable[..., Iterable[str]] = iter,
) -> None:
    """Writes float32 leaves one after the other, so that no two of them are in memory; the file appears whole or not at all.

    Args:
      shapes: by parameter path.
      make: path -> the leaf.
      progress: wraps the list of paths, for a bar.
    """
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [start, end]}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    part = path.with_name(path.name + '.part')
    with open(part, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for name in progress(list(shapes)):
            leaf = np.ascontiguousarray(make(name), np.float32)
            assert leaf.shape == tuple(shapes[name]), name
            file.write(memoryview(leaf).cast('B'))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read(path: pathlib.Path) -> dict[str, Any]:
    """The parameters as a nested dict of arrays.

    Raises:
      BadInput: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='numpy') as file:
            return traverse_util.unflatten_dict({tuple(name.split('/')): file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except SafetensorError as error:
        raise BadInput(f'{path} is damaged ({error}); import the model again') from None


def only(which: str, known: Sequence[str] = ('last', '0')) -> None:
    """Raises BadInput for a checkpoint that such a folder has not."""
    if which not in known:
        raise BadInput(f'an imported model has no checkpoint {which!r}; use last')
