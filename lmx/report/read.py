"""The files of a run, read tolerantly: any may be missing, and a line may be cut off where a process was killed."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmx.types import BadInput

FILES = ('config.json', 'provenance.json', 'metrics.jsonl', 'eval.jsonl', 'samples.jsonl', 'trial.json')


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The JSON objects of a .jsonl file; broken lines are left out."""
    out = []
    # Not splitlines: text may hold U+2028 and its like unescaped, which JSON allows within a string.
    for line in path.read_text('utf-8', errors='replace').split('\n') if path.is_file() else []:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            out.append(value)
    return out


def document(path: pathlib.Path) -> dict[str, Any]:
    """A .json file; {} where it is missing, broken or no object."""
    try:
        value = json.loads(path.read_text('utf-8', errors='replace'))
    except (OSError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def maps(path: pathlib.Path) -> dict[str, tuple[Any, list[str], list[str]]]:
    """{name: (weights [L, H, T, S], tokens of the queries, of the keys)} of `lmx.run.attention`; {} where there is no such file."""
    if not path.is_file():
        return {}
    import numpy as np

    with np.load(path) as arrays:
        labels = json.loads(str(arrays['labels']))
        return {name: (arrays[name.replace('/', '|')], *sides) for name, sides in labels.items()}


def resampled(folder: pathlib.Path) -> dict[str, tuple[int, str, dict[str, Any]]]:
    """{split: (step, hash of the records, {score: resampled values})} of the last step that `lmx evaluate` scored."""
    import numpy as np

    found: dict[str, tuple[int, str, dict[str, Any]]] = {}
    for path in folder.glob('*-*.npz'):
        split, _, step = path.stem.rpartition('-')
        if step.isdigit() and int(step) >= found.get(split, (0,))[0]:
            with np.load(path) as arrays:
                values = {name: arrays[name] for name in arrays.files if name != 'records'}
                found[split] = (int(step), str(arrays['records']), values)
    return found


def number(value: Any) -> Any:
    """The value if it is a finite number, else None."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def column(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the lines that have both, by step; of several lines of one step the last counts."""
    pairs = ((number(line.get('step')), number(line.get(key))) for line in lines)
    found = {float(step): float(value) for step, value in pairs if step is not None and value is not None}
    return sorted(found), [found[step] for step in sorted(found)]


class RunFiles:
    """One run's folder as data: name, config, provenance, metrics, samples, and evaluations as {split: lines}.

    Raises:
      BadInput: the folder holds none of a run's files.
    """

    def __init__(self, workdir: str | os.PathLike[str], name: str | None = None):
        self.path = pathlib.Path(workdir)
        if not any((self.path / file).is_file() for file in FILES):
            raise BadInput(f'{workdir} holds no run (no config.json); `lmx runs` lists the runs below a folder')
        self.name = name or self.path.resolve().name
        self.config = document(self.path / 'config.json')
        self.provenance = document(self.path / 'provenance.json')
        self.metrics = lines(self.path / 'metrics.jsonl')
        self.samples = lines(self.path / 'samples.jsonl')
        self.attention = maps(self.path / 'attention.npz')
        self.resampled = resampled(self.path / 'scores')
        self.evaluations: dict[str, list[dict[str, Any]]] = {}
        for line in lines(self.path / 'eval.jsonl'):
            self.evaluations.setdefault(str(line.get('split') or 'evaluation'), []).append(line)

    @property
    def step(self) -> int:
        """Updates done, as far as the metrics tell."""
        return int(max((number(line.get('step')) or 0 for line in self.metrics), default=0))

    @property
    def steps(self) -> int | None:
        """Updates wanted; None where the config does not say."""
        return number(self.config.get('steps'))

    def baselines(self, split: str) -> dict[str, float]:
        """Bits per byte of other methods on a split: 'baseline/xz' as 'xz'."""
        pairs = ((key, number(value)) for line in self.evaluations.get(split, []) for key, value in line.items())
        return {key.removeprefix('baseline/'): value for key, value in pairs if key.startswith('baseline/') and value is not None}


def several(workdirs: Sequence[str | os.PathLike[str]]) -> list[RunFiles]:
    """The runs of some folders, called by as much of the end of their paths as tells them apart.

    Raises:
      BadInput: no folder, or one that holds no run.
    """
    if not workdirs:
        raise BadInput('there is no run to report on; name one or more folders of runs')
    parts = [pathlib.Path(workdir).resolve().parts for workdir in workdirs]
    longest = max(len(one) for one in parts)
    depth = next((n for n in range(1, longest) if len({one[-n:] for one in parts}) == len(set(parts))), longest)
    return [RunFiles(workdir, '/'.join(one[-depth:])) for workdir, one in zip(workdirs, parts)]
