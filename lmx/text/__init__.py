"""Text to ids and back."""

from lmx.text.ids import Tokenizer, load
from lmx.text.pretrained import pretrained, save_pretrained
from lmx.text.tokenizers import bpe, byte_level, characters, unigram, wordpiece, words

__all__ = ['Tokenizer', 'bpe', 'byte_level', 'characters', 'load', 'pretrained', 'save_pretrained', 'unigram', 'wordpiece', 'words']
