"""Cleaning: steps from MapDataset to MapDataset. Filters find what they keep once, so that what remains is random access of known length."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from lmx import rng
from lmx.text.tokenizers import text_of
from lmx.types import BadInput, Record

Step = Callable[[Any], Any]


def apply(*, source: Any, steps: Sequence[Step]) -> Any:
    """The source after the steps, in their order; this is what a config names."""
    for step in steps:
        source = step(source)
    return source


def normalize(*, form: str = 'NFC', field: str = 'text') -> Step:
    """Unicode normalisation: 'NFC', 'NFKC', 'NFD' or 'NFKD'.

    Raises:
      BadInput: another form.
    """
    if form not in ('NFC', 'NFKC', 'NFD', 'NFKD'):
        raise BadInput(f'Unicode form {form!r} is unknown; there are NFC, NFKC, NFD, NFKD')
    return _rewrite(field, lambda text: unicodedata.normalize(form, text))


def lowercase(*, field: str = 'text') -> Step:
    """Texts in lower case."""
    return _rewrite(field, str.lower)


def collapse_whitespace(*, field: str = 'text') -> Step:
    """Runs of blanks become one blank, runs of three or more line ends two, and both ends are stripped."""

    def rewrite(text: str) -> str:
        return re.sub(r'\n{3,}', '\n\n', re.sub(r' *\n *', '\n', re.sub(r'[^\S\n]+', ' ', text))).strip()

    return _rewrite(field, rewrite)


def first_paragraph(*, field: str = 'text') -> Step:
    """Texts up to their first empty line, in one line: a docstring's summary, an article's lead."""
    return _rewrite(field, lambda text: ' '.join(re.split(r'\n\s*\n', text.strip(), maxsplit=1)[0].split()))


def texts(*, fields: Sequence[str]) -> Step:
    """A record {'text'} for each of some fields of each record: what a tokenizer of several fields learns from."""
    return lambda dataset: _source(_Texts(dataset, tuple(fields)))


def joined(*, field: str, name: str = 'text') -> Step:
    """A field's list of words as one text, with blanks between them, under another name."""
    return lambda dataset: dataset.map(lambda record: {**record, name: ' '.join(map(str, record[field]))})


class _Texts:
    def __init__(self, dataset: Any, fields: tuple[str, ...]):
        self.dataset, self.fields = dataset, fields

    def __len__(self) -> int:
        return len(self.dataset) * len(self.fields)

    def __getitem__(self, index: Any) -> Any:
        row, field = divmod(int(index), len(self.fields))
        return {'text': text_of(self.dataset[row], self.fields[field])}


def _source(values: Any) -> Any:
    import grain

    return grain.MapDataset.source(values)


def labelled(*, field: str, labels: Sequence[str], pattern: str = r'.*', name: str = 'label') -> Step:
    """What a regular expression finds at the start of a field becomes the label.

    Args:
      field: where to look, as 'module' of a function.
      labels: records with others are left out.
      pattern: its first match is the label.
      name: the field that the label goes to.

    Raises:
      BadInput: no record is left.
    """
    find = re.compile(pattern)

    def label_of(record: Record) -> str:
        found = find.match(str(record[field]))
        return found[0] if found else ''

    def step(records: Any) -> Any:
        wanted = [{**record, name: label_of(record)} for record in (records[index] for index in range(len(records)))]
        kept = [record for record in wanted if record[name] in labels]
        if not kept:
            raise BadInput(f'no field {field!r} of {len(records)} records begins with one of {", ".join(labels)}; look at `lmx data`')
        return _source(kept)

    return step


def collection(*, query: str = 'query', document: str = 'document') -> Step:
    """Pairs as a collection, in which every document may be found for every query.

    A query that several pairs share has all their documents for an answer, and is asked once.

    Args:
      query, document: fields of the pairs.
    """

    def step(records: Any) -> Any:
        pairs = [(text_of(record, query), text_of(record, document)) for record in (records[index] for index in range(len(records)))]
        answers: dict[str, list[str]] = {}
        for index, (asked, _) in enumerate(pairs):
            answers.setdefault(asked, []).append(str(index))
        documents = [{'id': str(index), 'text': text} for index, (_, text) in enumerate(pairs)]
        return _source([*documents, *({'id': asked, 'text': asked, 'relevant': names} for asked, names in answers.items())])

    return step


def length(*, min_chars: int = 1, max_chars: int | None = None, field: str = 'text') -> Step:
    """Keeps texts of min_chars to max_chars characters.

    Raises:
      BadInput: bounds in the wrong order.
    """
    if max_chars is not None and max_chars < min_chars:
        raise BadInput(f'length keeps nothing: min_chars {min_chars} is above max_chars {max_chars}')
    return lambda dataset: _keep(
        dataset, lambda texts: [min_chars <= len(t) and (max_chars is None or len(t) <= max_chars) for t in texts], field
    )


def deduplicate(*, field: str = 'text') -> Step:
    """Keeps the first of equal texts."""

    def first(texts: Iterable[str]) -> list[bool]:
        seen: set[bytes] = set()
        out = []
        for text in texts:
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            out.append(digest not in seen)
            seen.add(digest)
        return out

    return lambda dataset: _keep(dataset, first, field)


def near_duplicates(*, threshold: float = 0.8, words: int = 5, bands: int = 16, rows: int = 8, field: str = 'text') -> Step:
    """Keeps the first of texts that share most of their word n-grams: MinHash and bands (Broder 1997; Lee et al. 2022, arXiv:2107.06499).

    Args:
      threshold: Jaccard similarity of the n-gram sets from which two texts count as the same; candidates are checked exactly.
      words: n.
      bands, rows: texts become candidates when all `rows` of a band agree, with probability 1 - (1 - s^rows)^bands at similarity s.
    """
    if not 0 < threshold <= 1:
        raise BadInput(f'near_duplicates threshold {threshold} is not in (0, 1]')

    def first(texts: Iterable[str]) -> list[bool]:
        random = rng.numpy_rng(0, 'minhash')
        a, b = random.integers(1, 1 << 61, (2, bands * rows, 1), np.uint64)
        buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        grams: dict[int, frozenset[int]] = {}  # of those that are kept
        out = []
        for index, text in enumerate(texts):
            own = shingles(text, words)
            signature = _signature(own, a, b).reshape(bands, rows)
            keys = [(band, signature[band].tobytes()) for band in range(bands)]
            candidates = {other for key in keys for other in buckets[key]}
            kept = not any(jaccard(own, grams[other]) >= threshold for other in candidates)
            out.append(kept)
            if kept:
                grams[index] = own
                for key in keys:
                    buckets[key].append(index)
        return out

    return lambda dataset: _keep(dataset, first, field)


def shingles(text: str, words: int) -> frozenset[int]:
    """Hashes of the text's word n-grams; a text of fewer words is one."""
    tokens = text.split()
    grams = [' '.join(tokens[i : i + words]) for i in range(max(1, len(tokens) - words + 1))]
    return frozenset(int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), 'little') for gram in grams)


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / max(len(a | b), 1)


def _signature(grams: frozenset[int], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The least hash of the set under each of a family of hash functions (multiply, add, high bits; modulo 2^64)."""
    values = np.fromiter(grams, np.uint64, len(grams))
    with np.errstate(over='ignore'):
        return (((a | np.uint64(1)) * values + b) >> np.uint64(16)).min(axis=1)


def _rewrite(field: str, function: Callable[[str], str]) -> Step:
    return lambda dataset: dataset.map(lambda record: {**record, field: function(text_of(record, field))})


class _Kept:
    """The kept records, by index."""

    def __init__(self, dataset: Any, indices: np.ndarray):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[int(self.indices[int(index)])]


def _keep(dataset: Any, decide: Callable[[Iterable[str]], list[bool]], field: str) -> Any:
    from tqdm import tqdm

    places = tqdm(range(len(dataset)), desc='cleaning', unit='records', leave=False, mininterval=1, delay=2)
    kept = np.flatnonzero(decide(text_of(dataset[index], field) for index in places))
    if not len(kept):
        raise BadInput(f'cleaning left none of {len(dataset)} records; loosen the filters')
    return _source(_Kept(dataset, kept))
