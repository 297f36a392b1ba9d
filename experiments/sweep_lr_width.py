"""Learning rate x width on tinyshakespeare by characters, three seeds: how the best rate moves as a GPT gets wider (arXiv:2203.03466, figure 1).

    lmx sweep --study=experiments/sweep_lr_width.py --dry_run
    lmx sweep --study=experiments/sweep_lr_width.py --workdir=sweeps/lr_width

One program for each width. Needs input.txt (or input.txt.xz) of tinyshakespeare in $LMX_DATA/tinyshakespeare.

Measured on 2 CPU cores, 2026-11-27, validation loss after 300 updates, means of three seeds with 95 % intervals: at a rate of 0.008 width 32
has 2.54 (2.37 to 2.72), 64 2.374 (2.359 to 2.390) and 128 2.319 (2.248 to 2.390), its best. At 0.016 width 64 still has 2.379, but 128 only 2.66: the
wider, the sooner a rate is too high. The winner, trained again with fresh seeds, has 2.336 (2.277 to 2.395).
"""

from lmx.run.config import load
from lmx.study import Study, grid


def get_study() -> Study:
    base = load('configs/gpt_shakespeare_char.py')
    with base.unlocked():
        base.steps, base.samples = 300, ()
        base.optim.schedule.warmup_steps = 30
    points = grid({'model.dim': (32, 64, 128), 'optim.schedule.peak': (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)})
    return Study(base, points, metric='validation/loss', seeds=(0, 1, 2), fresh_seeds=(100, 101, 102))
