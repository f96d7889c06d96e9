"""Questions as tasks of lm-evaluation-harness: a YAML and a .jsonl file for each domain."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from fedfuse.data.sample import Sample
from fedfuse.errors import check
from fedfuse.files import atomic_write

# The harness's names of accuracy, by options' whole text, per character, per byte, and less what
# options have without their question.
METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")


def write_task(questions: Sequence[Sample], folder: Path, name: str) -> str:
    """Write questions so that the harness asks them as a run does, by prompt and whole option.

    Each domain is a task, and all of them together are the tag ``fedfuse_NAME``. The YAML names the
    absolute path of its .jsonl, since the harness reads that from the working folder.

    Args:
        questions: multiple-choice questions, at least one.
        folder: where to write.
        name: name of the data.

    Returns:
        The tag.

    Raises:
        FedfuseError: without questions, for a chat, which no task can ask as its model's template
            would, or when the files cannot be written.
    """
    check("questions of a task", "none", "at least one with options", len(questions))
    chats = sum(bool(question.turns) for question in questions)
    check("questions of a task", f"{chats} in chats", "prompts alone", not chats)
    tag = f"fedfuse_{_plain(name)}"
    for number, domain in enumerate(sorted({question.domain for question in questions})):
        asked = [question for question in questions if question.domain == domain]
        task = f"{tag}_{number}_{_plain(domain)}"
        file = folder.resolve() / f"{task}.jsonl"
        records = [
            {"prompt": q.prompt, "options": list(q.options), "label": q.label} for q in asked
        ]
        with atomic_write(file) as scratch:
            scratch.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        with atomic_write(file.with_suffix(".yaml")) as scratch:
            # JSON is YAML.
            scratch.write_text(json.dumps(_task(task, tag, file), indent=1) + "\n")
    return tag


def _task(task: str, tag: str, file: Path) -> dict[str, object]:
    """The harness's description of a task; fields of a record are taken as they are."""
    return {
        "task": task,
        "tag": tag,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "options",
        "doc_to_target": "label",
        "target_delimiter": "",  # an option carries its own leading space
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in METRICS
        ],
        "metadata": {"version": 1.0},
    }


def _plain(name: str) -> str:
    """A name with nothing in it that means something to a shell or to the harness."""
    return re.sub(r"\W+", "_", name).strip("_") or "questions"
