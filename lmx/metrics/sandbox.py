"""Runs the program that comes on stdin, in a process that has confined itself first; the standard library alone, and Linux 6.2 or newer.

`lmx.metrics.execution` starts this file as `python -I -S`. Nothing here is undone: each step takes rights from this very process and from
whatever runs in it. Limits on memory, processor time, open files and file sizes are the kernel's rlimits. Landlock takes all writing but that
below the working directory. Dropping the capabilities makes root an ordinary user. A seccomp filter refuses sockets, new processes, signals to
others, and what changes a file without opening it.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import sys

# What an ordinary user may do to others, by its number on (x86_64, aarch64); -1 where there is no such call.
DENIED = {
    'socket': (41, 198),
    'socketpair': (53, 199),
    'fork': (57, -1),
    'vfork': (58, -1),
    'execve': (59, 221),
    'execveat': (322, 281),
    'tkill': (200, 130),
    'ptrace': (101, 117),
    'process_vm_readv': (310, 270),
    'process_vm_writev': (311, 271),
    'pidfd_open': (434, 434),
    'pidfd_send_signal': (424, 424),
    'io_uring_setup': (425, 425),
    'unshare': (272, 97),
    'setns': (308, 268),
    'bpf': (321, 280),
    'perf_event_open': (298, 241),
    'userfaultfd': (323, 282),
    'add_key': (248, 217),
    'request_key': (249, 218),
    'keyctl': (250, 219),
    'shmget': (29, 194),
    'semget': (64, 190),
    'msgget': (68, 186),
    'mq_open': (240, 180),
    'setpriority': (141, 140),
    'chmod': (90, -1),
    'fchmod': (91, 52),
    'fchmodat': (268, 53),
    'fchmodat2': (452, 452),
    'chown': (92, -1),
    'fchown': (93, 55),
    'lchown': (94, -1),
    'fchownat': (260, 54),
    'utime': (132, -1),
    'utimes': (235, -1),
    'futimesat': (261, -1),
    'utimensat': (280, 88),
    'setxattr': (188, 5),
    'lsetxattr': (189, 6),
    'fsetxattr': (190, 7),
    'removexattr': (197, 14),
    'lremovexattr': (198, 15),
    'fremovexattr': (199, 16),
    'setxattrat': (463, 463),
    'removexattrat': (466, 466),
}
OWN = {'kill': (62, 129), 'tgkill': (234, 131)}
"""Allowed where their first argument is this process."""
CLONE, CLONE3, PRLIMIT, CAPSET = (56, 220), (435, 435), (302, 261), (126, 91)
ARCHITECTURES = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}
LANDLOCK_VERSION = 3
WRITING = 0b111_1111_1111_0010
"""Landlock's rights over files but execute, read_file and read_dir: write, remove, make, refer and truncate."""

_LOAD, _EQUAL, _AT_LEAST, _SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _NO_SUCH_CALL = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38

_libc = ctypes.CDLL(None, use_errno=True)


def supported() -> str:
    """'' where programs can be confined, else what is missing."""
    if sys.platform != 'linux' or platform.machine() not in ARCHITECTURES:
        return f'{platform.system()} on {platform.machine()} is not Linux on {" or ".join(ARCHITECTURES)}'
    version = _libc.syscall(444, None, ctypes.c_size_t(0), 1)
    return '' if version >= LANDLOCK_VERSION else f'the kernel has Landlock {max(version, 0)}, {LANDLOCK_VERSION} is needed (Linux 6.2)'


def confine(*, seconds: int, memory: int, files: int, file_size: int) -> None:
    """Takes from this process, for good, all that the module's docstring says.

    Args:
      seconds: of processor time. memory, file_size: bytes. files: open at once.
    """
    import resource

    limits = {'CPU': seconds, 'AS': memory, 'NOFILE': files, 'FSIZE': file_size, 'CORE': 0}
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f'RLIMIT_{name}'), (limit, limit))
    _check(_libc.prctl(38, 1, 0, 0, 0), 'no_new_privs')
    _landlock()
    _check(_libc.syscall(CAPSET[_column()], struct.pack('Ii', 0x20080522, 0), bytes(24)), 'capset')
    _seccomp()


def _landlock() -> None:
    """Writing below the working directory, and to /dev/null, alone."""
    rules = _check(_libc.syscall(444, struct.pack('Q', WRITING), ctypes.c_size_t(8), 0), 'landlock')
    for path, rights in (('.', WRITING), ('/dev/null', 1 << 1)):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _check(_libc.syscall(445, rules, 1, struct.pack('=Qi', rights, place), 0), 'landlock rule')
        os.close(place)
    _check(_libc.syscall(446, rules, 0), 'landlock')
    os.close(rules)


def _seccomp() -> None:
    column = _column()
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, ARCHITECTURES[platform.machine()]), (_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]  # calls of x86's third interface
    for numbers in DENIED.values():
        if numbers[column] >= 0:
            code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _REFUSE)]
    code += [(_EQUAL, 0, 1, CLONE3[column]), (_RETURN, 0, 0, _NO_SUCH_CALL)]  # libc takes clone then, whose flags a filter can see
    for numbers in OWN.values():
        code += _unless(numbers[column], (_EQUAL, os.getpid()))
    code += _unless(CLONE[column], (_SET, 0x10000))  # a thread
    code += _unless(PRLIMIT[column], (_EQUAL, 0))  # itself
    code.append((_RETURN, 0, 0, _ALLOW))
    packed = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *each) for each in code))
    program = struct.pack('HxxxxxxP', len(code), ctypes.addressof(packed))
    _check(_libc.prctl(22, 2, program, 0, 0), 'seccomp')


def _column() -> int:
    """Where this machine's numbers stand."""
    return list(ARCHITECTURES).index(platform.machine())


def _unless(call: int, test: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Refuses the call unless its first argument passes the test; what is not this call goes on behind."""
    operation, value = test
    return [(_EQUAL, 0, 4, call), (_LOAD, 0, 0, 16), (operation, 0, 1, value), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f'{what}: {os.strerror(ctypes.get_errno())}')
    return result


def main() -> None:
    """stdin: {'program', 'word', 'limits'}; the word goes to the descriptor in argv once the program has come to its end."""
    told = json.load(sys.stdin)
    confine(**told['limits'])
    names = {'__name__': '__main__', '__builtins__': __builtins__}
    exec(compile(told['program'], 'program.py', 'exec'), names)
    os.write(int(sys.argv[1]), told['word'].encode())


if __name__ == '__main__':
    main()
