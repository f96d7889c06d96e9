"""Proposals, embeddings and text of masked language models of two kinds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertModel, RobertaConfig, RobertaForMaskedLM

from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.feddtpt.prompt import Prompt
from fedfuse.tokenizers.tokenizer import TextTokenizer
from tests.feddtpt.fakes import WORDS, bert, masked_lm, subword_tokenizer, transformers_tokenizer

TEXT = "read the text below and answer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlm")
    tokenizer = transformers_tokenizer()
    tokenizer.save_pretrained(path)
    bert(len(tokenizer)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> MaskedLM:
    """Byte-level BPE, other special tokens, positions that begin elsewhere; from a folder."""
    path = tmp_path_factory.mktemp("roberta")
    tokenizer = subword_tokenizer("byte-level-bpe")
    tokenizer.save_pretrained(path)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=30,
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        RobertaForMaskedLM(config).save_pretrained(path)
    return MaskedLM.load(str(path))


def framed(lm: MaskedLM, tokens: list[int]) -> torch.Tensor:
    ids = lm.tokenizer.special_ids
    first, last = (ids["cls"], ids["sep"]) if "cls" in ids else (ids["bos"], ids["eos"])
    return torch.tensor([[first, *tokens, last]])


def by_hand(lm: MaskedLM, tokens: list[int], position: int, barred: int) -> list[tuple[int, float]]:
    """Masked tokens in, all allowed tokens with their log-probabilities, in plain Python."""
    with torch.no_grad():
        logits = lm.model(input_ids=framed(lm, tokens)).logits[0, 1 + position].tolist()
    ids = [int(token) for token in lm.allowed if token != barred]
    total = math.log(sum(math.exp(logits[token]) for token in ids))
    return sorted(((token, logits[token] - total) for token in ids), key=lambda pair: -pair[1])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_proposals_are_those_of_the_plain_computation(kind: str, roberta: MaskedLM) -> None:
    lm = masked_lm() if kind == "bert" else roberta
    prompt = lm.encode(TEXT)
    tokens, mask = list(prompt.tokens), lm.tokenizer.special_ids["mask"]
    for position in range(len(tokens) + 1):
        wanted = by_hand(lm, [*tokens[:position], mask, *tokens[position:]], position, -1)
        ids, logprobs = lm.proposals(prompt, position, "insert", 7)
        assert ids.tolist() == [token for token, _ in wanted[:7]]
        np.testing.assert_allclose(logprobs, [value for _, value in wanted[:7]], atol=1e-4)
        if position == len(tokens):
            continue
        masked = [*tokens[:position], mask, *tokens[position + 1 :]]
        wanted = by_hand(lm, masked, position, tokens[position])
        ids, _ = lm.proposals(prompt, position, "replace", 10**6)
        assert ids.tolist() == [token for token, _ in wanted]
        assert len(ids) == len(lm.allowed) - (tokens[position] in lm.allowed)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_embeddings_are_the_last_hidden_state(kind: str, roberta: MaskedLM) -> None:
    lm = masked_lm() if kind == "bert" else roberta
    prompt = lm.encode(TEXT)
    with torch.no_grad():
        ids = framed(lm, list(prompt.tokens))
        states = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    embedded = lm.embed(prompt)
    assert embedded.shape == (len(prompt.tokens), 16)
    assert embedded.dtype == np.float32
    np.testing.assert_allclose(embedded, states[0, 1:-1].numpy(), atol=1e-5)


def test_a_folder_is_the_same_model(folder: Path) -> None:
    loaded, made = MaskedLM.load(str(folder)), masked_lm()
    prompt = made.encode(TEXT)
    assert loaded.encode(TEXT) == prompt
    np.testing.assert_allclose(loaded.embed(prompt), made.embed(prompt), atol=1e-6)


def test_all_words_and_no_special_token_are_allowed() -> None:
    lm = masked_lm()
    assert [lm.tokenizer.decode([int(token)]) for token in lm.allowed] == list(WORDS)


@pytest.mark.parametrize("kind", ["byte-level-bpe", "unigram", "wordpiece"])
def test_what_is_allowed_survives_as_text(kind: str) -> None:
    tokenizer = subword_tokenizer(kind)
    lm = MaskedLM(bert(len(tokenizer)), TextTokenizer.from_pretrained(tokenizer), "subwords")
    special = set(tokenizer.all_special_ids)
    known = set(tokenizer.get_vocab().values())
    allowed = {int(token) for token in lm.allowed}
    assert allowed
    assert not allowed & special
    for token in known - special:
        text = lm.text(Prompt((token,)))
        again = tokenizer(text, add_special_tokens=False).input_ids
        assert (token in allowed) == (again == [token] and bool(text.strip()))
    # Something to find: half a word of WordPiece, half a character of bytes.
    assert kind == "unigram" or known - special - allowed


def test_a_prompt_is_what_its_text_is_tokenized_into(roberta: MaskedLM) -> None:
    prompt = roberta.encode(TEXT)
    assert roberta.text(prompt) == TEXT
    assert roberta.canonical(prompt) == prompt
    letters = Prompt(tuple(t for c in "the" for t in roberta.encode(c).tokens))
    assert len(letters.tokens) == 3
    assert roberta.canonical(letters) == roberta.encode("the") != letters


def test_words_that_it_does_not_have_are_refused() -> None:
    with pytest.raises(FedfuseError, match=r"'read the oracle'.*'random'"):
        masked_lm().encode("read the oracle")
    with pytest.raises(FedfuseError, match=r"expected text that the tokenizer of .* can represent"):
        masked_lm().encode("")


def test_places_and_lengths_outside_are_refused() -> None:
    lm = masked_lm()
    prompt = lm.encode("read the text")
    with pytest.raises(FedfuseError, match="position to replace: expected 0 to 2, got 3"):
        lm.proposals(prompt, 3, "replace", 1)
    with pytest.raises(FedfuseError, match="position to insert: expected 0 to 3, got 4"):
        lm.proposals(prompt, 4, "insert", 1)
    longest = Prompt((7,) * lm.max_length)
    lm.proposals(longest, 0, "insert", 1)
    with pytest.raises(FedfuseError, match=f"expected 1 to {lm.max_length} tokens"):
        lm.embed(Prompt((7,) * (lm.max_length + 2)))
    with pytest.raises(FedfuseError, match="tokens, got 0"):
        lm.embed(Prompt(()))


def test_models_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FedfuseError, match=r"no/such.*does not exist"):
        MaskedLM.load("./no/such")
    transformers_tokenizer().save_pretrained(tmp_path / "body")
    BertModel(bert(50).config).save_pretrained(tmp_path / "body")
    with pytest.raises(FedfuseError, match="no weights for"):
        MaskedLM.load(str(tmp_path / "body"))
    (tmp_path / "adapter").mkdir()
    about = json.dumps({"base_model_name_or_path": str(folder)})
    (tmp_path / "adapter" / "adapter_config.json").write_text(about)
    with pytest.raises(
        FedfuseError, match="expected a whole masked language model, got an adapter"
    ):
        MaskedLM.load(str(tmp_path / "adapter"))
    transformers_tokenizer().save_pretrained(tmp_path / "small")
    bert(20).save_pretrained(tmp_path / "small")
    with pytest.raises(FedfuseError, match="no more tokens than embeddings"):
        MaskedLM.load(str(tmp_path / "small"))
    blind = train_tokenizer("wordpiece", 200, [TEXT])
    with pytest.raises(FedfuseError, match="expected a tokenizer with a mask token"):
        MaskedLM(bert(200), TextTokenizer.from_pretrained(blind), "blind")
