"""The code that a job runs: a copy, so that what was submitted runs even when the folder has changed by the time the job starts."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess

from lmx.types import BadInput

LIMIT = 200_000_000  # bytes


def take(folder: pathlib.Path, target: pathlib.Path, copy: bool = True) -> pathlib.Path:
    """Copies the git tree that holds `folder` below `target`: what is tracked, as it is now, and what is neither tracked nor ignored.

    Returns:
      Where `folder` now lies in `target/<hash of the content>`; the same content is copied once, and not at all without `copy`.

    Raises:
      BadInput: `folder` is in no git tree, or the tree is too large to copy.
    """
    root = pathlib.Path(_git(folder, 'rev-parse', '--show-toplevel').strip())
    names = sorted(filter(None, _git(root, 'ls-files', '-z', '--cached', '--others', '--exclude-standard').split('\0')))
    files = [name for name in names if (root / name).is_file()]
    total = sum((root / name).stat().st_size for name in files)
    if total > LIMIT:
        raise BadInput(
            f'{root} holds {total / 1e6:.0f} MB outside .gitignore, the limit of a snapshot is {LIMIT / 1e6:.0f}; ignore data and runs'
        )
    digest = hashlib.blake2b(digest_size=6)
    for name in files:
        digest.update(name.encode() + b'\0' + hashlib.blake2b((root / name).read_bytes()).digest())
    made = target / digest.hexdigest()
    if copy and not made.is_dir():
        part = made.with_name(f'{made.name}.{os.getpid()}.part')
        for name in files:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, part / name, follow_symlinks=False)
        (part / 'SNAPSHOT').write_text(f'{_git(root, "rev-parse", "HEAD").strip()}\n\n{_git(root, "diff", "HEAD")}')
        part.rename(made)
    return made / folder.resolve().relative_to(root.resolve())


def _git(folder: pathlib.Path, *args: str) -> str:
    try:
        return subprocess.run(['git', '-C', str(folder), *args], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise BadInput(
            f'{folder} is in no git repository with a commit, so no snapshot can be taken; commit, or give --nosnapshot'
        ) from None
