"""Which of our parameters is which foreign tensor: one table per family, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lmx.types import BadInput


class Rule(NamedTuple):
    """One of our leaves.

    Attributes:
      ours: its path, such as 'decoder/blocks/attention/query/kernel'.
      theirs: the tensor's name; each '{}' is a number (of a layer, of an expert) that runs over one of our leading axes.
      transposed: theirs is [out, in] where ours is [in, out].
      part, parts: ours is the part-th of so many equal pieces of theirs, along `axis`.
      first: what the first '{}' starts from.
    """

    ours: str
    theirs: str
    transposed: bool = False
    part: int = 0
    parts: int = 1
    axis: int = 0
    first: int = 0

    def names(self, shape: tuple[int, ...]) -> Iterable[tuple[tuple[int, ...], str]]:
        """(index into our leading axes, their name) of every tensor that our leaf of this shape is made of."""
        for index in np.ndindex(*shape[: self.theirs.count('{}')]):
            yield index, self.theirs.format(*((index[0] + self.first, *index[1:]) if index else ()))

    def to_ours(self, tensor: Any) -> np.ndarray:
        piece = np.split(tensor, self.parts, axis=self.axis)[self.part] if self.parts > 1 else tensor
        return piece.T if self.transposed else piece

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of their tensor where our whole leaf has this one."""
        own = list(shape[self.theirs.count('{}') :])
        own = own[::-1] if self.transposed else own
        if self.parts > 1:
            own[self.axis] *= self.parts
        return tuple(own)


def renamed(rules: Iterable[Rule], pattern: str, replacement: str) -> list[Rule]:
    """The rules with their names changed by a regular expression."""
    return [rule._replace(theirs=re.sub(pattern, replacement, rule.theirs)) for rule in rules]


def to_theirs(rules: Iterable[Rule], params: Mapping[str, Any]) -> Iterable[tuple[str, np.ndarray]]:
    """(their name, tensor) of all our leaves by path, one tensor at a time.

    Raises:
      BadInput: a leaf that no rule knows.
    """
    fused: dict[str, list[Rule]] = {}
    for rule in rules:
        fused.setdefault(rule.theirs, []).append(rule)
    unknown = sorted(set(params) - {rule.ours for rule in rules})
    if unknown:
        raise BadInput(
            f'{len(unknown)} parameters have no place in the foreign format ({", ".join(unknown[:3])}); train without what adds them'
        )
    for parts in fused.values():
        parts.sort(key=lambda rule: rule.part)
        for index, name in parts[0].names(np.shape(params[parts[0].ours])):
            pieces = [np.asarray(params[rule.ours][index]) for rule in parts]
            pieces = [piece.T if rule.transposed else piece for rule, piece in zip(parts, pieces)]
            yield name, np.ascontiguousarray(pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=parts[0].axis))


def linear(ours: str, theirs: str, bias: bool = True, **how: Any) -> list[Rule]:
    """A product: PyTorch's Linear keeps [out, in]."""
    rules = [Rule(f'{ours}/kernel', f'{theirs}.weight', transposed=True, **how)]
    return [*rules, Rule(f'{ours}/bias', f'{theirs}.bias', **how)] if bias else rules


def norm(ours: str, theirs: str, bias: bool = True, **how: Any) -> list[Rule]:
    rules = [Rule(f'{ours}/scale', f'{theirs}.weight', **how)]
    return [*rules, Rule(f'{ours}/bias', f'{theirs}.bias', **how)] if bias else rules


def table(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f'{ours}/embedding', f'{theirs}.weight')]
