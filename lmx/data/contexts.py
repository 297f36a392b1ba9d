"""Texts that hold an answer, beside a question: long ones in windows that overlap (Devlin et al. 2018, arXiv:1810.04805, section 4.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmx.data import examples
from lmx.types import BadInput, Features


@dataclasses.dataclass(frozen=True)
class Reader:
    """Cuts a context into windows of `max_length` tokens, of which neighbours share `overlap`, each behind the whole question.

    Attributes:
      typed: whether the model is told by types what is question and what context.
    """

    tokenizer: Any
    max_length: int
    overlap: int
    typed: bool

    @property
    def specials(self) -> int:
        """Special tokens of a window."""
        return len(self.tokenizer.join([], [])[0])

    def starts(self, asked: int, length: int) -> range:
        """Where in a context of `length` tokens the windows begin, beside a question of `asked` tokens."""
        room = self.max_length - asked - self.specials
        return range(0, max(length - self.overlap, 1), room - self.overlap)

    def window(self, asked: np.ndarray, ids: np.ndarray, offsets: np.ndarray, start: int) -> Features:
        """The window that begins at context token `start`.

        Args:
          asked: the question's tokens, int32 [Q].
          ids, offsets: the context's tokens, int32 [S], and their characters, int32 [S, 2].

        Returns:
          tokens, segments and, where typed, types, int32 [max_length]; 'offsets' int32 [max_length, 2]; 'inside', 1 on tokens of the
          context, int32 [max_length].
        """
        part = ids[start : start + self.max_length - len(asked) - self.specials]
        tokens, types = self.tokenizer.join(asked, part)
        first = np.flatnonzero(self.tokenizer.join(np.full(len(asked), -1), np.full(len(part), -2))[0] == -2)[:1].sum()
        places = np.zeros((self.max_length, 2), np.int32)
        places[first : first + len(part)] = offsets[start : start + len(part)]
        inside = (np.arange(self.max_length) >= first) & (np.arange(self.max_length) < first + len(part))
        given = examples.tokens_of(tokens, types if self.typed else None, length=self.max_length)
        return {**given, 'offsets': places, 'inside': inside.astype(np.int32)}

    def example(self, asked: np.ndarray, context: str, start: int, answer: tuple[int, int]) -> Features:
        """A window for training: tokens, segments and types as above, and the answer's first and last place, 'start' and 'end' int32 [];
        0, which is [CLS], where the window does not hold all of it.

        Args:
          answer: its characters in the context.
        """
        ids, offsets = self.tokenizer.encode_with_offsets(context)
        made = dict(self.window(asked, ids, offsets, start))
        del made['offsets']  # for prediction only
        held, (first, last) = np.flatnonzero(made.pop('inside')), _touched(offsets, *answer)
        here = start <= first <= last < start + len(held)
        ends = (held[first - start], held[last - start]) if here else (0, 0)
        return {**made, 'start': np.int32(ends[0]), 'end': np.int32(ends[1]), 'weights': np.float32(1)}


def place(answers: Mapping[str, Any], context: str) -> tuple[int, int]:
    """The characters of the first answer, as SQuAD has them, {text: [...], answer_start: [...]}; (0, 0) where there is none.

    Raises:
      BadInput: it is not where it is said to be.
    """
    if not len(answers['text']):
        return 0, 0
    text, start = str(answers['text'][0]), int(answers['answer_start'][0])
    if context[start : start + len(text)] != text:
        where = f'at {found}' if (found := context.find(text)) >= 0 else 'not in the context'
        raise BadInput(f'answer {text[:60]!r} is {where}, and not at answer_start {start}; mend the record')
    return start, start + len(text)


def _touched(offsets: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """The first and last token that touch these characters; (-1, -1) where none does."""
    touched = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
    return (int(touched[0]), int(touched[-1])) if len(touched) else (-1, -1)
