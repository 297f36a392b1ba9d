"""Tiny Shakespeare (Karpathy 2015): 1,115,394 characters, split as nanoGPT does, the first 90 % for training and the rest for validation."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from lmx.data.sources import read_text
from lmx.types import BadInput

SHA256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'


class TinyShakespeare(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One record {'text'} per split."""

    name = 'lmx_tiny_shakespeare'
    VERSION = tfds.core.Version('1.0.0')
    MANUAL_FILES = ('input.txt',)
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'input.txt is data/tinyshakespeare/input.txt of the repository karpathy/char-rnn'

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({'text': tfds.features.Text()}))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        text = read_text(str(found(pathlib.Path(dl_manager.manual_dir), 'input.txt')))
        if hashlib.sha256(text.encode()).hexdigest() != SHA256:
            raise BadInput(
                f'input.txt in {dl_manager.manual_dir} is not tiny Shakespeare (its SHA-256 differs); {self.MANUAL_DOWNLOAD_INSTRUCTIONS}'
            )
        cut = int(len(text) * 0.9)
        return {'train': self._generate_examples(text[:cut]), 'validation': self._generate_examples(text[cut:])}

    def _generate_examples(self, text: str) -> Iterator[tuple[int, dict[str, str]]]:
        yield 0, {'text': text}


def found(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The raw file, compressed or not."""
    return next(path for path in (folder / (name + suffix) for suffix in ('', '.xz', '.gz')) if path.exists())


def builder(config: str | None, **kwargs: Any) -> Any:
    return TinyShakespeare(**kwargs)
