"""Word vectors as text files: word2vec's format (Mikolov et al. 2013) and GloVe's (Pennington et al. 2014), and tables that start from them.

One word and its numbers per line, between single blanks; word2vec's has a first line `count dim`, GloVe's has none.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import os
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from lmx.types import BadInput

HEADERS: Mapping[str, Callable[[int, int], str]] = {'word2vec': lambda count, dim: f'{count} {dim}\n', 'glove': lambda count, dim: ''}
"""The first line of each format."""


def save(path: str | os.PathLike[str], words: Sequence[str], matrix: Any, *, style: str = 'word2vec') -> None:
    """Writes float32 vectors so that `load` gives them back to the bit; compressed if the name ends in .gz.

    The file appears whole or not at all.

    Args:
      words: [N], without blanks in them.
      matrix: [N, D].
      style: 'word2vec' or 'glove'.

    Raises:
      BadInput: another style, a word that is empty or holds a blank, more words than vectors or fewer, numbers that are not finite.
    """
    matrix = np.asarray(matrix, np.float32)
    if style not in HEADERS:
        raise BadInput(f'style {style!r} is unknown; there are {", ".join(HEADERS)}')
    if matrix.ndim != 2 or len(words) != len(matrix):
        raise BadInput(f'{len(words)} words do not fit vectors of shape {matrix.shape}; give one row per word')
    for index, word in enumerate(words):
        if not word or any(c in word for c in ' \t\r\n'):
            raise BadInput(
                f'word {index} is {word!r}, and the format has no place for blanks or nothing in a word; leave it out or replace it'
            )
    if not np.isfinite(matrix).all():
        raise BadInput(f'the vector of {words[int(np.argmin(np.isfinite(matrix).all(1)))]!r} is not finite; leave it out')
    target = pathlib.Path(path)
    part = target.with_name(f'{target.name}.{os.getpid()}.part')
    try:
        with _open(target, part, 'wb') as file:
            file.write(HEADERS[style](*matrix.shape).encode())
            for word, row in zip(words, matrix):
                file.write(f'{word} {" ".join(row.astype("U"))}\n'.encode())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], take: Callable[[str], bool] = lambda word: True) -> tuple[list[str], np.ndarray]:
    """Words and vectors of a file of either format, (list [N], float32 [N, D]); .gz is read as what it holds.

    A first line of two whole numbers is a header. A word that stands twice is given twice.

    Args:
      take: which words to keep; millions that nobody asks for need no memory then.

    Raises:
      BadInput: no such file, or a damaged one; a line with too few or too many numbers (a word with a blank in it has too many), with
        something else than a finite number, or that is not UTF-8; fewer or more lines than the header says. File and line are named.
    """
    words: list[str] = []
    rows: list[np.ndarray] = []
    header, dim, number = None, None, 0
    for number, line in _lines(pathlib.Path(path)):
        fields = line.split(' ')
        if number == 1 and len(fields) == 2 and all(field.isdecimal() for field in fields):
            header = int(fields[0])
            dim = int(fields[1])
            continue
        dim = len(fields) - 1 if dim is None else dim
        if len(fields) - 1 != dim or not fields[0] or not dim:
            raise BadInput(
                f'{path}:{number} has {len(fields) - 1} fields behind the word {fields[0][:40]!r}, not {max(dim, 1)}; mend the line'
            )
        if take(fields[0]):
            words.append(fields[0])
            rows.append(_numbers(path, number, fields[1:]))
    count = number - (header is not None)
    if header is not None and count != header:
        raise BadInput(f'{path}:1 says {header} words, but {count} follow; the file is cut off, or its first line is wrong')
    if not count:
        raise BadInput(f'{path} holds no vectors')
    return words, np.array(rows, np.float32).reshape(len(rows), dim or 0)


def _numbers(path: Any, number: int, fields: Sequence[str]) -> np.ndarray:
    try:
        row = np.array([float(field) for field in fields], np.float32)
    except ValueError:
        wrong = next(field for field in fields if not _is_number(field))
        raise BadInput(f'{path}:{number} has {wrong[:40]!r} where a number belongs; mend the line') from None
    if not np.isfinite(row).all():
        raise BadInput(f'{path}:{number} has {fields[int(np.argmin(np.isfinite(row)))]!r}, which is no finite number; mend the line')
    return row


def _is_number(field: str) -> bool:
    with contextlib.suppress(ValueError):
        float(field)
        return True
    return False


def _open(name: pathlib.Path, path: pathlib.Path, mode: Any) -> IO[bytes]:
    return gzip.open(path, mode) if name.suffix == '.gz' else open(path, mode)  # type: ignore[return-value]


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end). Only the newline ends a line: words hold other blanks of Unicode."""
    if not path.is_file():
        raise BadInput(f'there is no file {path}')
    number = 0
    try:
        with _open(path, path, 'rb') as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode().rstrip('\r\n').rstrip(' ')
    except UnicodeDecodeError as error:
        raise BadInput(f'{path}:{number} is not UTF-8 ({error.reason} at byte {error.start}); convert the file') from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInput(f'{path} is damaged behind line {number}: {error}') from None


class Initializer:
    """An initializer (key, shape, dtype) of a table [V, D] whose known rows come from a file; see `initializer`.

    Attributes:
      known_V: bool [vocab_size]; the ids that the file has a vector for.
      rows_VD: float32, 0 where there is none.
      scale: the standard deviation of the others.
    """

    def __init__(self, known_V: np.ndarray, rows_VD: np.ndarray, scale: Any, path: str):
        self.known_V, self.rows_VD, self.scale, self.path = known_V, rows_VD, scale, path

    @property
    def found(self) -> int:
        return int(self.known_V.sum())

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = np.float32) -> Any:
        """The table; rows beyond the tokenizer's vocabulary are drawn.

        Raises:
          BadInput: a table with fewer rows than the tokenizer has ids, or with rows of another size than the file's.
        """
        import jax
        import jax.numpy as jnp

        (count, dim), (length, width) = self.rows_VD.shape, shape
        if width != dim:
            raise BadInput(f'the vectors of {self.path} have {dim} numbers, the table has {width}; set dim={dim}')
        if length < count:
            raise BadInput(f'the table has {length} rows, the tokenizer {count} ids; set vocab_size={count}')
        drawn = self.scale * jax.random.normal(key, (length, dim), dtype)
        known = jnp.asarray(np.flatnonzero(self.known_V))
        return drawn.at[known].set(jnp.asarray(self.rows_VD[self.known_V], dtype))


def initializer(*, path: str, tokenizer: Any, scale: Any = None) -> Initializer:
    """Starts an embedding table from a file of vectors: `spec(models.text_cnn, ..., embed_init=spec(vectors.initializer, path=...,
    tokenizer=ref('tokenizer')))`. How many words were found goes to stderr, once.

    A word is the text of a token that a word may begin with; one that the file has not is looked up in lower case. Of a word that stands
    twice the first vector counts.

    Args:
      path: a file that `load` reads.
      tokenizer: see `lmx.text`; its ids are the table's rows.
      scale: the standard deviation of words that are not in the file (normally distributed); None = that of the numbers found.

    Raises:
      BadInput: as `load`; a file that has none of the words.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise BadInput(f'there is no file {path}')
    known_V, rows_VD = _table(path, file.stat().st_mtime_ns, file.stat().st_size, _Words(tokenizer))
    return Initializer(known_V, rows_VD, float(rows_VD[known_V].std()) if scale is None else scale, path)


class _Words:
    """The word of each id ('' for none), hashed by the tokenizer's content."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __hash__(self) -> int:
        return hash(self.tokenizer.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Words) and self.tokenizer.fingerprint == other.tokenizer.fingerprint

    def __call__(self) -> list[str]:
        whole = self.tokenizer.starts_word & ~self.tokenizer.is_special
        return [self.tokenizer.decode([index]).strip() if whole[index] else '' for index in range(self.tokenizer.vocab_size)]


@functools.lru_cache(maxsize=2)  # a model is assembled for every program that is compiled, the file is read once
def _table(path: str, time: int, size: int, words: _Words) -> tuple[np.ndarray, np.ndarray]:
    wanted = words()
    either = {*wanted, *(word.lower() for word in wanted)} - {''}
    names, matrix = load(path, either.__contains__)
    place = {name: index for index, name in reversed(list(enumerate(names)))}
    rows = [place.get(word, place.get(word.lower())) if word else None for word in wanted]
    known_V = np.array([row is not None for row in rows], bool)
    if not known_V.any():
        raise BadInput(f'{path} has a vector for none of the {len(wanted)} tokens; is it for another language or tokenizer?')
    rows_VD = np.zeros((len(wanted), matrix.shape[1]), np.float32)
    rows_VD[known_V] = matrix[[row for row in rows if row is not None]]
    print(f'vectors: {int(known_V.sum())} of {len(wanted)} tokens found in {path}', file=sys.stderr)
    return known_V, rows_VD
