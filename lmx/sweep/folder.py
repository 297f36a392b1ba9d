"""The folder of a sweep: the study, and below `trials/` an ordinary run's folder for every training, whoever trained it.

`trials/0003-s1` is point 3 with seed 1. Its `trial.json` says what it is and how it stands; all else in it is as `lmx train` leaves it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmx import spec, study
from lmx.report.read import FILES, RunFiles, number
from lmx.study import Point, Search, Study, Trial
from lmx.train import workdir
from lmx.types import BadInput

ENDED = ('done', 'diverged', 'pruned')
"""States in which nothing is left to do; 'failed' is tried again, and 'running' is what a dead process was at, or a live one is."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One training and how it stands.

    Attributes:
      state: 'waiting', 'running', 'failed' or one of `ENDED`.
      step: updates done, as far as its files tell.
      values: {'split/name': the value of the last evaluation}.
      why: of one that failed or diverged.
    """

    trial: Trial
    path: pathlib.Path
    state: str
    step: int = 0
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    why: str = ''


class Folder:
    """A sweep's folder.

    Args:
      path: of the folder.
      wanted: the study to run; None takes the one that is there.

    Raises:
      BadInput: there is no study, or another one, or something else.
    """

    def __init__(self, path: str | os.PathLike[str], wanted: Study | None = None):
        self.path = pathlib.Path(path).absolute()
        file = self.path / 'study.json'
        try:
            self.kept: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
        except json.JSONDecodeError as error:
            raise BadInput(f'{file} is broken ({error}); restore it from a copy, or give a new --workdir') from None
        if self.kept is None and wanted is None:
            raise BadInput(f'{path} holds no sweep (no study.json); give --study=FILE.py')
        if self.kept is None and self.path.is_dir() and (others := _foreign(self.path)):
            raise BadInput(f'{path} is not empty and holds no sweep ({", ".join(others[:3])}); give a new --workdir')
        self.study = wanted or study_of(self.kept or {})
        if wanted is not None and self.kept is not None:
            _check_same(self.path, self.kept, wanted)
        self.points = self._numbered()

    def _numbered(self) -> list[Point]:
        """The listed points by their numbers: first those that had one. A search numbers its own."""
        if isinstance(self.study.points, Search):
            return []
        before: list[Point] = list((self.kept or {}).get('points', []))
        known = [_text(point) for point in before]
        return [*before, *(spec.to_plain(point) for point in self.study.points if _text(point) not in known)]

    def record(self) -> None:
        """Writes the study; points and seeds may have come to it."""
        self.path.mkdir(parents=True, exist_ok=True)
        plain = study.to_plain(self.study)
        self.kept = plain if isinstance(self.study.points, Search) else {**plain, 'points': json.loads(json.dumps(self.points))}
        workdir.replace(self.path / 'study.json', json.dumps(self.kept, indent=2) + '\n')

    @contextlib.contextmanager
    def locked(self, part: str = '') -> Iterator[None]:
        """Held by the process that trains the sweep, or a part of it.

        Raises:
          BadInput: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = workdir.locked(self.path / f'.lock{part}')
        try:
            yield
        finally:
            os.close(handle)

    def trials(self) -> list[Trial]:
        """All listed trainings, by number and seed; of a search, those that it has begun."""
        if isinstance(self.study.points, Search):
            return [trial for trial in self._begun() if not trial.fresh]
        return study.trials(self.study, self.points)

    def _begun(self) -> list[Trial]:
        found = [json.loads(file.read_text()) for file in sorted((self.path / 'trials').glob('*/trial.json'))]
        return [Trial(one['number'], one['point'], one['seed'], one['fresh']) for one in found]

    def folder(self, trial: Trial) -> pathlib.Path:
        return self.path / 'trials' / trial.name

    def mark(self, trial: Trial, state: str, **facts: Any) -> None:
        """Says how a training stands, by one rename."""
        folder = self.folder(trial)
        folder.mkdir(parents=True, exist_ok=True)
        plain = spec.to_plain({**dataclasses.asdict(trial), 'state': state, **facts})
        workdir.replace(folder / 'trial.json', json.dumps(plain, indent=2) + '\n')

    def row(self, trial: Trial) -> Row:
        """How a training stands, by its files."""
        folder = self.folder(trial)
        file = folder / 'trial.json'
        if not file.exists():
            return Row(trial, folder, 'waiting')
        facts = json.loads(file.read_text())
        if not any((folder / name).exists() for name in FILES):
            return Row(trial, folder, facts['state'], why=facts.get('why', ''))
        run = RunFiles(folder, trial.name)
        values: dict[str, float] = {}
        for split, lines in run.evaluations.items():
            trained = [line for line in lines if 'checkpoint' not in line]  # not what `lmx evaluate` added
            values |= {f'{split}/{name}': value for name, value in (trained[-1] if trained else {}).items() if number(value) is not None}
        return Row(trial, folder, facts['state'], run.step, values, facts.get('why', ''))

    def rows(self) -> list[Row]:
        """Every training of the study, those with fresh seeds last."""
        listed = self.trials()
        fresh = [trial for trial in self._begun() if trial.fresh]
        return [self.row(trial) for trial in (*listed, *fresh)]


def _foreign(path: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.name not in ('logs', 'code') and not entry.name.startswith('.lock'))


def study_of(kept: Mapping[str, Any]) -> Study:
    """The study that a study.json holds."""
    points = kept['points']
    if isinstance(points, Mapping):
        space = {
            path: getattr(study, where['kind'])(**{k: v for k, v in where.items() if k != 'kind'})
            for path, where in points['space'].items()
        }
        points = Search(**{**points, 'space': space})
    base = spec.from_json(json.dumps(kept['base']))
    return Study(**{**kept, 'base': base, 'points': points})


def _check_same(path: pathlib.Path, kept: Mapping[str, Any], wanted: Study) -> None:
    """A half-finished sweep goes on with more points, seeds, trials or budget, and with nothing else changed."""
    now = study.to_plain(wanted)
    free = ('points', 'seeds', 'fresh_seeds', 'budget')
    changed = [row for row in spec.diff(kept, now) if row[0].split('.')[0] not in free]
    if isinstance(kept['points'], Mapping) != isinstance(now['points'], Mapping):
        changed.append(('points', 'a search', 'a list') if isinstance(kept['points'], Mapping) else ('points', 'a list', 'a search'))
    elif isinstance(kept['points'], Mapping):
        changed += [(f'points.{key}', old, new) for key, old, new in spec.diff(kept['points'], now['points']) if key != 'trials']
    else:
        there = [_text(point) for point in now['points']]
        changed += [('points', point, '-') for point in kept['points'] if _text(point) not in there]
    changed += [('seeds', seed, '-') for seed in kept['seeds'] if seed not in now['seeds']]
    if changed:
        shown = ', '.join(f'{key} {old!r} -> {new!r}' for key, old, new in changed[:4]) + (', ...' if len(changed) > 4 else '')
        raise BadInput(f'{path} holds another study ({shown}); points and seeds may be added to it, for all else give a new --workdir')


def _text(point: Point) -> str:
    return json.dumps(spec.to_plain(point), sort_keys=True)


def ended(rows: Sequence[Row]) -> bool:
    """Whether nothing is left to train."""
    return all(row.state in ENDED for row in rows)
