"""Where records come from: functions that return a Grain MapDataset of {field: value}, text as str."""

from __future__ import annotations

import bisect
import glob as globbing
import gzip
import json
import lzma
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmx.data.catalogue import online, prepared
from lmx.types import BadInput, Record


def tfds(
    *,
    name: str,
    split: str,
    fields: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    limit: int | None = None,
) -> Any:
    """A TensorFlow Datasets data set, read without TensorFlow; downloaded and prepared (array_record) on first use.

    Args:
      name: of the catalogue ('wmt14_translate/de-en'), or of one of ours ('lmx:python_stdlib/text').
      split: 'train', 'train[:90%]', 'train+validation', 'all', ...
      fields: {our field: theirs}, to rename and to leave others out; 'a/b' reaches into a nested feature. None = all.
      data_dir: where prepared data lies; default TFDS's own.
      manual_dir: raw files, for data sets that cannot be downloaded.
      limit: of the split, at most so many examples, from all over it; None = all.

    Raises:
      BadInput: unknown name or split, missing raw files, no network, a set that needs lmx[tf], a format that loses rows, a limit below 1.
    """
    if limit is not None and limit < 1:
        raise BadInput(f'data set {name!r}: limit {limit} must be at least 1')
    builder = prepared(name, data_dir, manual_dir)
    try:
        found = builder.as_data_source(split=split)
    except (ValueError, KeyError, AssertionError):  # as TFDS's parser of splits has it
        raise BadInput(f'data set {name!r} has no split {split!r}; there are {", ".join(builder.info.splits)}') from None
    dataset = _mapped(found, _selector(fields, name))
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in pathlib.Path(builder.data_dir).iterdir())
    identity = f'tfds/{builder.info.full_name}/{split}/{fields}/{files}'
    if limit is None:
        return _known(dataset, identity)
    return _known(dataset[:: max(1, len(dataset) // limit)][:limit], f'{identity}/{limit}')


def text_files(*, pattern: str) -> Any:
    """One record {'text', 'path'} per file that matches a glob pattern; .gz and .xz are read as what they hold.

    Raises:
      BadInput: no file matches, one is empty, damaged, or not UTF-8 (file and byte offset).
    """
    files = _files(pattern)
    return _known(_mapped(files, lambda path: {'text': read_text(path), 'path': path}), _identity(files))


def lines(*, pattern: str) -> Any:
    """One record {'text'} per line that is not empty, of all files that match a glob pattern.

    Raises:
      BadInput: as `text_files`.
    """
    files = _files(pattern)
    found = [line for path in files for line in _lines(path) if line.strip()]
    return _known(_mapped(found, lambda line: {'text': line}), f'lines/{_identity(files)}')


def jsonl(*, pattern: str, fields: Mapping[str, str] | None = None) -> Any:
    """One record per line of the JSONL files that match a glob pattern.

    Raises:
      BadInput: as `text_files`; a line that is no JSON object (file and line), a missing field.
    """
    files = _files(pattern)
    places = [(path, number, line) for path in files for number, line in enumerate(_lines(path), 1) if line.strip()]
    dataset = _mapped([_json(*place) for place in places], _selector(fields, pattern))
    dataset.lmx_places = [f'{path}:{number}' for path, number, _ in places]  # for messages about a record
    return _known(dataset, f'jsonl/{fields}/{_identity(files)}')


def parquet(*, pattern: str, fields: Mapping[str, str] | None = None) -> Any:
    """One record per row of the Parquet files that match a glob pattern; a row group is read at a time.

    Raises:
      BadInput: no file matches, one is not Parquet, a missing field.
    """
    files = _files(pattern)
    return _known(_mapped(_ParquetRows(files), _selector(fields, pattern)), f'parquet/{fields}/{_identity(files)}')


def hub(*, name: str, split: str, config: str | None = None, fields: Mapping[str, str] | None = None) -> Any:
    """A data set of the Hugging Face hub, or a local folder of one. Needs lmx[hub] and, on first use, a network.

    Raises:
      BadInput: lmx[hub] is not installed, the data set cannot be had.
    """
    try:
        if not online(os.environ.get('HF_ENDPOINT', 'https://huggingface.co')):
            os.environ.setdefault('HF_HUB_OFFLINE', '1')  # what is cached is found at once, what is not is not retried for half a minute
        import datasets
    except ModuleNotFoundError:
        raise BadInput(f"hub data set {name!r} needs `pip install 'lmx[hub]'`") from None
    try:
        found = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise BadInput(f'hub data set {name!r} cannot be had: {" ".join(str(error).split())[:300]}') from None
    return _known(_mapped(found, _selector(fields, name)), f'hub/{found._fingerprint}/{fields}')


def in_memory(*, records: Sequence[Record]) -> Any:
    """Records as they are.

    Raises:
      BadInput: none.
    """
    if not records:
        raise BadInput('in_memory was given no records')
    return _mapped(list(records), dict)


def mixture(*, sources: Sequence[Any], weights: Sequence[float]) -> Any:
    """Several MapDatasets interleaved by weight, each repeated as often as the longest needs; random access.

    One pass holds every example of every source at least once. Weights are relative, and kept to a hundredth of the smallest.

    Raises:
      BadInput: another number of weights than sources, a weight that is not positive.
    """
    import grain

    if len(sources) != len(weights) or min(weights, default=0) <= 0:
        raise BadInput(f'mixture has {len(sources)} sources and weights {tuple(weights)}; give one positive weight per source')
    shares = [round(100 * weight / min(weights)) for weight in weights]  # Grain would cut off, not round
    # Grain splits off one source after another and rounds each time, so the n-th may lag n examples behind its exact share.
    length = max(-(-(len(source) + place) * sum(shares) // share) for place, (source, share) in enumerate(zip(sources, shares)))
    return grain.MapDataset.mix([source.repeat() for source in sources], shares)[:length]


def concatenated(*, sources: Sequence[Any]) -> Any:
    """Several MapDatasets one after the other.

    Raises:
      BadInput: none is given.
    """
    import grain

    if not sources:
        raise BadInput('concatenated was given no sources')
    joined = grain.MapDataset.concatenate(list(sources))
    names = [getattr(source, 'lmx_fingerprint', None) for source in sources]
    return joined if None in names else _known(joined, repr(names))


# -- helpers


def read_bytes(path: str) -> bytes:
    """The bytes of a file, decompressed by its suffix.

    Raises:
      BadInput: it is empty or damaged.
    """
    openers: dict[str, Callable[..., Any]] = {'.gz': gzip.open, '.xz': lzma.open}
    try:
        with openers.get(pathlib.Path(path).suffix, open)(path, 'rb') as file:
            data = file.read()
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise BadInput(f'{path} is damaged or not compressed as its name says ({error}); fetch it again') from None
    if not data:
        raise BadInput(f'{path} is empty')
    return data


def read_text(path: str) -> str:
    """`read_bytes` as text.

    Raises:
      BadInput: it is empty, damaged, or not UTF-8 (file and byte offset).
    """
    data = read_bytes(path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f'{path} is not UTF-8 at byte {error.start} ({data[error.start : error.start + 1]!r}); convert it') from None


def _lines(path: str) -> list[str]:
    """By line feed alone: str.splitlines would also break a line at a form feed, or inside a JSON string at U+2028."""
    return [line.removesuffix('\r') for line in read_text(path).split('\n')]


def _files(pattern: str) -> list[str]:
    found = sorted(path for path in globbing.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(path))
    if not found:
        raise BadInput(f'no file matches {pattern!r}')
    return found


def _identity(files: Sequence[str]) -> str:
    stats = [(path, os.stat(path)) for path in files]
    return 'files/' + json.dumps([(os.path.abspath(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats])


def _json(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f'{path}:{number} is not JSON: {error.msg} at column {error.colno}') from None
    if not isinstance(record, dict):
        raise BadInput(f'{path}:{number} is not a JSON object: {line[:60]!r}')
    return record


def _selector(fields: Mapping[str, str] | None, what: str) -> Callable[[Any], dict[str, Any]]:
    def select(record: Any) -> dict[str, Any]:
        if fields is None:
            return {name: _text(value) for name, value in record.items()}
        return {ours: _text(_reach(record, theirs, what)) for ours, theirs in fields.items()}

    return select


def _reach(record: Any, path: str, what: str) -> Any:
    for part in path.split('/'):
        if part not in record:
            raise BadInput(f'{what!r} has no field {path!r}; there are {", ".join(record)}')
        record = record[part]
    return record


def _text(value: Any) -> Any:
    """Bytes as text, inside of lists and records too."""
    if isinstance(value, Mapping):
        return {name: _text(part) for name, part in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype.kind in 'OS' and value.ndim):
        return [_text(part) for part in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadInput(f'a record is not UTF-8 at byte {error.start}: {value[:40]!r}') from None
    return value


def _mapped(source: Any, function: Callable[[Any], Any]) -> Any:
    import grain

    return grain.MapDataset.source(source).map(function)


def _known(dataset: Any, identity: str) -> Any:
    """Marks a dataset with what its content is known by, so that nobody has to read it all to find its caches."""
    dataset.lmx_fingerprint = identity
    return dataset


class _ParquetRows:
    """Rows of several files by index; the row group last read is kept."""

    def __init__(self, files: Sequence[str]):
        import pyarrow
        import pyarrow.parquet as pq

        self.groups: list[tuple[str, int]] = []
        self.ends: list[int] = []
        for path in files:
            try:
                metadata = pq.read_metadata(path)
            except pyarrow.ArrowInvalid:
                raise BadInput(f'{path} is not a Parquet file') from None
            for group in range(metadata.num_row_groups):
                self.groups.append((path, group))
                self.ends.append((self.ends[-1] if self.ends else 0) + metadata.row_group(group).num_rows)
        self._open: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: Any) -> dict[str, Any]:
        import pyarrow.parquet as pq

        group = bisect.bisect_right(self.ends, int(index))
        held, table = self._open
        if held != group:
            path, number = self.groups[group]
            table = pq.ParquetFile(path).read_row_group(number)
            self._open = (group, table)
        row = int(index) - (self.ends[group - 1] if group else 0)
        return table.slice(row, 1).to_pylist()[0]
