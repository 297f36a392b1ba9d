"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825)."""

from __future__ import annotations

from typing import Any

from lmx.models.llama import llama
from lmx.nn.decoder import CausalDecoder
from lmx.nn.masks import Window
from lmx.spec import extends


@extends(llama, 'mask')
def mistral(*, window: int | None, **keywords: Any) -> CausalDecoder:
    """LLaMA in which a token sees the last `window` tokens only, itself included; through L layers it still hears of L (window - 1).

    Args:
      window: None = all tokens, as from version 0.2 on.
      keywords: as `lmx.models.llama`.
    """
    return llama(mask=None if window is None else Window(window), **keywords)
