"""What the runner costs beside a bare loop, and our step beside the same GPT in PyTorch. Ratios, from interleaved repetitions in one run.

    python experiments/bench_train.py [--sizes=small,large,gpu] [--repeats=5] [--commands=0]

Prints: runner steps per second over a bare loop around the same jitted step; pipeline tokens per second, absolute and over what the step
consumes; our step against PyTorch, eager and compiled, on the same device; time to first step, cold and with a warm compilation cache;
`lmx --help` (`--commands=0` leaves out these last ones). `gpu` is nanoGPT's GPU setting, in bfloat16; the others are in float32.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIZES = {
    'small': {'dim': 128, 'num_layers': 4, 'num_heads': 4, 'max_length': 64, 'batch_size': 12, 'vocab_size': 65},
    'large': {'dim': 384, 'num_layers': 6, 'num_heads': 6, 'max_length': 256, 'batch_size': 8, 'vocab_size': 65},
    'gpu': {'dim': 384, 'num_layers': 6, 'num_heads': 6, 'max_length': 256, 'batch_size': 64, 'vocab_size': 65, 'dtype': 'bfloat16'},
}
STEPS = {'small': 300, 'large': 8, 'gpu': 100}  # enough that the first seconds of a process do not show


def medians(repeats: int, **variants: Callable[[], float]) -> dict[str, float]:
    """The median of each variant's figure over interleaved repetitions (A B A B ...), so that a noisy moment strikes all alike."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, measure in variants.items():
            found[name].append(measure())
    return {name: statistics.median(values) for name, values in found.items()}


def letters(vocab_size: int) -> pathlib.Path:
    """A file of a million random characters, about the size of tiny Shakespeare."""
    path = pathlib.Path(tempfile.gettempdir()) / f'lmx_bench_{os.getpid()}_{vocab_size}.txt'
    if not path.exists():
        path.write_bytes(np.random.default_rng(0).integers(33, 33 + vocab_size, 1_000_000).astype(np.uint8).tobytes())
    return path


def config(size: dict[str, Any], steps: int) -> Any:
    """The small GPT as a run's config, on generated text of the size of tiny Shakespeare."""
    from lmx import models, optim, tasks, text
    from lmx.data import sources
    from lmx.optim import schedules
    from lmx.run.config import base
    from lmx.spec import finish, ref, spec

    c = base()
    c.steps, c.batch_size = steps, size['batch_size']
    c.data = {'train': spec(sources.text_files, pattern=str(letters(size['vocab_size'])))}
    c.tokenizer = spec(text.characters, source=ref('data.train'))
    c.task = spec(tasks.language_modelling, tokenizer=ref('tokenizer'), max_length=size['max_length'])
    c.model = spec(
        models.gpt,
        vocab_size=ref('tokenizer.vocab_size'),
        **{key: size[key] for key in ('dim', 'num_layers', 'num_heads', 'max_length')},
        use_bias=False,
        dtype=size.get('dtype', 'float32'),
    )
    c.optim = spec(
        optim.optimizer, rule=spec(optim.adam, b2=0.99), schedule=spec(schedules.constant, peak=1e-3), weight_decay=0.1, clip_norm=1.0
    )
    c.every = {'log': 10, 'evaluate': 0, 'checkpoint': 0}
    c.evaluate = ()
    return finish(c)


def bare_loop(c: Any, steps: int) -> float:
    """Seconds per step of a plain loop around the runner's own jitted step, batches made beforehand."""
    import jax

    from lmx.run.parts import Parts
    from lmx.train import shard

    parts = Parts(c)
    batches = parts.train_batches()
    made = [shard.put_batch(batches(index), parts.mesh) for index in range(min(steps, 20))]
    state, step = parts.jitted_init()(parts.values), parts.jitted_train_step()
    state, _ = step(state, made[0], parts.values)
    jax.block_until_ready(state)
    start = time.perf_counter()
    for index in range(steps):
        state, _ = step(state, made[index % len(made)], parts.values)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / steps


def runner(c: Any) -> float:
    """Seconds per step of `lmx.train`, from its own log."""
    from lmx import run

    with tempfile.TemporaryDirectory() as folder:
        run.train(c, pathlib.Path(folder) / 'run')
        lines = [json.loads(line) for line in (pathlib.Path(folder) / 'run' / 'metrics.jsonl').read_text().splitlines()]
    return statistics.mean(line['step_seconds'] for line in lines[1:])  # the first interval holds the compilation


def pipeline_rate(c: Any, batches_to_read: int = 300) -> float:
    """Tokens per second of the training pipeline alone, one thread."""
    from lmx.run.parts import Parts

    parts = Parts(c)
    batches = parts.train_batches()
    batches(0)
    start = time.perf_counter()
    tokens = sum(batches(index)['targets'].size for index in range(1, batches_to_read + 1))
    return tokens / (time.perf_counter() - start)


def torch_step(size: dict[str, Any], steps: int, compiled: bool) -> Callable[[], float]:
    """Seconds per step of the same GPT in PyTorch."""
    import jax
    import torch

    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import torch_gpt

    torch.manual_seed(0)
    device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
    dtype = getattr(torch, size.get('dtype', 'float32'))
    sizes = {key: size[key] for key in size if key not in ('batch_size', 'dtype')}
    step = torch_gpt.make_step(**sizes, compiled=compiled, device=device, dtype=dtype)
    tokens = torch.randint(0, size['vocab_size'], (size['batch_size'], size['max_length'] + 1), device=device)
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None

    def measure() -> float:
        step(tokens[:, :-1], tokens[:, 1:])
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            step(tokens[:, :-1], tokens[:, 1:])
        wait()
        return (time.perf_counter() - start) / steps

    return measure


def first_step(cache: str) -> float:
    """Seconds from the command to the first logged step of a new process."""
    root = pathlib.Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        args = ['train', '--config=configs/gpt_stdlib.py', f'--workdir={folder}/run', '--config.every.log=1', '--config.steps=400']
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, '-m', 'lmx.cli', *args],
            cwd=root,
            env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': cache},
            stderr=subprocess.DEVNULL,
        )
        metrics = pathlib.Path(folder) / 'run' / 'metrics.jsonl'
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        process.terminate()
        process.wait()
    return seconds


def help_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, '-m', 'lmx.cli', '--help'], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:  # as `lmx train` starts itself; PyTorch neither gains nor loses
        os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
        os.execv(sys.executable, [sys.executable, *sys.argv])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', default='small,large')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--commands', type=int, default=1)
    options = parser.parse_args()
    for name in options.sizes.split(','):
        size = SIZES[name]
        steps = STEPS[name]
        c = config(size, steps + 10)
        found = medians(options.repeats, bare=functools.partial(bare_loop, c, steps), runner=functools.partial(runner, c))
        print(
            f'{name}: bare loop {found["bare"] * 1e3:.1f} ms, runner {found["runner"] * 1e3:.1f} ms, runner / bare speed {found["bare"] / found["runner"]:.3f}'
        )
        rate, eaten = pipeline_rate(c), size['batch_size'] * size['max_length'] / found['bare']
        print(f'{name}: pipeline {rate / 1e6:.1f} M tokens/s, {rate / eaten:.0f} times what the step consumes')
        peers = {'eager': torch_step(size, steps, False), 'compiled': torch_step(size, steps, True)}
        found = medians(options.repeats, ours=functools.partial(bare_loop, c, steps), **peers)
        ratios = ', '.join(f'PyTorch {peer} {found[peer] * 1e3:.1f} ms (ours / theirs {found["ours"] / found[peer]:.2f})' for peer in peers)
        print(f'{name}: our step {found["ours"] * 1e3:.1f} ms; {ratios}')
    if not options.commands:
        return
    with tempfile.TemporaryDirectory() as cache:
        print(f'time to first step: cold {first_step(cache):.1f} s, warm {statistics.median(first_step(cache) for _ in range(3)):.1f} s')
    print(f'lmx --help: {statistics.median(help_seconds() for _ in range(options.repeats)):.3f} s')


if __name__ == '__main__':
    main()
