"""Decoding: pure functions of a step callback, which know nothing of models."""
