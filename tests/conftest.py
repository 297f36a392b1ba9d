"""Eight simulated CPU devices and one compilation cache for all tests; what a test needs and the machine lacks, it skips with the reason."""

import gc
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Workers and other processes inherit what is set here: a program is compiled once per machine and not once per test.
    os.environ.setdefault('LMX_CACHE', str(config.cache.mkdir('lmx')))  # type: ignore[union-attr]
    if 'TFDS_DATA_DIR' not in os.environ:  # data sets are prepared once in a run of the tests, and anew in the next
        os.environ['TFDS_DATA_DIR'] = folder = tempfile.mkdtemp(prefix='lmx-data-')
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    import jax

    jax.config.update('jax_num_cpu_devices', 8)
    jax.config.update('jax_compilation_cache_dir', os.path.join(os.environ['LMX_CACHE'], 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
    # Tiny programs take longer to compile than to run, here and in subprocesses.
    jax.config.update('jax_disable_most_optimizations', True)
    os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
    _generate_code_quickly()


def _generate_code_quickly() -> None:
    """Where optimizations are off, by XLA's older code generator for CPUs, which compiles a gradient in a third of the time.

    JAX has no setting for it; where this function of JAX's is gone, tests take longer.
    """
    import jax
    from jax._src import compiler

    given: Any = getattr(compiler, 'get_compile_options', None)
    if given is not None:

        def quick(*args: Any, env_options_overrides: dict[str, Any] | None = None, **kwargs: Any) -> Any:
            more = {'xla_cpu_use_fusion_emitters': False} if jax.config.values['jax_disable_most_optimizations'] else {}
            return given(*args, env_options_overrides={**more, **(env_options_overrides or {})}, **kwargs)

        compiler.get_compile_options = quick


@pytest.fixture(scope='session')
def root() -> pathlib.Path:
    return pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='session')
def raw_data(root: pathlib.Path) -> pathlib.Path:
    """The folder of raw data sets, for tests marked real_data."""
    folder = pathlib.Path(os.environ.get('LMX_DATA', root.parent / 'shared' / 'data'))
    if not folder.is_dir():
        pytest.skip(f'no raw data in {folder}; set LMX_DATA')
    return folder


@pytest.fixture(scope='module', autouse=True)
def forgotten_programs() -> Iterator[None]:
    """Every module leaves its compiled programs behind: each has mappings of its own, and Linux ends a process that has 65,530 of them."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def optimized_where_it_matters(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs of tests marked `optimized` are those of users, and where bfloat16 rounds: fused operations round less often."""
    import jax

    quick = 'bfloat16' not in request.node.name and request.node.get_closest_marker('optimized') is None
    jax.config.update('jax_disable_most_optimizations', quick)
    yield
    jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(scope='module')
def one_device() -> Iterator[None]:
    """Of the eight of the tests: programs for several compile longer, and predictions are computed by each."""
    import jax

    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda *_: one)
        patch.setattr(jax, 'device_count', lambda *_: 1)
        yield
