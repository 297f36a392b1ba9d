"""One file per paper: a function with plain keywords that assembles parts of `lmx.nn`."""

from lmx.models.gpt import gpt

__all__ = ['gpt']
