"""Tokenizers of three public kinds, trained on the spot, and one of given words."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

# bos, eos, pad, unk: ids 0 to 3 in every built-in tokenizer.
SPECIALS = ("<s>", "</s>", "<pad>", "<unk>")
BOS, EOS, PAD, MASK = 0, 1, 2, 4  # a mask only in the tokenizer of a masked model


def train_tokenizer(kind: str, vocab_size: int, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of one kind on texts.

    The same texts give the same tokenizer. (A unigram one only if there is room for more than
    single characters: rare ones that did not find any get their scores in no certain order.)

    Args:
        kind: one of ``KINDS``.
        vocab_size: upper bound of the vocabulary, special tokens included.
        texts: training texts.
    """
    return _with_roles(_TRAINED[kind](vocab_size, texts))


def word_level_tokenizer(words: Sequence[str], *, masked: bool) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are whole words between spaces.

    Args:
        words: all that it knows, each once.
        masked: with a mask token, and bos and eos around a text, as BERT's ``[CLS]``, ``[SEP]``.
    """
    bos, eos, _, unk = SPECIALS
    specials = (*SPECIALS, "<mask>") if masked else SPECIALS
    ids = {word: number for number, word in enumerate((*specials, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(specials))
    if not masked:
        return _with_roles(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, BOS), (eos, EOS)]
    )
    return _with_roles(tokenizer, cls_token=bos, sep_token=eos, mask_token=specials[MASK])


def _with_roles(tokenizer: Tokenizer, **more: str) -> PreTrainedTokenizerFast:
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    roles = dict(zip(names, SPECIALS, strict=True)) | more
    fast: Any = PreTrainedTokenizerFast  # untyped
    result: PreTrainedTokenizerFast = fast(tokenizer_object=tokenizer, **roles)
    return result


def _byte_level_bpe(vocab_size: int, texts: Sequence[str]) -> Tokenizer:
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(vocab_size: int, texts: Sequence[str]) -> Tokenizer:
    """SentencePiece's unigram kind, with its space marker."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        unk_token=SPECIALS[3],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    _add_frequent_words(tokenizer, texts, vocab_size)
    return tokenizer


def _add_frequent_words(tokenizer: Tokenizer, texts: Sequence[str], vocab_size: int) -> None:
    """Give whole words pieces of their own, up to the size wanted.

    The trainer only proposes substrings that two different words share, so on a small lexicon it
    never finds whole words, as SentencePiece does. It also sums in the order of a hash table; its
    scores are rounded, so that the last digits do not change from one training to the next.
    """
    counts = _words(tokenizer, texts)
    state = json.loads(tokenizer.to_str())
    pieces = [(piece, round(score, 6)) for piece, score in state["model"]["vocab"]]
    known = {piece for piece, _ in pieces}
    total = sum(counts.values())
    for word, count in counts.most_common():
        if len(pieces) < vocab_size and word not in known:
            pieces.append((word, math.log(count / total)))
    tokenizer.model = models.Unigram(pieces, state["model"]["unk_id"])


def _wordpiece(vocab_size: int, texts: Sequence[str]) -> Tokenizer:
    """BERT's kind, lower-casing."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIALS[3]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    # The trainer numbers characters inside words in the order of a hash table, and breaks ties
    # between merges by these numbers. As special tokens of a copy they have fixed ones.
    inside = sorted({f"##{c}" for word in _words(tokenizer, texts) for c in word[1:]})
    fuser = Tokenizer.from_str(tokenizer.to_str())
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIALS, *inside], show_progress=False
    )
    fuser.train_from_iterator(texts, trainer)
    tokenizer.model = models.WordPiece(fuser.get_vocab(), unk_token=SPECIALS[3])
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _words(tokenizer: Tokenizer, texts: Sequence[str]) -> Counter[str]:
    """Counts of the words of texts, as the tokenizer normalises and cuts them."""
    counts: Counter[str] = Counter()
    for text in texts:
        normalized = tokenizer.normalizer.normalize_str(text)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))
    return counts


_TRAINED = {"byte-level-bpe": _byte_level_bpe, "unigram": _unigram, "wordpiece": _wordpiece}
KINDS = tuple(_TRAINED)
