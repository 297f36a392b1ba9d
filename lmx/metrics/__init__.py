"""Thin wrappers over the reference scorers, one file each: (predictions, references) -> {name: value}."""

from lmx.metrics import compression, correlation

__all__ = ['compression', 'correlation']
