"""Text as it is made: what is certain is written at once, and a row ends at a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmx.types import Array


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first stop string, and whether there was one."""
    found = [text.index(stop) for stop in stops if stop in text]
    return (text[: min(found)], True) if found else (text, False)


class Streamer:
    """Sees every token as it is made: writes the text that has become certain, and ends a row at a stop string."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], write: Callable[[int, str], None] | None):
        self.tokenizer, self.stops, self.write = tokenizer, stops, write
        self.ids: list[list[int]] = []
        self.shown: list[int] = []
        self.done: list[bool] = []

    def __call__(self, tokens_B: Array) -> np.ndarray:
        tokens = np.asarray(tokens_B).tolist()
        if not self.ids:
            self.ids, self.shown, self.done = [[] for _ in tokens], [0] * len(tokens), [False] * len(tokens)
        for row, token in enumerate(tokens):
            if not self.done[row]:
                self._add(row, token)
        return np.array(self.done)

    def _add(self, row: int, token: int) -> None:
        if token == self.tokenizer.eos_id:
            self.done[row] = True
        else:
            self.ids[row].append(token)
        text, stopped = cut(self.tokenizer.decode(self.ids[row]), self.stops)
        self.done[row] = self.done[row] or stopped
        # Hold back what may yet change: an unfinished character, or the beginning of a stop string.
        hold = 0 if self.done[row] else max([len(stop) - 1 for stop in self.stops], default=0)
        ready = text[: len(text) - hold].rstrip('\ufffd') if not self.done[row] else text
        if self.write and len(ready) > self.shown[row]:
            self.write(row, ready[self.shown[row] :])
            self.shown[row] = len(ready)

    def finish(self) -> None:
        """Writes what was still held back."""
        for row, ids in enumerate(self.ids):
            text, _ = cut(self.tokenizer.decode(ids), self.stops)
            if self.write and len(text) > self.shown[row]:
                self.write(row, text[self.shown[row] :])
                self.shown[row] = len(text)
