"""Whether the data of a run fits its models: a table before anything starts, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from fedfuse.config.model import shown_name
from fedfuse.config.run_config import RunConfig, model_configs, model_of_partition
from fedfuse.data.sample import Sample
from fedfuse.errors import FedfuseError
from fedfuse.factory.data import load_splits
from fedfuse.factory.models import tokenizer_of
from fedfuse.tokenizers.fit import Fit, fit_questions, fit_samples

# Samples that are looked at of each split; of more, as many evenly spread.
LOOKED_AT = 500
# Share of answers that may be cut off or have no token.
MOST_LOST = 0.2
QUESTIONS = "questions"


@dataclass(frozen=True, slots=True)
class SplitFit:
    """How a split fits a model.

    Attributes:
        model: name of the base model.
        split: ``private``, ``public``, ``test`` or ``questions``.
        fit: the counts.
    """

    model: str
    split: str
    fit: Fit


def fits(config: RunConfig, clients: int) -> list[SplitFit]:
    """How the splits fit the base models that see them; models must be built."""
    splits = load_splits(config.data, config.seed, clients)
    private: dict[str, list[Sample]] = {}
    for number in range(clients):
        name = model_of_partition(config.clients.model, number)
        private.setdefault(name, []).extend(splits.private[number])
    found, configs = [], model_configs(config, clients)
    for model in dict.fromkeys([config.server.model, *private]):
        tokenizer = tokenizer_of(model, configs[model].tokenizer)
        seen = {"private": private.get(model, []), "public": splits.public, "test": splits.test}
        for split, samples in (seen | {QUESTIONS: splits.questions}).items():
            count = fit_questions if split == QUESTIONS else fit_samples
            if samples:
                fit = count(tokenizer, _spread(samples), config.data.max_length)
                found.append(SplitFit(model, split, fit))
    return found


def check_fits(found: Sequence[SplitFit], max_length: int) -> None:
    """Refuse data of which too much is cut off.

    Raises:
        FedfuseError: naming every split and model where it is so, and the key to change.
    """
    bad = [
        f"{of.fit.lost:.0%} of {of.split} for {of.model}"
        for of in found
        if of.split != QUESTIONS and of.fit.lost > MOST_LOST
    ]
    if bad:
        raise FedfuseError(
            f"data.max-length = {max_length}: expected tokens for at least {1 - MOST_LOST:.0%} of "
            f"the answers, got fewer: answers are cut off, or have no token, in {', '.join(bad)}"
        )


def table(found: Sequence[SplitFit]) -> Table:
    """As the terminal shows it; tokens are those that are learned or scored."""
    title = "how the data fits (of the samples looked at)"
    shown = Table(title=title, box=None, padding=(0, 1, 0, 0))
    for head in ("model", "split"):
        shown.add_column(head, no_wrap=True)
    for head in ("samples", "tokens", "prompts cut", "answers cut", "unscored", "undecided"):
        shown.add_column(head, justify="right")
    for of in found:
        fit = of.fit
        counts = (fit.samples, fit.label_tokens, fit.prompts_cut, fit.answers_cut, fit.unscored)
        undecided = f"{fit.undecided:,}" if of.split == QUESTIONS else ""
        name = shown_name(of.model).rsplit("/", 1)[-1].removeprefix("builtin:")
        shown.add_row(name, of.split, *(f"{count:,}" for count in counts), undecided)
    return shown


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    step = max(1, len(samples) // LOOKED_AT)
    return list(samples[::step][:LOOKED_AT])
