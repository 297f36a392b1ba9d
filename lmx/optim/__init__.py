"""Optimizers by assembly: `optimizer(rule=adam(...), schedule=schedules.cosine(...), weight_decay=0.1)`."""

from lmx.optim import schedules
from lmx.optim.ema import eval_params
from lmx.optim.optimizers import learning_rate, optimizer
from lmx.optim.rules import adafactor, adam, lion, muon, sgd

__all__ = ['adafactor', 'adam', 'eval_params', 'learning_rate', 'lion', 'muon', 'optimizer', 'schedules', 'sgd']
