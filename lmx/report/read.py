"""The files of a run, read tolerantly: any may be missing, and a line may be cut off where a process was killed."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from lmx.types import BadInput


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The JSON objects of a .jsonl file; broken lines are left out."""
    out = []
    for line in path.read_text(errors='replace').splitlines() if path.exists() else []:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            out.append(value)
    return out


def document(path: pathlib.Path) -> dict[str, Any]:
    """A .json file; {} where it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}


class RunFiles:
    """One run's folder as data: name, config, provenance, metrics, evaluations, samples.

    Raises:
      BadInput: the folder is not a run's.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self.path = pathlib.Path(workdir)
        if not (self.path / 'config.json').exists():
            raise BadInput(f'{workdir} holds no run (no config.json); `lmx runs` lists the runs below a folder')
        self.name = self.path.resolve().name
        self.config = document(self.path / 'config.json')
        self.provenance = document(self.path / 'provenance.json')
        self.metrics = lines(self.path / 'metrics.jsonl')
        self.evaluations = lines(self.path / 'eval.jsonl')
        self.samples = lines(self.path / 'samples.jsonl')
