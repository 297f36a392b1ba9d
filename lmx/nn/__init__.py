"""Parts of models: pure functions first, thin Linen modules under them.

Parameters are float32. A part computes in the dtype of its input, so the embedding alone decides between float32 and bfloat16.
"""
