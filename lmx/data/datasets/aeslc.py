"""AESLC (Zhang and Tetreault 2019, arXiv:1906.03497): emails and their subject lines; 14,436, 1,960 and 1,906 of them.

{'text': the email, 'summary': 'Service Agreement', 'references': ['Service Agreement']}; `references` holds the subject lines that
annotators wrote as well, which validation and test have.
"""

from __future__ import annotations

import pathlib
import tarfile
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from lmx.data import raw
from lmx.data.raw import TEXT

FOLDERS = {'train': 'train', 'validation': 'dev', 'test': 'test'}


def examples(split: str, *files: pathlib.Path) -> Iterator[dict[str, Any]]:
    with tarfile.open(files[0]) as archive:
        for member in archive:
            if member.isfile() and f'/{FOLDERS[split]}/' in member.name:
                content = archive.extractfile(member)
                assert content is not None
                email, _, rest = content.read().decode('utf-8', errors='replace').partition('\n@subject\n')
                subject, *others = rest.split('\n@ann')
                references = [subject.strip(), *(text.partition('\n')[2].strip() for text in others)]
                yield {'text': email.strip(), 'summary': references[0], 'references': [text for text in references if text]}


def builder(config: str | None, **kwargs: Any) -> Any:
    features = {'text': TEXT, 'summary': TEXT, 'references': tfds.features.Sequence(TEXT)}
    splits = dict.fromkeys(FOLDERS, ('AESLC-master.tar',))
    source = 'it is an archive of the repository ryanzhumich/AESLC'
    return raw.builder('aeslc', features=features, splits=splits, source=source, examples=examples, **kwargs)
