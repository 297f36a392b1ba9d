"""Text to ids and back."""

from lmx.text.tokenizers import Tokenizer, bpe, byte_level, characters, load, words

__all__ = ['Tokenizer', 'bpe', 'byte_level', 'characters', 'load', 'words']
