"""What pre-training gains (Devlin et al. 2018): module classification by BERT from scratch, and from masked tokens first, over seeds.

    python experiments/pretraining.py runs/pretraining --seeds=3

Both sides have the same model, tokenizer, steps and seeds, and their best checkpoint by validation; the difference on test is paired by seed,
for all labels and for a tenth of them. Pre-training reads whole files without labels, the ones of the test functions among them. Run again,
it goes on where it was.

Measured on 2 cores, 2026-11-27, 114 test functions. With a tenth of the labels (112 functions): 0.822 pretrained and 0.785 from scratch, gain
+0.037, 95 % interval +0.017 to +0.056 over 6 seeds (+0.026, -0.031 to +0.084 over the first 3, after which 3 were added). With all: 0.918 and
0.927, -0.009, -0.047 to +0.029 over 3: nothing to gain where labels are enough. Some 3 minutes of pre-training, then 1 a training.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from lmx import run

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's quantile by the number of seeds."""

PERCENTS = (80, 8)
"""Of the functions, how many are trained on; the config's own is 80."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=pathlib.Path)
    parser.add_argument('--seeds', type=int, default=3, choices=range(2, 11))
    parser.add_argument('--arg', default='', help="of both configs, as 'debug'")
    options = parser.parse_args()
    first = options.folder / 'bert'
    run.train(run.load(f'configs/bert_stdlib.py:{options.arg}'), first)
    results = [compare(options.folder, first, percent, options.seeds, options.arg) for percent in PERCENTS]
    (options.folder / 'result.json').write_text(json.dumps(results, indent=1) + '\n')
    for result in results:
        means = f'pretrained {np.mean(result["pretrained"]):.4f}, from scratch {np.mean(result["scratch"]):.4f}'
        print(
            f'{result["percent"]} % of the functions: {means}, gain {result["gain"]:+.4f} ({result["low"]:+.4f} to {result["high"]:+.4f})'
        )


def compare(folder: pathlib.Path, first: pathlib.Path, percent: int, seeds: int, arg: str) -> dict[str, Any]:
    """Both sides, trained on so many percent of the functions: accuracies by seed, and the mean gain with its 95 % interval."""
    found: dict[str, list[float]] = {'scratch': [], 'pretrained': []}
    for seed in range(seeds):
        for name, accuracies in found.items():
            config = run.load(f'configs/classify_stdlib.py:init={first}' + (f',{arg}' if arg else ''))
            with config.unlocked(), config.ignore_type():
                config.seed = seed
                config.data.train.source.split = f'train[:{percent}%]'
                config.init = config.init if name == 'pretrained' else None
            workdir = folder / f'{name}-{percent}-{seed}'
            run.train(config, workdir)
            accuracies.append(run.evaluate(workdir, checkpoint='best', splits=['test'])['test']['accuracy'])
            print(f'{percent} %, {name}, seed {seed}: accuracy {accuracies[-1]:.4f}', flush=True)
    gains = np.subtract(found['pretrained'], found['scratch'])
    half = T_975[seeds] * gains.std(ddof=1) / np.sqrt(seeds)
    return {'percent': percent, **found, 'gain': float(gains.mean()), 'low': float(gains.mean() - half), 'high': float(gains.mean() + half)}


if __name__ == '__main__':
    main()
