"""Qwen3 (Yang et al. 2025, arXiv:2505.09388)."""

from __future__ import annotations

from functools import partial
from typing import Any

from lmx.models.llama import llama
from lmx.nn.decoder import CausalDecoder
from lmx.nn.norms import RMSNorm
from lmx.spec import extends


@extends(llama, 'qk_norm')
def qwen3(*, head_dim: int = 128, eps: float = 1e-6, **keywords: Any) -> CausalDecoder:
    """LLaMA whose queries and keys are normalised, head by head, before they are rotated.

    Args:
      head_dim: C, independent of dim / num_heads.
      eps: of all norms.
      keywords: as `lmx.models.llama`.
    """
    return llama(head_dim=head_dim, eps=eps, qk_norm=partial(RMSNorm, eps=eps), **keywords)
