"""Ready sets of sharding rules for `config.rules`: (regex over parameter paths, mesh axes counted from the right of the shape; those before
'...' from the left).

An axis that the mesh lacks splits nothing, so `standard()` serves every mesh: `config.mesh` alone decides. It is the product of ZeRO-3
(Rajbhandari et al. 2020, arXiv:1910.02054) over `fsdp`, Megatron's tensor parallelism (Shoeybi et al. 2019, arXiv:1909.08053) over
`tensor` and expert parallelism (GShard, arXiv:2006.16668) over `expert`; the batch is split over `data` and `fsdp`. `context` splits no
parameter but every sequence, for attention by `lmx.nn.ring`; `stage` splits stacked layers, for `lmx.nn.pipeline`.
"""

from __future__ import annotations

from typing import Any

Rules = tuple[tuple[str, tuple[Any, ...]], ...]

INTO = r'(query|key|value|up|gate)'
"""Products whose results stay apart: whole heads, whole channels of the feed-forward layer."""

STACKED = r'(^|/)(blocks|memory)/.*'
"""Parameters with a leading axis of layers."""

_PRODUCTS = (
    (r'mlp/(up|gate)$', ('expert', 'fsdp', 'tensor')),
    (r'mlp/down$', ('expert', 'tensor', 'fsdp')),
    (rf'{INTO}/kernel$', ('fsdp', 'tensor')),
    (rf'{INTO}/bias$', ('tensor',)),
    (r'(attention/out|mlp/down)/kernel$', ('tensor', 'fsdp')),
)
_OTHERS = (
    (r'relative_bias/embedding$', (None, 'tensor')),
    (r'(^|/)(embed|target_embed|head)/embedding$', ('tensor', 'fsdp')),
    (r'embedding$', (None, 'fsdp')),
)
_REST = ((r'kernel$', ('fsdp', None)), (r'.*', ()))


def standard() -> Rules:
    """Columns of the first product and rows of the second over `tensor`, the other side over `fsdp`; vectors and norms everywhere. Stacked
    layers over `stage`."""
    stacked = tuple((STACKED + regex, ('stage', '...', *axes)) for regex, axes in _PRODUCTS + _REST)
    return ((r'^(a|b)/', ()), *stacked, *_PRODUCTS, *_OTHERS, *_REST)  # a, b: adapters, which are small


def replicated() -> Rules:
    """Every device holds every parameter, whatever the mesh."""
    return ((r'.*', ()),)
