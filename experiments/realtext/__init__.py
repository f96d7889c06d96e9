"""The same exchange on real text with real tokenizers."""
