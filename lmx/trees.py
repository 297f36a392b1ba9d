"""Parameter trees by name: paths like `blocks/attention/query/kernel`, rules that match them, sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from lmx.types import BadInput


def path_name(path: Sequence[Any]) -> str:
    """A JAX key path as 'blocks/attention/query/kernel'."""
    return '/'.join(str(getattr(part, 'key', getattr(part, 'name', getattr(part, 'idx', part)))) for part in path)


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """tree_map whose function also gets each leaf's path: function(name, leaf, *leaves of rest)."""
    import jax

    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def names(tree: Any) -> list[str]:
    """The paths of all leaves, in the tree's order."""
    import jax

    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def match(rules: Sequence[tuple[str, Any]], name: str, what: str = 'rule') -> Any:
    """The value of the first rule whose regular expression is found in `name`.

    Raises:
      BadInput: no rule matches; a forgotten parameter is an error, never a silent default.
    """
    for pattern, value in rules:
        if re.search(pattern, name):
            return value
    raise BadInput(f'no {what} matches parameter {name!r}; add one, or a last (".*", ...) for the rest')


def selected(tree: Any, pattern: str | None) -> Any:
    """A tree of booleans: whether each leaf's path contains the regular expression. None or '' selects nothing.

    Raises:
      BadInput: a pattern that selects no leaf at all, which is always a slip.
    """
    if not pattern:
        return map_named(lambda name, leaf: False, tree)
    if not any(re.search(pattern, name) for name in names(tree)):
        raise BadInput(f'pattern {pattern!r} matches no parameter; there are {", ".join(sorted(set(names(tree)))[:6])}, ...')
    return map_named(lambda name, leaf: re.search(pattern, name) is not None, tree)


def size(tree: Any) -> int:
    """The number of elements of all leaves."""
    import math

    import jax

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def bytes_of(tree: Any) -> int:
    """The bytes of all leaves, from shape and dtype alone."""
    import math

    import jax

    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
