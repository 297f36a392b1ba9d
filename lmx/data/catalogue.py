"""Data sets by name, prepared where they are not yet, and every way in which that can fail said in one line before TFDS tries the network."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.util
import io
import pathlib
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from lmx.spec import nearest
from lmx.types import BadInput

OURS = 'lmx:'


def prepared(name: str, data_dir: str | None, manual_dir: str | None) -> Any:
    """The TFDS builder of a data set whose data is on disk.

    Raises:
      BadInput: see `lmx.data.sources.tfds`.
    """
    builder = _builder(name, data_dir)
    if not builder.is_prepared():
        settings = _preparation(builder, name, manual_dir)
        with _alone(str(builder.data_dir)):
            builder = _builder(name, data_dir)  # once more: another process may have prepared it while this one waited
            if not builder.is_prepared():
                _prepare(builder, name, settings)
    form = builder.info.file_format.value if builder.info.file_format is not None else 'array_record'
    if form != 'array_record':
        why = 'from which TFDS drops rows' if form == 'parquet' else 'which has no random access'
        raise BadInput(
            f'{builder.data_dir} is in {form} format, {why}; delete it or give another data_dir, where lmx prepares it as array_record'
        )
    return builder


def our_names() -> list[str]:
    """The data sets that lmx ships builders for."""
    folder = pathlib.Path(__file__).parent / 'datasets'
    return sorted(path.stem for path in folder.glob('*.py') if path.stem != '__init__')


def _builder(name: str, data_dir: str | None) -> Any:
    return _ours(name.removeprefix(OURS), data_dir) if name.startswith(OURS) else _theirs(name, data_dir)


def _ours(name: str, data_dir: str | None) -> Any:
    module, _, config = name.partition('/')
    if module not in our_names():
        raise BadInput(f'there is no data set {OURS + module!r}{nearest(module, our_names())}; there are {", ".join(our_names())}')
    return importlib.import_module(f'lmx.data.datasets.{module}').builder(config or None, data_dir=data_dir, file_format='array_record')


def _theirs(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as catalogue

    base = name.partition('/')[0].partition(':')[0]
    with contextlib.suppress(catalogue.core.DatasetNotFoundError):  # what another machine prepared needs no code, and no TensorFlow
        return catalogue.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    known = catalogue.list_builders(with_community_datasets=False)
    if base not in known:
        if _ships(base):
            raise BadInput(f"data set {base!r} needs TensorFlow to be prepared; `pip install 'lmx[tf]'`")
        near = nearest(base, [*known, *(OURS + ours for ours in our_names())])
        raise BadInput(f'there is no data set {base!r} in the TFDS catalogue{near}; for files of your own see lmx.data.sources')
    try:
        builder = catalogue.builder(name, data_dir=data_dir, file_format='array_record')
    except (ImportError, AttributeError) as error:
        raise BadInput(f"data set {base!r} needs TensorFlow ({error}); `pip install 'lmx[tf]'`") from None
    except ValueError as error:
        raise BadInput(f'data set {name!r}: {" ".join(str(error).split())[:300]}') from None
    return builder


def _ships(name: str) -> bool:
    """Whether TFDS has a builder class for a data set that it does not list here, which it leaves out where TensorFlow is missing."""
    found = importlib.util.find_spec('tensorflow_datasets')
    root = pathlib.Path(found.origin).parent if found and found.origin else pathlib.Path('.')
    declared = f'class {"".join(part.capitalize() for part in name.split("_"))}('
    if any(True for _ in root.glob(f'**/{name}_dataset_builder.py')):
        return True
    return any(declared in path.read_text(errors='ignore') for path in root.rglob('*.py') if not path.name.endswith('_test.py'))


def _preparation(builder: Any, name: str, manual_dir: str | None) -> Any:
    """How the data set is to be prepared, after everything that can be known to fail."""
    import tensorflow_datasets as catalogue

    folder = pathlib.Path(manual_dir).expanduser() if manual_dir else pathlib.Path(builder.data_dir) / 'manual'
    wanted = getattr(builder, 'MANUAL_FILES', None)
    if wanted:
        missing = [file for file in wanted if not any((folder / (file + suffix)).exists() for suffix in ('', '.xz', '.gz'))]
        if missing:
            raise BadInput(
                f'data set {name!r} needs {", ".join(missing)} (or .xz, .gz) in {folder}; {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}'
            )
    elif getattr(builder, 'MANUAL_DOWNLOAD_INSTRUCTIONS', None) and not folder.is_dir():
        text = ' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())[:300]
        raise BadInput(f'data set {name!r} needs raw files in manual_dir ({folder} does not exist): {text}')
    elif not name.startswith(OURS) and not online('https://storage.googleapis.com'):
        raise BadInput(
            f'data set {name!r} is not prepared in {builder.data_dir}, and there is no network; run `lmx data --prepare` where there is one'
        )
    return catalogue.download.DownloadConfig(manual_dir=str(folder), try_download_gcs=False)


@contextlib.contextmanager
def _alone(data_dir: str) -> Iterator[None]:
    """Whoever else prepares the same folder waits: TFDS ends all but the first of those that come to write it at once."""
    if '://' in data_dir:  # storage without locks
        yield
        return
    folder = pathlib.Path(data_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f'.{folder.name}.lock', 'w') as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _prepare(builder: Any, name: str, settings: Any) -> None:
    import tensorflow_datasets as catalogue

    print(f'preparing data set {name} in {builder.data_dir}', file=sys.stderr)
    catalogue.disable_progress_bar()  # it would draw five bars
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=settings, file_format='array_record')


def online(url: str) -> bool:
    """Whether a connection to the host of `url`, or to the proxy for it, opens; answers in seconds, where libraries retry for minutes."""
    proxies, host = urllib.request.getproxies(), urllib.parse.urlsplit(url)
    if host.scheme in proxies and not urllib.request.proxy_bypass(host.hostname or ''):
        proxy = proxies[host.scheme]
        host = urllib.parse.urlsplit(proxy if '//' in proxy else f'//{proxy}')
    try:
        with socket.create_connection((host.hostname, host.port or (80 if host.scheme == 'http' else 443)), timeout=3):
            return True
    except OSError:
        return False
