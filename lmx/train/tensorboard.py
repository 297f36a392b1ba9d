"""Numbers for TensorBoard: its event file is protocol buffers of three shapes in TFRecord frames, too little to load a library for."""

from __future__ import annotations

import os
import pathlib
import socket
import struct
import time

import numpy as np


class Events:
    """An event file.

    Args:
      folder: where it goes; made if it is missing.
      purge_step: TensorBoard forgets what earlier files of the folder say from this step on; None = nothing.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}', 'wb')  # noqa: SIM115
        self._write(0, _bytes(3, b'brain.Event:2'))
        if purge_step is not None:
            self._write(purge_step, _bytes(7, b'\x08\x01'))  # SessionLog(status=START)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        with np.errstate(over='ignore'):  # a perplexity may pass float32's largest
            number = np.asarray(value, '<f4').tobytes()
        self._write(step, _bytes(5, _bytes(1, _bytes(1, tag.encode()) + b'\x15' + number)))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, what: bytes) -> None:
        event = b'\x09' + struct.pack('<d', time.time()) + b'\x10' + _varint(step) + what
        length = struct.pack('<Q', len(event))
        self._file.write(length + _masked(length) + event + _masked(event))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _bytes(field: int, content: bytes) -> bytes:
    """A protocol buffer's field of bytes, text or another message."""
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _table() -> list[int]:
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)
        table.append(entry)
    return table


TABLE = _table()


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, which zlib does not have."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    """As TFRecord keeps a checksum: rotated and moved, so that data which holds checksums does not check itself."""
    crc = crc32c(data)
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
