"""Update rules without a learning rate: gradient -> direction. `lmx.optim.optimizer` adds rate, decay, clipping and masks.

They are optax's own; what is ours is that stacked layers [L, ...] are treated as L layers. Every number may be traced.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

from lmx import trees

STACKED = r'(^|/)blocks/'
"""Parameters whose first axis counts layers."""


def adam(*, b1: Any = 0.9, b2: Any = 0.95, eps: Any = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980); with weight decay it is AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def sgd(*, momentum: Any = None, nesterov: bool = False) -> optax.GradientTransformation:
    """Stochastic gradient descent; momentum as in Sutskever et al. 2013, in PyTorch's form (the rate stands outside)."""
    return optax.identity() if absent(momentum) else optax.trace(decay=momentum, nesterov=nesterov)


def lion(*, b1: Any = 0.9, b2: Any = 0.99) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023, arXiv:2302.06675): the sign of an interpolated momentum."""
    return optax.scale_by_lion(b1=b1, b2=b2)


def adafactor(
    *, decay_rate: Any = 0.8, eps: Any = 1e-30, clip: Any = 1.0, relative: bool = True, min_dim: int = 128, stacked: str = STACKED
) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) without momentum.

    Args:
      clip: largest root mean square of an update (section 6).
      relative: multiplies by the root mean square of the parameter (section 8), so that rates are relative.
      min_dim: matrices with a smaller side keep their whole second moment.
      stacked: parameters whose first axis counts layers; each layer is factored, clipped and scaled alone.
    """
    parts = [optax.scale_by_factored_rms(decay_rate=decay_rate, epsilon=eps, min_dim_size_to_factor=min_dim), optax.clip_by_block_rms(clip)]
    if relative:
        parts.append(optax.scale_by_param_block_rms())
    return _by_layer(optax.chain(*parts), stacked)


def muon(
    *,
    momentum: Any = 0.95,
    nesterov: bool = True,
    steps: int = 5,
    b1: Any = 0.9,
    b2: Any = 0.95,
    eps: Any = 1e-8,
    matrices: str = r'kernel$',
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): orthogonalised momentum for matrices, Adam for all else.

    Args:
      steps: Newton-Schulz iterations.
      b1, b2, eps: of Adam, for embeddings, norms, biases.
      matrices: parameters whose last two axes are a matrix; leading axes count layers.

    An update of a matrix [I, O] is multiplied by sqrt(max(1, O / I)), so that one rate serves all shapes. The momentum is corrected for
    its start at 0, which PyTorch's is not: with `nesterov` the directions of the first few updates differ from PyTorch's a little.

    Raises:
      BadInput (at init): `matrices` matches no parameter.
    """
    numbers = contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    dimensions = lambda params: jax.tree.map(lambda _: numbers, params)  # noqa: E731
    orthogonal = optax.chain(
        contrib.scale_by_muon(beta=momentum, nesterov=nesterov, ns_steps=steps, weight_dimension_numbers=dimensions), _shape_scale()
    )
    return optax.partition({True: orthogonal, False: adam(b1=b1, b2=b2, eps=eps)}, lambda params: named(params, matrices))


def _shape_scale() -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * max(1.0, u.shape[-1] / u.shape[-2]) ** 0.5, updates))


def _by_layer(rule: optax.GradientTransformation, stacked: str) -> optax.GradientTransformation:
    """The rule for each layer of stacked parameters alone, and for all others as they are."""

    def over_layers(function: Callable[..., Any]) -> Callable[..., Any]:
        # vmap wants an array to take the number of layers from; a model may have no stacked parameters, or all of them frozen.
        return lambda tree, *rest: (jax.vmap(function) if jax.tree.leaves(tree) else function)(tree, *rest)

    each = optax.GradientTransformation(over_layers(rule.init), over_layers(rule.update))
    return optax.partition({True: each, False: rule}, lambda params: matching(params, stacked))


def named(params: Any, pattern: str) -> Any:
    """`trees.selected`, but in a tree some of whose parameters are frozen the pattern may mean just those."""
    is_gap = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    partial = any(is_gap(node) for node in jax.tree.leaves(params, is_leaf=is_gap))
    return matching(params, pattern) if partial else trees.selected(params, pattern)


def absent(value: Any) -> bool:
    """Whether a number was switched off before tracing: None or a plain 0."""
    return value is None or (isinstance(value, (int, float)) and value == 0)


def matching(params: Any, pattern: str) -> Any:
    """A tree of booleans, possibly all False: whether each path contains the regular expression."""
    return trees.map_named(lambda name, _: re.search(pattern, name) is not None, params)
