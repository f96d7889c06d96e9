"""What a prompt would be without the federation, measured in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedfuse.factory.feddtpt import load_task, search_seed
from fedfuse.feddtpt.accuracy import draw
from fedfuse.feddtpt.prompt import TunedPrompt
from fedfuse.feddtpt.tuner import ClientPromptTuner
from fedfuse.tracking.feddtpt_records import PromptLine
from strategies.feddtpt_state import TEST, FedDTPTState
from strategies.server_state import SERVER


def note_baseline(session: FedDTPTState, stage: str, model: str, tuned: TunedPrompt) -> None:
    """Score a prompt on the test set and write it down."""
    test = session.accuracy(tuned.prompt, session.splits.test, TEST)
    words = session.words(tuned.prompt)
    line = PromptLine(stage, session.config.rounds, model, words, tuned.queries, test)
    session.run.prompt(line)


def standalone(session: FedDTPTState, found: Mapping[str, TunedPrompt]) -> None:
    """Each client's prompt after as many rounds of its own search."""
    for client, tuned in sorted(found.items()):
        note_baseline(session, "standalone", client, tuned)


def centralized(session: FedDTPTState, clients: int, queries: int) -> None:
    """One search with everybody's private examples, for as many queries as the federation paid.

    Prompts are compared on as many of them as three clients have: on all of them, hardly more
    prompts could be tried than one client tries.

    Only a simulation, in which all private examples are at hand, can measure it.
    """
    config = session.config
    prompts = config.prompts
    _, splits = load_task(prompts, config.data.template, config.seed, clients)
    everything = [example for part in splits.private for example in part]
    seed = search_seed(config, SERVER)
    searcher = ClientPromptTuner(
        session.folder / "centralized",
        session.task,
        draw(everything, splits.public, (3 * prompts.private, prompts.public), seed),
        session.lm,
        session.backend,
        # The budget ends it, as it ends the federation's many shorter searches.
        replace(prompts.search_settings(), evaluations=queries, patience=queries),
        queries,
        seed,
    )
    note_baseline(session, "centralized", SERVER, searcher.search(session.start, 1))
