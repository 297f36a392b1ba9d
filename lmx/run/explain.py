"""`lmx explain` and `lmx diff`: who set a value, and how two configs differ."""

from __future__ import annotations

import inspect
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmx import spec
from lmx.run.config import load
from lmx.train.workdir import read_config


def explain(path: str, config: Mapping[str, Any], key: str, overridden: Sequence[str]) -> str:
    """'KEY = VALUE, set by ...' for a config loaded from `path` ('FILE.py[:ARG]') with these keys overridden.

    Raises:
      BadInput: the key does not exist; the nearest is named.
    """
    value = spec.get(config, key)
    meaning = _meaning(config, value)
    return f'{key} = {value!r}{meaning}, set by {_origin(path, value, key, overridden)}'


def _origin(path: str, value: Any, key: str, overridden: Sequence[str]) -> str:
    if any(key == name or key.startswith(name + '.') for name in overridden):
        return f'the flag --config.{key}'
    name, _, arg = path.partition(':')
    plain = load(name)
    if arg and (not spec.has(plain, key) or spec.get(plain, key) != value):
        return f'the argument {arg!r} of {name}'
    parent, _, last = key.rpartition('.')
    node = spec.get(plain, parent) if parent else plain
    if spec.CALL in node and last != spec.CALL:
        default = inspect.signature(spec.find(node[spec.CALL])).parameters[last].default
        if default is not inspect.Parameter.empty and spec.to_plain(default) == value:
            return f'the default of {node[spec.CALL]}'
    return f'the file {name}'


def _meaning(config: Mapping[str, Any], value: Any) -> str:
    """What a reference to a plain value stands for; a reference to something that must be built is left as it is."""
    if isinstance(value, str) and value.startswith('${') and spec.has(config, value[2:-1]):
        target = spec.get(config, value[2:-1])
        return f' ({target!r})' if not hasattr(target, 'items') else ''
    return ''


def difference(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> str:
    """The values that differ between two config files ('FILE.py:ARG') or runs, a line each."""
    rows = spec.diff(_open(a), _open(b))
    width = max((len(row[0]) for row in rows), default=0)
    return '\n'.join(f'{path:<{width}}  {old!r} -> {new!r}' for path, old, new in rows) or 'no difference'


def _open(path: str | os.PathLike[str]) -> Any:
    return read_config(path) if pathlib.Path(path).is_dir() else load(path)
