"""Tokenizers made comparable: bytes of tokens, tables between vocabularies, aligned rows."""
