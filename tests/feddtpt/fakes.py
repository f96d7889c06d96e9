"""A small masked language model of known words, and black boxes that are Python functions."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.feddtpt.black_box import Reply
from fedfuse.feddtpt.label_tasks import LabelledExample, Task
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.http_service import ServiceError
from fedfuse.tokenizers.tokenizer import TextTokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(
    "please read the text below and then answer judge name its mood feeling topic colour size with "
    "a word letter number red blue good bad cold warm big small of in by as or for now just".split()
)


def transformers_tokenizer() -> PreTrainedTokenizerFast:
    """A word a token."""
    vocabulary = {word: number for number, word in enumerate((*SPECIALS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    roles = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIALS, strict=True))
    fast: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = fast(
        tokenizer_object=tokenizer, **{f"{role}_token": token for role, token in roles.items()}
    )
    return wrapped


def subword_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Of one of the built-in kinds, with a mask token and RoBERTa's frame."""
    texts = [
        "read the text below and answer",
        "the reading of texts",
        "answering below the mood",
        "moody reader",
    ] * 3
    tokenizer: Any = train_tokenizer(kind, 340, texts)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    fast: PreTrainedTokenizerFast = tokenizer
    return fast


def bert(vocab_size: int) -> BertForMaskedLM:
    """A random one, the same each time; its head has a few rows more than there are tokens."""
    config = BertConfig(
        vocab_size=vocab_size + 3,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForMaskedLM(config).eval()


@cache
def masked_lm() -> MaskedLM:
    """The random model over ``WORDS``."""
    tokenizer = TextTokenizer.from_pretrained(transformers_tokenizer())
    return MaskedLM(bert(tokenizer.vocab_size), tokenizer, "random")


class Function:
    """A ``Backend`` whose answers are a function's, and which remembers all it was asked."""

    def __init__(
        self,
        function: Callable[[str], str],
        *,
        batch_size: int = 4,
        concurrency: int = 1,
        tokens: Callable[[str], int] = lambda text: 3,
        trouble: Callable[[int], ServiceError | None] = lambda call: None,
    ) -> None:
        """``trouble`` is what happens at call 0, 1, 2, ..., if anything."""
        self.name = "function"
        self.batch_size = batch_size
        self.concurrency = concurrency
        self.asked: Counter[str] = Counter()
        self.sizes: list[int] = []
        self._function = function
        self._tokens = tokens
        self._trouble = trouble
        self._mutex = threading.Lock()

    def most_tokens(self, text: str) -> int:
        return 10

    def ask(self, texts: Sequence[str]) -> list[Reply]:
        with self._mutex:
            call = len(self.sizes)
            self.sizes.append(len(texts))
            self.asked.update(texts)
        if (error := self._trouble(call)) is not None:
            raise error
        return [Reply(self._function(text), self._tokens(text)) for text in texts]


MOOD = Task("mood", {"good": ["good"], "bad": ["bad"]}, "{prompt} | {input} =>")
EXAMPLES = tuple(LabelledExample(f"item {i}", ("good", "bad")[i % 2]) for i in range(24))
# What each word of a prompt is worth to the model that ``understands``.
WORTH = {"mood": 10, "feeling": 6, "judge": 4, "word": 3, "please": -2, "colour": -6}


def understands(question: str) -> str:
    """Answers the more of ``EXAMPLES`` rightly, the better the prompt's words are."""
    prompt, _, item = question.removesuffix(" =>").partition(" | item ")
    number = int(item)
    skill = 4 + sum(WORTH.get(word, 0) for word in set(prompt.split()))
    labels = ("good", "bad")
    # An order of difficulty that has nothing to do with the label.
    return labels[number % 2 if number * 7 % 24 < skill else 1 - number % 2]
