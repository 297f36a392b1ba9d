"""The source code of this machine's own Python standard library: a corpus that every machine has.

`text`: whole files. `functions`: functions and their docstrings, apart from each other. Files, not lines, are split into train, validation
and test, by a hash of their path. The prepared data is named by Python version and file list, so another Python prepares its own.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import pathlib
import platform
import re
import sysconfig
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

LEFT_OUT = {
    'site-packages',
    'dist-packages',
    'test',
    'tests',
    'idlelib',
    'lib2to3',
    'idle_test',
    '__pycache__',
    'turtledemo',
    'pydoc_data',
    'ensurepip',
}
SHARES = (('train', 90), ('validation', 95), ('test', 100))
WORDS, LINES = (3, 60), (3, 61)


@functools.cache
def files() -> tuple[str, ...]:
    """Paths of the corpus's files, relative to the standard library, sorted."""
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    found = (path.relative_to(root) for path in root.rglob('*.py') if path.stat().st_size)
    return tuple(sorted(path.as_posix() for path in found if not LEFT_OUT & set(path.parts) and 'config-' not in path.as_posix()))


@functools.cache
def tag() -> str:
    """Python version and a hash of the files' names and sizes."""
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    listing = '\n'.join(f'{path} {(root / path).stat().st_size}' for path in files())
    return f'{platform.python_version().replace(".", "_")}_{hashlib.blake2b(listing.encode(), digest_size=4).hexdigest()}'


def split_of(path: str) -> str:
    """The split that a file belongs to, the same on every machine."""
    share = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=4).digest(), 'little') % 100
    return next(name for name, below in SHARES if share < below)


class PythonStdlib(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """See the module."""

    name = 'python_stdlib'
    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> Any:
        fields = (
            ('code', 'docstring', 'name', 'module', 'path')
            if self.builder_config.name.startswith('functions')
            else ('text', 'module', 'path')
        )
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({field: tfds.features.Text() for field in fields}))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(name) for name, _ in SHARES}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, str]]]:
        root = pathlib.Path(sysconfig.get_path('stdlib'))
        for path in files():
            if split_of(path) != split:
                continue
            try:
                text = (root / path).read_bytes().decode()
            except UnicodeDecodeError:  # a few files declare another encoding
                continue
            module = path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
            if self.builder_config.name.startswith('text'):
                yield path, {'text': text, 'module': module, 'path': path}
            else:
                for line, record in functions(text):
                    yield f'{path}:{line}', {**record, 'module': module, 'path': path}


def functions(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {'code' without its docstring, 'docstring', 'name'}) of the functions of a source file that are neither tiny nor long."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    rows = re.split(r'\r\n|\r|\n', text)  # as Python counts lines; str.splitlines would also count form feeds
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or len(node.body) < 2:
            continue
        docstring, first = ast.get_docstring(node), node.body[0]
        if first.lineno == node.lineno or node.body[1].lineno == first.end_lineno:  # `def f(): 'doc'; ...` shares a line with code
            continue
        if not docstring or not WORDS[0] <= len(docstring.split()) <= WORDS[1]:
            continue
        kept = rows[node.lineno - 1 : first.lineno - 1] + rows[first.end_lineno : node.end_lineno]
        indent = len(kept[0]) - len(kept[0].lstrip())
        if LINES[0] <= len(kept) <= LINES[1]:
            code = '\n'.join(row[indent:] if not row[:indent].strip() else row for row in kept)
            yield node.lineno, {'code': code, 'docstring': docstring, 'name': node.name}


def builder(config: str | None, **kwargs: Any) -> Any:
    """The builder for 'text' (default) or 'functions'.

    Raises:
      BadInput: another config.
    """
    from lmx.types import BadInput

    config = config or 'text'
    if config not in ('text', 'functions'):
        raise BadInput(f'python_stdlib has no config {config!r}; there are text, functions')
    return PythonStdlib(
        config=tfds.core.BuilderConfig(name=f'{config}_{tag()}', description=f'Python {platform.python_version()}'), **kwargs
    )
