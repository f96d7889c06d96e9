"""Fixtures of tokenizers of several kinds."""

from tests.tokenizer_kinds import real as real
from tests.tokenizer_kinds import rust as rust
from tests.tokenizer_kinds import tokenizers as tokenizers
