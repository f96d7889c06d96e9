"""A federation of instruct models with templates of their own on a file of chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedfuse.builtin.architectures import tiny_causal_lm
from fedfuse.builtin.tokenizers import train_tokenizer
from fedfuse.config.run_config import parse
from fedfuse.models.loading import load_tokenizer
from fedfuse.simulation.data_fit import fits
from fedfuse.tracking.run import read_run
from tests.federations import FAST, about, federate, lines
from tests.tokenizers.test_chat import CHATML, INST

CHATS, TURNS = 60, 2
WORDS = "red blue green small large lamp key door clerk smith".split()


def chats() -> list[dict[str, Any]]:
    """Two questions and answers each, all different."""
    found = []
    for i in range(CHATS):
        one, other = WORDS[i % 10], WORDS[i // 10]
        texts = [f"Say {one} and {other}.", f"{one} {other}!", "Again?", f"Yes, {other} {one}."]
        roles = ("user", "assistant") * 2
        messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
        found.append({"messages": messages})
    return found


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "chats").mkdir()
    text = "".join(json.dumps(chat) + "\n" for chat in chats())
    for split in ("train", "test"):
        (tmp_path / "chats" / f"{split}.jsonl").write_text(
            text if split == "train" else text.replace("Say", "Tell").replace("Again", "More")
        )
    said = [message["content"] for chat in chats() for message in chat["messages"]]
    for name, kind, template in (
        ("server", "byte-level-bpe", CHATML),
        ("client", "unigram", INST),
    ):
        tokenizer = train_tokenizer(kind, 200, [*said, "user assistant INST"])
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny_causal_lm("llama", vocab_size=len(tokenizer), width=16, layers=2).save_pretrained(
                tmp_path / name
            )
    return {
        "data__source": str(tmp_path / "chats"),
        "data__partition": "iid",
        "data__private": 30,
        "data__public": 40,
        "data__blind": 20,
        "data__holdout": 4,
        "data__test": 20,
        "data__questions": 0,
        "data__max_length": 128,
        "fusion__evidence": "blind",
        "server__model": str(tmp_path / "server"),
        "clients__model": str(tmp_path / "client"),
        "strategy": "fedfuse",
        "rounds": 1,
    }


def test_two_instruct_models_learn_from_chats(keys: dict[str, Any], tmp_path: Path) -> None:
    folder = federate(tmp_path, clients=2, report=True, **keys)

    assert about(folder)["status"] == "finished"
    assert not [line["error"] for line in lines(folder, "messages") if line["error"]]
    run = read_run(folder)
    for model in ("server", "0", "1"):
        assert run.overall(model, "federated")
    shares = [x["share"] for x in lines(folder, "teacher_shares") if x["direction"] == "down"]
    assert shares
    assert (folder / "report.html").stat().st_size > 1000


def test_counts_are_those_of_the_answers(keys: dict[str, Any]) -> None:
    given = {key.replace("__", ".").replace("_", "-"): value for key, value in keys.items()}
    config = parse({**FAST, **given})

    rows = {(row.model, row.split): row.fit for row in fits(config, 2)}

    server, client = (load_tokenizer(keys[f"{side}__model"]) for side in ("server", "clients"))
    for (model, split), fit in rows.items():
        tokenizer = server if model == "server" else client
        answers = {"public": 40, "test": 20}.get(split, 30)
        assert fit.samples == answers, (model, split)
        assert (fit.prompts_cut, fit.answers_cut, fit.unscored) == (0, 0, 0)
        # An answer has some tokens of its own, and none of the turns before it.
        assert tokenizer.chat is not None
        assert answers <= fit.label_tokens <= 30 * answers
    assert len(rows) > 3
    # Where little fits, what is lost is the beginning of the turns, of which there are many tokens.
    config = parse({**FAST, **given, "data.max-length": 24})
    cut = {row.fit.prompts_cut for row in fits(config, 2) if row.split != "questions"}
    assert min(cut) > 5
