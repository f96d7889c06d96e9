"""A client's search for a better prompt (FedDTPT, Algorithm 1).

Given a prompt p of n tokens, the masked language model and a batch of examples:

    a <- accuracy of p on the batch
    repeat, until a = 1, or after so many evaluations, or so many in a row without a gain:
        how <- insert with probability 1/2, if n is below the cap; otherwise
               delete with probability 1/10, if n > 1; otherwise replace
        i   <- a place for it, drawn by the feedback's weights
        t   <- mask place i; of the ``top`` tokens of largest log-probability + credit, without
               those that failed at such a place, one drawn from the softmax of half of that sum
        q   <- p after the edit (how, i, t); again, if q was evaluated before, or is not what its
               own text is tokenized into
        b   <- accuracy of q
        b > a: p <- q. The place's weight rises, t gets credit, a replaced token loses its own
        b = a: p <- q for a deletion always, for a replacement with probability 1/5, for an
               insertion never: prompts would drift and grow
        q not taken: (how, token at i, t) has failed; b < a: the place's weight falls

A token's gain is b - a of the edit that put it in, plus the gain of the token that it replaced,
whose work it took over. All prompts are compared on one batch, so equal prompts have equal accuracy
and no question is asked twice; q is asked no further once it cannot reach a.

Variants, for ablation: ``masked-lm`` draws places evenly and forgets feedback; ``random`` draws
tokens evenly, too, from all that are allowed.

Step s draws from the generator seeded by (seed, s), so the state needs no generator: a search that
is killed goes on from its last state as if nothing had happened, and finds the answers that it has
paid for in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedfuse.config.feddtpt import SearchConfig
from fedfuse.feddtpt.accuracy import ExampleBatch, accuracy
from fedfuse.feddtpt.black_box import BudgetExceeded
from fedfuse.feddtpt.label_tasks import Task
from fedfuse.feddtpt.masked_lm import MaskedLM
from fedfuse.feddtpt.meter import Meter
from fedfuse.feddtpt.prompt import Prompt, TunedPrompt
from fedfuse.feddtpt.search_state import NO_TOKEN, Edit, EditStep, Feedback, How, SearchState

_INSERT, _DELETE = 0.5, 0.1
_KEEP_TIE = 0.2
_FLATTEN = 0.5
# Draws in a row that bring nothing new: there is hardly anything left.
_MOST_MISSES = 100


class PromptSearch:
    """Search of one client in one round.

    Args:
        task: task of the examples.
        batch: examples that prompts are compared on.
        lm: masked language model, which proposes tokens.
        meter: black box on an account that nobody else uses meanwhile, or queries are counted
            wrongly.
        config: the search; its queries bound the evaluations, the meter's budget what is paid.
        seed: seed of all draws.
    """

    def __init__(
        self,
        task: Task,
        batch: ExampleBatch,
        lm: MaskedLM,
        meter: Meter,
        config: SearchConfig,
        seed: int,
    ) -> None:
        self._task = task
        self._batch = batch
        self._lm = lm
        self._meter = meter
        self._config = config
        self._seed = seed
        self._max_length = min(config.max_length, lm.max_length)

    def begin(self, start: Prompt, feedback: Feedback | None = None) -> SearchState:
        """State before the first evaluation.

        Args:
            start: prompt to begin with, as its own text is tokenized.
            feedback: feedback of the client's last search; changed by this one.
        """
        prompt = self._lm.canonical(start)
        gain = (0.0,) * len(prompt.tokens)
        queries = self._meter.spent.queries
        return SearchState(prompt, gain, queries, feedback=feedback or Feedback())

    def run(
        self, state: SearchState, on_step: Callable[[SearchState], None] = lambda _: None
    ) -> TunedPrompt:
        """Search until there is a reason to stop, or the budget is spent.

        Args:
            state: a state of ``begin``, or one that was saved; changed in place.
            on_step: called after each step, for instance to save the state (``to_json``).

        Raises:
            BudgetExceeded: when not even the first prompt could be evaluated.
            ServiceError: when the black box gives no answer; the state is that before the step.
        """
        while not self.finished(state):
            try:
                self.step(state)
            except BudgetExceeded:
                if state.accuracy is None:
                    raise
                break
            on_step(state)
        assert state.accuracy is not None
        return TunedPrompt(state.prompt, state.gain, state.accuracy, self._queries(state))

    def finished(self, state: SearchState) -> str:
        """Reason why the search is over; empty while it is not."""
        if state.accuracy is None:
            return ""
        reasons = {
            "every answer is right": state.accuracy == 1.0,
            "all evaluations are done": len(state.trace) >= self._config.queries,
            "no gain for long": state.since_gain >= self._config.patience,
            "nothing new to try": state.misses >= _MOST_MISSES,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def step(self, state: SearchState) -> None:
        """Draw an edit and evaluate it if it is new; an error leaves the state as it was."""
        if state.accuracy is None:
            state.accuracy = self._accuracy(state.prompt, floor=0.0)
            state.seen.add(state.prompt.tokens)
            return
        rng = np.random.default_rng([self._seed, state.draws])
        edit = self._draw(state, rng)
        if edit is None or not self._is_new(state, edit):
            state.draws += 1
            state.misses += 1
            return
        prompt = Prompt(edit.apply(state.prompt.tokens))
        found = self._accuracy(prompt, floor=state.accuracy)
        state.draws += 1
        state.misses = 0
        state.seen.add(prompt.tokens)
        rise = -1.0 if found is None else found - state.accuracy
        keeps_tie = edit.how == "delete" or (edit.how == "replace" and rng.random() < _KEEP_TIE)
        taken = rise > 0 or (rise == 0 and keeps_tie)
        state.since_gain = 0 if rise > 0 else state.since_gain + 1
        if rise > 0:
            state.feedback.helped(edit)
        elif not taken:
            state.feedback.rejected(edit, worse=rise < 0)
        if taken:
            state.gain = _gain_after(edit, state.gain, rise)
            state.prompt = prompt
            state.accuracy = found
        state.trace.append(EditStep(edit, found, taken, self._queries(state)))

    def _draw(self, state: SearchState, rng: np.random.Generator) -> Edit | None:
        """Draw an edit; None where all that could come to its place has failed there."""
        tokens = state.prompt.tokens
        feedback = state.feedback if self._config.proposer == "feedback" else Feedback()
        how: How = "replace"
        if len(tokens) < self._max_length and rng.random() < _INSERT:
            how = "insert"
        elif len(tokens) > 1 and rng.random() < _DELETE:
            how = "delete"
        there = (*tokens, NO_TOKEN) if how == "insert" else tokens
        position = int(rng.choice(len(there), p=feedback.places(how, there)))
        old = there[position]
        if how == "delete":
            edit = Edit(how, position, old, NO_TOKEN)
            return None if (how, old, NO_TOKEN) in feedback.failed else edit
        if self._config.proposer == "random":
            return Edit(how, position, old, int(rng.choice(self._lm.allowed)))
        ids, logprobs = self._lm.proposals(state.prompt, position, how, len(self._lm.allowed))
        fit = feedback.open(how, old, ids)
        ids, values = ids[fit], logprobs[fit] + feedback.bonus(ids[fit])
        best = np.argsort(-values, kind="stable")[: self._config.top]
        if not len(best):
            return None
        chances = np.exp(_FLATTEN * (values[best] - values[best].max()))
        return Edit(how, position, old, int(rng.choice(ids[best], p=chances / chances.sum())))

    def _is_new(self, state: SearchState, edit: Edit) -> bool:
        prompt = Prompt(edit.apply(state.prompt.tokens))
        return prompt.tokens not in state.seen and self._lm.canonical(prompt) == prompt

    def _accuracy(self, prompt: Prompt, floor: float) -> float | None:
        return accuracy(self._task, self._lm.text(prompt), self._batch, self._meter, floor)

    def _queries(self, state: SearchState) -> int:
        return self._meter.spent.queries - state.queries_before


def _gain_after(edit: Edit, gain: tuple[float, ...], rise: float) -> tuple[float, ...]:
    """Gain of each token after an edit was taken."""
    if edit.how == "delete":
        return (*gain[: edit.position], *gain[edit.position + 1 :])
    inherited = gain[edit.position] if edit.how == "replace" else 0.0
    rest = edit.position + (edit.how == "replace")
    return (*gain[: edit.position], inherited + rise, *gain[rest:])
