"""Many trainings in one program beside a run for each: wall time with start-up and compilation, time of an update, memory.

    python experiments/bench_sweep.py [--sizes=tiny,small] [--trials=16] [--steps=200] [--repeats=5] [--commands=0]

The same learning rates, data and seeds are trained by `lmx sweep --executor=vmap`, by `lmx train` one after the other, and within one process
by one compiled step that takes the learning rate as an argument. All begin with an empty compilation cache and with prepared data.
`--commands=0` leaves the commands out, which take minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

SIZES = {'tiny': {'dim': 44, 'num_layers': 4, 'num_heads': 4}, 'small': {'dim': 128, 'num_layers': 4, 'num_heads': 4}}
LENGTH, BATCH = 64, 12


def get_config(arg: str = '') -> Any:
    """nanoGPT's CPU setting on a million random characters; `:size=tiny` has 0.1 M parameters, `small` 0.8 M."""
    from lmx import models, optim, tasks, text
    from lmx.data import sources
    from lmx.optim import schedules
    from lmx.run.config import base
    from lmx.spec import parse_arg, ref, spec

    a = parse_arg(arg, size='small', steps=200)
    c = base()
    c.steps, c.batch_size = a.steps, BATCH
    c.data = {split: spec(sources.text_files, pattern=str(letters(split))) for split in ('train', 'validation')}
    c.tokenizer = spec(text.characters, source=ref('data.train'))
    c.task = spec(tasks.language_modelling, tokenizer=ref('tokenizer'), max_length=LENGTH)
    c.model = spec(models.gpt, vocab_size=ref('tokenizer.vocab_size'), **SIZES[a.size], max_length=LENGTH, use_bias=False)
    c.optim = spec(
        optim.optimizer, rule=spec(optim.adam, b2=0.99), schedule=spec(schedules.constant, peak=1e-3), weight_decay=0.1, clip_norm=1.0
    )
    c.every = {'log': 20, 'evaluate': 0, 'checkpoint': 0}
    return c


def get_study() -> Any:
    """`trials` learning rates of the size, both from the environment, as a study file has no argument."""
    from lmx.run.config import load
    from lmx.study import Study, grid

    size, trials, steps = (os.environ[f'BENCH_{name}'] for name in ('SIZE', 'TRIALS', 'STEPS'))
    return Study(load(f'{__file__}:size={size},steps={steps}'), grid({'optim.schedule.peak': tuple(rates(int(trials)))}))


def rates(trials: int) -> list[float]:
    return [float(f'{rate:.4g}') for rate in np.geomspace(1e-4, 1e-2, trials)]


def letters(split: str) -> pathlib.Path:
    """A file of random characters, for training about the size of tiny Shakespeare."""
    path = pathlib.Path(tempfile.gettempdir()) / f'lmx_bench_sweep_{split}.txt'
    if not path.exists():
        draw = np.random.default_rng(len(split))
        path.write_bytes(draw.integers(33, 98, 1_000_000 if split == 'train' else 20_000).astype(np.uint8).tobytes())
    return path


def lmx(*args: str, cache: pathlib.Path, **env: str) -> float:
    """Seconds of a command."""
    begun = time.perf_counter()
    own = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cache), **env}
    done = subprocess.run([sys.executable, '-m', 'lmx.cli', *args], env=own, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'lmx {" ".join(args)}: {done.stderr[-2000:]}')
    return time.perf_counter() - begun


def whole(size: str, trials: int, steps: int) -> tuple[float, float]:
    """(seconds of one sweep, seconds of as many runs), everything counted."""
    folder = pathlib.Path(tempfile.mkdtemp())
    env = {'BENCH_SIZE': size, 'BENCH_TRIALS': str(trials), 'BENCH_STEPS': str(steps)}
    try:
        packed = lmx('sweep', f'--study={__file__}', f'--workdir={folder / "sweep"}', cache=folder / 'a', **env)
        alone = 0.0
        for number, rate in enumerate(rates(trials)):
            config = [f'--config={__file__}:size={size},steps={steps}', f'--config.optim.schedule.peak={rate}']
            alone += lmx('train', *config, f'--workdir={folder / str(number)}', cache=folder / 'b')
        check(folder, trials)
        return packed, alone
    finally:
        shutil.rmtree(folder)


def check(folder: pathlib.Path, trials: int) -> None:
    """Both have trained the same: the last losses agree to rounding, where the rate does not let rounding grow."""
    for number in range(0, trials, max(trials // 4, 1)):
        places = folder / 'sweep' / 'trials' / f'{number:04d}-s0', folder / str(number)
        ours, theirs = (json.loads((place / 'metrics.jsonl').read_text().splitlines()[-1])['loss'] for place in places)
        assert abs(ours - theirs) < 5e-3, (number, ours, theirs)


def updates(size: str, trials: int, repeats: int) -> tuple[float, float, int, int]:
    """(seconds of an update of one training in the population, alone; bytes of one in the population, alone), interleaved medians."""
    import jax

    from lmx import spec, study
    from lmx.run import groups
    from lmx.run.parts import Parts
    from lmx.run.sweep import use_cores
    from lmx.sweep.population import Population

    os.environ |= {'BENCH_SIZE': size, 'BENCH_TRIALS': str(trials), 'BENCH_STEPS': '200'}
    of = get_study()
    use_cores(of.base)
    config, own, members = groups.grouped(of, study.trials(of), groups.own_paths(of, study.trials(of)))[0]
    group = groups.group(of, config, own)
    population = Population(group.program, len(members))
    values = {path: np.array([spec.get(study.config_of(of, trial), path) for trial in members], np.float32) for path in own}
    slots = population.fill(None, np.ones(trials, bool), values, np.zeros(trials, np.int32))
    batch = {name: np.stack([array] * trials) for name, array in group.batches(0)(0).items()}
    given = population.put(batch), population.put(values)
    parts = Parts(config, devices=jax.devices()[:1])
    step, one = parts.jitted_train_step(), jax.device_put(group.batches(0)(0), jax.devices()[0])
    state = parts.jitted_init()(parts.values)
    memory = parts.jitted_train_step(lower=True)(parts.abstract_state(), parts.batch_shapes, parts.values).compile().memory_analysis()
    alone_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes
    ours, theirs = [], []
    for repeat in range(repeats + 1):
        begun = time.perf_counter()
        for _ in range(3):
            slots, sums = population.step(slots, *given)
        jax.block_until_ready(sums)
        middle = time.perf_counter()
        for _ in range(3 * trials):
            state, sums = step(state, one, parts.values)
        jax.block_until_ready(sums)
        if repeat:  # the first has compiled
            ours.append((middle - begun) / 3 / trials)
            theirs.append((time.perf_counter() - middle) / 3 / trials)
    return statistics.median(ours), statistics.median(theirs), population.bytes_of_slot(batch, values), alone_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', default='tiny,small')
    parser.add_argument('--trials', type=int, default=16)
    parser.add_argument('--steps', type=int, default=200)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--commands', type=int, default=1)
    options = parser.parse_args()
    for size in options.sizes.split(','):
        ours, theirs, mine, single = updates(size, options.trials, options.repeats)
        one = f'{size}: an update of one of {options.trials} trainings {ours * 1e3:.2f} ms'
        print(f'{one}, alone with one compilation {theirs * 1e3:.2f} ms: {theirs / ours:.2f} times')
        print(f'{size}: memory of one {mine / 1e6:.1f} MB, alone {single / 1e6:.1f} MB', flush=True)
        if not options.commands:
            continue
        packed, alone = whole(size, options.trials, options.steps)
        print(f'{size}: lmx sweep {packed:.0f} s, {options.trials} x lmx train {alone:.0f} s: {alone / packed:.2f} times', flush=True)


if __name__ == '__main__':
    main()
