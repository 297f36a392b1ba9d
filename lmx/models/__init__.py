"""One file per paper: a function with plain keywords that assembles parts of `lmx.nn`."""

from lmx.models.bart import bart
from lmx.models.bert import bert, distilbert, roberta
from lmx.models.bilstm import bilstm
from lmx.models.conv_seq2seq import conv_seq2seq
from lmx.models.dual_encoder import dual_encoder
from lmx.models.gemma2 import gemma2
from lmx.models.gpt import gpt
from lmx.models.llama import llama
from lmx.models.mistral import mistral
from lmx.models.mixtral import mixtral
from lmx.models.modernbert import modernbert
from lmx.models.qwen3 import qwen3
from lmx.models.rnn_lm import rnn_lm
from lmx.models.rnn_seq2seq import rnn_seq2seq
from lmx.models.skip_gram import skip_gram
from lmx.models.t5 import t5, t5_1_1
from lmx.models.text_cnn import text_cnn
from lmx.models.transformer import transformer

__all__ = [
    'bart',
    'bert',
    'bilstm',
    'conv_seq2seq',
    'distilbert',
    'dual_encoder',
    'gemma2',
    'gpt',
    'llama',
    'mistral',
    'mixtral',
    'modernbert',
    'qwen3',
    'rnn_lm',
    'rnn_seq2seq',
    'roberta',
    'skip_gram',
    't5',
    't5_1_1',
    'text_cnn',
    'transformer',
]
