"""HumanEval (Chen et al. 2021, arXiv:2107.03374): 164 functions to complete from their signature and docstring, with tests; all as 'test'.

{'task_id': 'HumanEval/0', 'prompt', 'entry_point': 'has_close_elements', 'canonical_solution', 'test'}
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
    return (json.loads(line) for line in read_text(str(files[0])).split('\n') if line.strip())


def builder(config: str | None, **kwargs: Any) -> Any:
    features = dict.fromkeys(('task_id', 'prompt', 'entry_point', 'canonical_solution', 'test'), TEXT)
    splits = {'test': ('HumanEval.jsonl',)}
    source = 'it is data/HumanEval.jsonl.gz of the repository openai/human-eval'
    return raw.builder('humaneval', features=features, splits=splits, source=source, examples=examples, **kwargs)
