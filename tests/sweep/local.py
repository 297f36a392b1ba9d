"""Trains what a sweep's folder holds by processes, as `lmx sweep` does; run as `python -m tests.sweep.local SWEEP JOBS [INDEX COUNT]`."""

import contextlib
import sys

from lmx.study import Search
from lmx.sweep import processes
from lmx.sweep.folder import Folder
from lmx.sweep.search import Searched
from lmx.sweep.source import Listed
from lmx.types import BadInput, Preempted


def main(path: str, jobs: str, index: str = '0', count: str = '1') -> int:
    folder, part = Folder(path), (int(index), int(count))
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(folder.study.points, Search):
                source = stack.enter_context(contextlib.closing(Searched(folder, part)))
            else:
                source = Listed(folder, folder.trials(), part)
            processes.run(folder, source, jobs=int(jobs))
    except (BadInput, Preempted) as error:
        print(f'lmx: {error}', file=sys.stderr)
        return 75 if isinstance(error, Preempted) else 2
    return 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
