"""Folders of runs, written by hand."""

import json
import pathlib
from typing import Any

EVIL = '</pre><script>alert(1)</script><img src=x onerror=alert(2)> $x$ _a'


def fake(folder: pathlib.Path, steps: int = 50, lr: float = 0.1, **extra: object) -> pathlib.Path:
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps({'steps': steps, 'optim': {'call': 'a:b', 'lr': lr}, 'note': EVIL, **extra}))
    (folder / 'provenance.json').write_text(json.dumps({'command': ['lmx', EVIL], 'devices': ['cpu'], 'time': 'now'}))
    line = {'split': 'train', 'learning_rate': lr, 'grad_norm': 1.0, 'tokens_per_second': 1e4}
    text = ''.join(json.dumps({'step': s, 'loss': 3 - s / steps, **line}) + '\n' for s in range(1, steps + 1))
    (folder / 'metrics.jsonl').write_text(text + '{"step": 51, "lo')  # cut off by a kill
    evaluations = [
        {'step': 25, 'split': 'validation', 'loss': 2.7, 'bits_per_byte': 1.5},
        {'step': 50, 'split': 'validation', 'loss': 2.8, 'bits_per_byte': 1.6},
    ]
    evaluations.append({'step': 50, 'split': 'validation', 'baseline/xz': 1.65})
    (folder / 'eval.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in evaluations))
    (folder / 'samples.jsonl').write_text(json.dumps({'step': 50, 'prompt': 'def ', 'continuation': EVIL, 'tokens': 3}) + '\n')
    return folder


def write(folder: pathlib.Path, **files: Any) -> pathlib.Path:
    """Puts other contents in some of a run's files: bytes as they are, lists as lines (config: as itself), dicts as JSON."""
    for name, value in files.items():
        path = folder / (name + ('.json' if name in ('config', 'provenance') else '.jsonl'))
        if not isinstance(value, bytes):
            value = (json.dumps(value) if path.suffix == '.json' else ''.join(json.dumps(line) + '\n' for line in value)).encode()
        path.write_bytes(value)
    return folder
