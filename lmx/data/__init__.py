"""From records to `batch(step)`: sources, cleaning, token caches, packing, pipelines. Numpy and Grain; no JAX."""
