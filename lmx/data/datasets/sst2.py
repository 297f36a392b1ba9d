"""SST-2 (Socher et al. 2013): sentences of film reviews, lower-cased and tokenised, with their sentiment; 6,920, 872 and 1,821 of them.

{'text': 'one long string of cliches', 'label': 'negative'}. Whole sentences, as Kim 2014 evaluates on; GLUE trains on phrases as well.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from lmx.data import raw
from lmx.data.raw import TEXT
from lmx.data.sources import read_text


def examples(split: str, *files: pathlib.Path) -> Iterator[dict[str, str]]:
    for line in filter(None, read_text(str(files[0])).split('\n')):
        text, _, label = line.rstrip('\r').rpartition('\t')
        yield {'text': text, 'label': ('negative', 'positive')[int(label)]}


def builder(config: str | None, **kwargs: Any) -> Any:
    features = {'text': TEXT, 'label': TEXT}
    splits = {'train': ('train.tsv',), 'validation': ('dev.tsv',), 'test': ('test.tsv',)}
    source = 'they are data/SST2 of the repository clairett/pytorch-sentiment-classification'
    return raw.builder('sst2', features=features, splits=splits, source=source, examples=examples, **kwargs)
