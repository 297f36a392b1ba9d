"""A command that does not outlive the process that started it, whatever ends that: `python -m lmx.launch.bound PARENT COMMAND...`.

Linux alone can do this; elsewhere the command is run as it is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def bound(command: Sequence[str]) -> list[str]:
    """The command, bound to this process."""
    return [sys.executable, '-m', 'lmx.launch.bound', str(os.getpid()), *command]


def main(parent: int, command: Sequence[str]) -> None:
    """Becomes `command`; prctl(2) says that the kernel ends it with the parent, also after exec."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that
            sys.exit(128 + signal.SIGKILL)
    os.execvp(command[0], list(command))


if __name__ == '__main__':
    main(int(sys.argv[1]), sys.argv[2:])
