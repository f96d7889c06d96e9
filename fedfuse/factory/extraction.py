"""Extraction of what a run asks its teacher, into a file that answers in the teacher's place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedfuse.algorithms.teacher import extract_into
from fedfuse.config.model import shown_name
from fedfuse.config.run_config import RunConfig
from fedfuse.factory.data import shared_samples
from fedfuse.factory.models import blind_questions_of, check_model, load_teacher
from fedfuse.knowledge.archive import KnowledgeArchive


def extract_teacher(
    config: RunConfig, output: Path, on_progress: Callable[[int, int], None]
) -> int:
    """Ask ``server.model`` all that a run of the config asks of a model that does not learn.

    Knowledge of the public set; the losses of the test set and of the options of its questions; and
    with blind evidence of those of the blind questions, which a client is asked. Nothing private.

    Args:
        config: run config; its data and seed decide what the samples are.
        output: file to make, or to go on with.
        on_progress: called with the number of samples that are done, and of all.

    Returns:
        Number of entries in the file.

    Raises:
        FedfuseError: for a model or data that cannot be loaded, or a file of another model.
    """
    name = config.server.model
    check_model(name, config.server.tokenizer)
    shared = shared_samples(config.data, config.seed)
    model, weights = load_teacher(name, config.server, shared, config.data.max_length)
    shown = " ".join(filter(None, (shown_name(name), weights)))
    archive = KnowledgeArchive(output, shown, model.tokenizer)
    texts = [
        (model.public, config.knowledge.k),
        *((data, 1) for data in model.texts(blind_questions_of(config))),
    ]
    extract_into(archive, model, texts, on_progress)
    return len(archive)
