"""STS benchmark (Cer et al. 2017, arXiv:1708.00055): pairs of sentences and how much they mean the same, 0 to 5."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lmx.data.datasets.tiny_shakespeare import found
from lmx.data.sources import read_text

SPLITS = {'train': 'sts-train.csv', 'validation': 'sts-dev.csv', 'test': 'sts-test.csv'}


class Stsb(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Records {'text', 'other', 'score'}; 5,749, 1,500 and 1,379 of them."""

    name = 'lmx_stsb'
    VERSION = tfds.core.Version('1.0.0')
    MANUAL_FILES = tuple(SPLITS.values())
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'they are the tab-separated files of stsbenchmark'

    def _info(self) -> Any:
        features = {'text': tfds.features.Text(), 'other': tfds.features.Text(), 'score': tfds.features.Scalar(np.float32)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = pathlib.Path(dl_manager.manual_dir)
        return {split: self._generate_examples(found(folder, file)) for split, file in SPLITS.items()}

    def _generate_examples(self, path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, line in enumerate(filter(None, read_text(str(path)).split('\n'))):
            fields = line.rstrip('\r').split('\t')  # genre, file, year, number, score, two sentences, at times their sources
            yield index, {'text': fields[5], 'other': fields[6], 'score': float(fields[4])}


def builder(config: str | None, **kwargs: Any) -> Any:
    return Stsb(**kwargs)
