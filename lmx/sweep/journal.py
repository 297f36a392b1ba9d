"""A journal file of Optuna's that processes share and may be killed over: its study, and the lock of its lines."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

from lmx import study
from lmx.study import Study
from lmx.types import BadInput

if TYPE_CHECKING:
    import optuna  # pyright: ignore[reportMissingImports]


def direction(wanted: Study) -> str:
    """What Optuna calls the study's mode."""
    return 'maximize' if wanted.mode == 'max' else 'minimize'


def opened(optuna: Any, path: pathlib.Path, wanted: Study, pruner: Any) -> tuple[Any, optuna.Study]:
    """(storage, study) of a journal file, which holds this study or none.

    Raises:
      BadInput: it holds another study, or is no journal.
    """
    plain = study.to_plain(wanted)
    same = json.dumps([plain['base'], plain['points']['space'], wanted.metric, wanted.mode], sort_keys=True)
    name = f'lmx-{hashlib.blake2b(same.encode(), digest_size=8).hexdigest()}'
    backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=_FileLock(path))
    try:
        storage = optuna.storages.JournalStorage(backend)
        others = [one.study_name for one in storage.get_all_studies() if one.study_name != name]
    except (ValueError, KeyError) as error:
        raise BadInput(f'{path} is no journal of Optuna ({error}); move it away, or give a new --workdir') from None
    if others:
        raise BadInput(f'{path} is a storage file from another study ({others[0]}, and this is {name}); give a new --workdir')
    kept = {'storage': storage, 'study_name': name, 'load_if_exists': True}
    return storage, optuna.create_study(direction=direction(wanted), pruner=pruner, **kept)


class _FileLock:
    """Of the journal file: the kernel gives it back when a process dies, and a line that was cut off by that is cut off whole."""

    def __init__(self, path: pathlib.Path):
        self.path, self.handle = path, -1

    def acquire(self) -> bool:
        self.handle = hold(self.path)
        size = os.fstat(self.handle).st_size
        if size and os.pread(self.handle, 1, size - 1) != b'\n':
            os.truncate(self.handle, self.path.read_bytes().rfind(b'\n') + 1)
        return True

    def release(self) -> None:
        os.close(self.handle)


def hold(path: pathlib.Path) -> int:
    """The handle of a file that this process has locked, after all others that wanted it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle
