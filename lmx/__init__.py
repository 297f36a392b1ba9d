"""lmx: language-model research in JAX. One config is one run; one train step serves every family and task.

`from lmx import run` has a function for every command; importing lmx itself loads no JAX.
"""

__version__ = '0.1.0'
