"""TFDS builders over raw files that a person puts into a folder: which files make which split, and what a record is."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from lmx.types import BadInput

TEXT = tfds.features.Text()


def builder(
    name: str,
    *,
    features: Mapping[str, Any],
    splits: Mapping[str, Sequence[str]],
    source: str,
    examples: Callable[..., Iterable[Mapping[str, Any]]],
    **kwargs: Any,
) -> Any:
    """A builder of array_record files.

    Args:
      name: of its folder, without 'lmx_'.
      features: {field: TFDS feature}.
      splits: {split: its files}, which may lie there with .xz or .gz behind their names.
      source: where one gets them, as the end of a sentence.
      examples: (split, *files) -> records.
      **kwargs: TFDS's.
    """
    wanted = tuple(dict.fromkeys(file for files in splits.values() for file in files))
    attributes = {
        'name': f'lmx_{name}',
        'VERSION': tfds.core.Version('1.0.0'),
        'MANUAL_FILES': wanted,
        'MANUAL_DOWNLOAD_INSTRUCTIONS': source,
    }

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(dict(features)))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            folder = pathlib.Path(dl_manager.manual_dir)
            return {split: self._generate_examples(split, *(found(folder, file) for file in files)) for split, files in splits.items()}

        def _generate_examples(self, split: str, *files: pathlib.Path) -> Any:
            index = -1
            try:
                for index, record in enumerate(examples(split, *files)):
                    yield index, record
            except BadInput:
                raise
            except (ValueError, LookupError, TypeError) as error:
                names = ', '.join(str(file) for file in files)
                raise BadInput(f'{names}: what follows record {index + 1} of {split} cannot be read ({error!r}); {source}') from None

    for attribute, value in attributes.items():
        setattr(Builder, attribute, value)
    return Builder(**kwargs)


def found(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The raw file, compressed or not."""
    return next(path for path in (folder / (name + suffix) for suffix in ('', '.xz', '.gz')) if path.exists())
