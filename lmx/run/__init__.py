"""One function per command: everything that `lmx` does, from Python."""

from lmx.report.page import write as report
from lmx.report.runs import find as runs
from lmx.run.attention import attention
from lmx.run.config import base, load, shrink
from lmx.run.convert import export_model, export_vectors, import_model
from lmx.run.data import data, prepare
from lmx.run.evaluate import evaluate
from lmx.run.explain import difference, explain
from lmx.run.finish import finish, table
from lmx.run.predict import predict
from lmx.run.search import Searcher, search
from lmx.run.train import train
from lmx.types import Preempted

__all__ = [
    'Preempted',
    'Searcher',
    'attention',
    'base',
    'data',
    'difference',
    'evaluate',
    'explain',
    'export_model',
    'export_vectors',
    'finish',
    'import_model',
    'load',
    'predict',
    'prepare',
    'report',
    'runs',
    'search',
    'shrink',
    'table',
    'train',
]
