"""The sentences of a text."""

from __future__ import annotations

import re

_SENTENCE = re.compile(r'(?<=[.!?])\s+|\n+')


def sentences(text: str) -> list[str]:
    """The sentences of a text: what ends in a full stop, question or exclamation mark, or at a line end."""
    return [part.strip() for part in _SENTENCE.split(text) if part.strip()]
