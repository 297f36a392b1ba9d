"""Machine translation (Sutskever et al. 2014, arXiv:1409.3215; Vaswani et al. 2017, arXiv:1706.03762)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lmx import metrics
from lmx.spec import extends
from lmx.tasks.text_to_text import text_to_text
from lmx.types import Task


@extends(text_to_text)
def translation(
    *,
    beam_size: int = 4,
    metric: Callable[[Sequence[str], Sequence[str]], Any] | None = metrics.bleu_and_chrf,
    **keywords: Any,
) -> Task:
    """`text_to_text` of {source, target}, decoded by beam search and scored by sacreBLEU."""
    return text_to_text(beam_size=beam_size, metric=metric, **keywords)
