"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): word problems of school mathematics with worked answers; 7,473 and 1,319 of them.

{'question', 'answer': 'Natalia sold 48/2 = <<48/2=24>>24 clips in May. ... #### 72', 'final': '72'}
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from lmx.data import raw
from lmx.data.raw import TEXT
from lmx.data.sources import read_text


def examples(split: str, *files: pathlib.Path) -> Iterator[dict[str, str]]:
    for line in filter(None, read_text(str(files[0])).split('\n')):
        record = json.loads(line)
        yield {**record, 'final': record['answer'].rpartition('####')[2].strip().replace(',', '')}


def builder(config: str | None, **kwargs: Any) -> Any:
    features = {'question': TEXT, 'answer': TEXT, 'final': TEXT}
    splits = {'train': ('train.jsonl',), 'test': ('test.jsonl',)}
    source = 'they are grade_school_math/data of the repository openai/grade-school-math'
    return raw.builder('gsm8k', features=features, splits=splits, source=source, examples=examples, **kwargs)
