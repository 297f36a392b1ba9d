"""Every family at a tiny size, with paths exercised: grouped heads, windows shorter than the text, tied and untied weights."""

from functools import partial

from lmx import models
from lmx.models.rnn_seq2seq import Multiplicative
from lmx.nn import heads
from lmx.nn.block import pre_norm
from lmx.nn.positions import Alibi, Llama3Scaling, Rotary, YarnScaling

V, D, L = 19, 16, 2
SMALL = {'vocab_size': V, 'dim': D, 'num_layers': L, 'num_heads': 4}
grouped = {**SMALL, 'num_kv_heads': 2, 'mlp_dim': 24}
seq2seq = {**SMALL, 'dropout_rate': 0.0}


def copying(*, mlp_dim, **keywords):
    """A Transformer with a pointer and BERT's encoder."""
    return models.transformer(**keywords, mlp_dim=mlp_dim, pointer=True, encoder=models.bert(**keywords))


DECODERS = {
    'gpt': partial(models.gpt, **SMALL, max_length=32),
    'gpt_alibi': partial(models.gpt, **SMALL, max_length=32, positions=Alibi(4), num_kv_heads=1, use_bias=False),
    'llama': partial(models.llama, **grouped),
    'llama3': partial(models.llama, **grouped, tied=True, positions=Rotary(500.0, Llama3Scaling(4.0, 8))),
    'yarn': partial(models.llama, **grouped, positions=Rotary(500.0, YarnScaling(4.0, 8))),
    'mistral': partial(models.mistral, **grouped, window=3),
    'qwen3': partial(models.qwen3, **grouped, head_dim=8),
    'gemma2': partial(models.gemma2, **{**grouped, 'num_layers': 4}, head_dim=8, windows=3),
    'mixtral': partial(models.mixtral, **grouped, num_experts=4),
}
"""Keywords -> a model that meets `lmx.types.Decoder`."""

ENCODERS = {
    'bert': partial(models.bert, **SMALL, max_length=32, dropout_rate=0.0, head=heads.masked_lm()),
    'roberta': partial(models.roberta, **SMALL, max_length=32, dropout_rate=0.0),
    'distilbert': partial(models.distilbert, **SMALL, max_length=32, dropout_rate=0.0),
    'modernbert': partial(models.modernbert, **{**SMALL, 'num_layers': 4}, mlp_dim=24, window=4),
}
"""Keywords -> a model that meets `lmx.types.Encoder`."""

SEQ2SEQ = {
    'transformer': partial(models.transformer, **seq2seq, mlp_dim=24),
    'pre_norm': partial(models.transformer, **seq2seq, mlp_dim=24, residual=pre_norm, target_vocab_size=V, num_decoder_layers=3),
    't5': partial(models.t5, **seq2seq, mlp_dim=24, head_dim=8, num_buckets=8, max_distance=12),
    't5_1_1': partial(models.t5_1_1, **seq2seq, mlp_dim=24, head_dim=8, num_decoder_layers=3),
    'pointer': partial(copying, **seq2seq, mlp_dim=24),
    'bart': partial(models.bart, **seq2seq, mlp_dim=24, max_length=32),
}
"""Keywords -> a model that meets `lmx.types.EncoderDecoder`."""

RECURRENT = {
    'elman': partial(models.rnn_lm, vocab_size=V, dim=D, num_layers=1, cell='elman'),
    'gru': partial(models.rnn_lm, vocab_size=V, dim=D, num_layers=2, cell='gru', hidden_dim=12, tied=False),
    'lstm': partial(models.rnn_lm, vocab_size=V, dim=D, num_layers=2, hidden_dim=12),
}
"""Decoders without attention."""

ONE_PAIR_A_ROW = {
    'rnn_additive': partial(models.rnn_seq2seq, vocab_size=V, dim=D, num_layers=2),
    'rnn_multiplicative': partial(
        models.rnn_seq2seq, vocab_size=V, dim=D, cell='lstm', attention=Multiplicative, tied=True, target_vocab_size=V
    ),
    'conv': partial(models.conv_seq2seq, vocab_size=V, dim=D, num_layers=2, max_length=32, dropout_rate=0.0),
}
"""Encoder-decoders that do not pack."""
