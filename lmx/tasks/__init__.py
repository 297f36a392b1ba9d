"""One file per task; a task is a record of functions (`lmx.types.Task`)."""

from lmx.tasks.language_modelling import language_modelling

__all__ = ['language_modelling']
