"""Base models in folders, with all that an export must carry along."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
# transformers refuses to write this one: a temperature without sampling.
GENERATION = {"do_sample": False, "temperature": 0.3, "max_new_tokens": 7, "eos_token_id": 1}
CARD = "---\nlicense: apache-2.0\nlanguage:\n- en\ntags:\n- tiny\n---\n\n# A base\n"
PADDED = 32


def padded_base(source: Path, folder: Path) -> Path:
    """A copy of a model whose head has rows that no token has, and which are probable."""
    model = AutoModelForCausalLM.from_pretrained(source, local_files_only=True)
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows + PADDED, mean_resizing=False)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[rows:] = 5 * embedding[:rows].mean(0)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("Do as you like.\n")
    (folder / "modeling_own.py").write_text("raise SystemExit\n")
    (folder / "optimizer.pt").write_bytes(b"pickled")
    return folder
