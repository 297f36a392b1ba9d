"""WikiText-2 (Merity et al. 2016, arXiv:1609.07843), tokenised words; one record per split, so that its text is exactly the published one."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from lmx.data.datasets.tiny_shakespeare import found
from lmx.data.sources import read_text

SPLITS = {'train': 'train.txt', 'validation': 'valid.txt', 'test': 'test.txt'}


class Wikitext2(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One record {'text'} per split."""

    name = 'lmx_wikitext2'
    VERSION = tfds.core.Version('1.0.0')
    MANUAL_FILES = tuple(SPLITS.values())
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'they are the word-level files of wikitext-2, as in pytorch/examples, word_language_model/data/wikitext-2'
    )

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({'text': tfds.features.Text()}))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = pathlib.Path(dl_manager.manual_dir)
        return {split: self._generate_examples(found(folder, file)) for split, file in SPLITS.items()}

    def _generate_examples(self, path: pathlib.Path) -> Iterator[tuple[int, dict[str, str]]]:
        yield 0, {'text': read_text(str(path))}


def builder(config: str | None, **kwargs: Any) -> Any:
    return Wikitext2(**kwargs)
