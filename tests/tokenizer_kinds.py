"""Small tokenizers of four public kinds, trained on the spot, and the real ones where they are."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fedfuse.knowledge.record import Knowledge
from fedfuse.tokenizers.tokenizer import ROLES, TextTokenizer

MATERIAL = Path(__file__).parents[2] / "shared" / "material" / "tokenizers"
REAL = ("gpt2", "llama2", "mistral_v3", "gpt_neox_pythia", "qwen", "bert_uncased")
KINDS = ("byte-level", "sentencepiece", "unigram", "wordpiece")
# Kinds whose tokens, put together, are the text.
LOSSLESS = ("byte-level", "sentencepiece")

SPECIALS = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
TEXTS = (
    "hello world",
    "The cat sat on the mat, and the dog did not.",
    "  two  leading and trailing  ",
    "Café au lait, naïve e\u0301lan",
    "prices: 12345 or 6.78\n\tnew line",
    "日本語のテキスト und 中文",
    "a😀b 👩\u200d👩\u200d👧 ok",
    "ﬁne ½ … ｱ",
    "</s> is text, so is <pad> and [MASK]",
)
_CORPUS = [*TEXTS, "the other hat of the other man", "she said hello to the world"] * 5


def texts_strategy(max_size: int = 24) -> st.SearchStrategy[str]:
    """Texts with everything that makes tokenizers disagree."""
    characters = st.sampled_from("abthe T,.!12  \n\té\u0301ﬁ½日本😀\u200d가ß▁")
    return st.text(characters, max_size=max_size) | st.text(max_size=8)


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIALS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _sentencepiece() -> Tokenizer:
    """Llama 2's kind: the byte tokens are in the vocabulary, and no added tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=list(SPECIALS.values()), show_progress=False
    )
    ascii_only = [text for text in _CORPUS if text.isascii()]
    tokenizer.train_from_iterator(ascii_only, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    spec = json.loads(tokenizer.to_str())
    vocabulary = spec["model"]["vocab"]
    # In front of the others, as in Llama 2: so the smaller id is not the token in use.
    shifted = {token: i + 256 if i > 3 else i for token, i in vocabulary.items()}
    spec["model"]["vocab"] = shifted | {f"<0x{byte:02X}>": byte + 4 for byte in range(256)}
    return Tokenizer.from_str(json.dumps(spec))


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=list(SPECIALS.values()),
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=160, special_tokens=list(SPECIALS.values()), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


_MAKERS = {
    "byte-level": _byte_level,
    "sentencepiece": _sentencepiece,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}


@pytest.fixture(scope="session")
def rust() -> dict[str, Tokenizer]:
    """The Rust library's tokenizers by kind."""
    return {kind: make() for kind, make in _MAKERS.items()}


@pytest.fixture(scope="session")
def tokenizers(rust: dict[str, Tokenizer]) -> dict[str, TextTokenizer]:
    """Small tokenizers by kind."""
    return {kind: TextTokenizer.from_json(t.to_str(), SPECIALS) for kind, t in rust.items()}


@pytest.fixture(scope="session", params=REAL)
def real(request: pytest.FixtureRequest) -> TextTokenizer:
    """A public tokenizer; skips by name where the material is absent."""
    folder = MATERIAL / request.param
    if not folder.is_dir():
        pytest.skip(f"no tokenizer {request.param} in ../shared/material/tokenizers")
    return load_real(request.param)


@cache
def load_real(name: str) -> TextTokenizer:
    """One of ``REAL`` with its special tokens."""
    folder = MATERIAL / name
    config = json.loads((folder / "tokenizer_config.json").read_text())
    specials = {role: config[f"{role}_token"] for role in ROLES if config.get(f"{role}_token")}
    return TextTokenizer.from_json((folder / "tokenizer.json").read_text(), specials)


def by_hand(kind: str, tokens: list[str], **specials: str) -> TextTokenizer:
    """A tokenizer with exactly these tokens, ids in order, of kind "byte-level" or "wordpiece"."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if kind == "wordpiece":
        model = models.WordPiece(vocabulary, unk_token=tokens[0])
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        tokenizer = Tokenizer(models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return TextTokenizer.from_json(tokenizer.to_str(), specials)


def random_knowledge(
    rows: int, vocab_size: int, offsets: np.ndarray, *, seed: int, k: int = 8
) -> Knowledge:
    """Knowledge of no model: in every row k different tokens, and some mass outside them."""
    rng = np.random.default_rng(seed)
    k = min(k, vocab_size)
    # Steps that together stay below the size of the vocabulary, so no token comes twice.
    steps = rng.integers(1, vocab_size // k + 1, (rows, k)).cumsum(axis=1)
    indices = (rng.integers(0, vocab_size, (rows, 1)) + steps) % vocab_size
    mass = rng.dirichlet(np.full(k + 1, 0.5), rows)
    mass[:, :k] = -np.sort(-mass[:, :k], axis=1)
    logs = np.log(np.maximum(mass, 1e-30)).astype(np.float32)
    return Knowledge(
        offsets=offsets,
        indices=indices,
        logprobs=logs[:, :k],
        tail_logprob=logs[:, k],
        label_logprob=logs[:, 0],
        label_bytes=np.ones(len(offsets) - 1, dtype=np.int64),
        tokenizer="teacher",
        public="samples",
    )
