"""Knowledge of a model behind an OpenAI-compatible URL that tells a prompt's log-probabilities.

Each input is sent once, as a request to ``/completions`` whose prompt it is; what is got is kept in
an archive at once, so what was stopped goes on. Three ways to ask are tried in turn, once:

1. token ids, with vLLM's ``prompt_logprobs``;
2. token ids, with ``echo`` and ``logprobs`` (the first OpenAI form);
3. the text, with ``echo`` and ``logprobs``, for services that tokenize themselves, such as
   llama-cpp-python's. Chats in a template cannot be asked about so: a text spells no special token.

Whatever the way, every token of the reply must be the tokenizer's own.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import httpx
import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from fedfuse.config.model import EndpointConfig, parse_endpoint
from fedfuse.errors import FedfuseError
from fedfuse.http_service import HttpService, Retry, ServiceError, TransientError
from fedfuse.knowledge.archive import (
    InputKnowledge,
    Key,
    KnowledgeArchive,
    collect,
    has_rows,
    input_keys,
)
from fedfuse.knowledge.contexts import per_byte
from fedfuse.knowledge.endpoint_replies import (
    Positions,
    prompt_nats,
    read_echo,
    read_prompt_logprobs,
    row_knowledge,
)
from fedfuse.knowledge.record import Knowledge
from fedfuse.knowledge.token_texts import TokenTexts
from fedfuse.tokenizers.dataset import TokenizedDataset

log = logging.getLogger(__name__)

PROMPT_LOGPROBS, ECHO_IDS, ECHO_TEXT = "prompt_logprobs", "echo of token ids", "echo of the text"
_WAYS = (PROMPT_LOGPROBS, ECHO_IDS, ECHO_TEXT)
_LOG_SECONDS = 5.0
# A label's log-probability may differ by so much when it is asked for again: batches are summed in
# another order, in half precision.
_SAME = 0.25
_TOO_MANY = re.compile(r"logprobs.*(max|at most|less than|greater than|<=)", re.IGNORECASE)
_TOO_LONG = re.compile(r"context|too long|maximum length", re.IGNORECASE)
_NONE = (
    "tells no log-probabilities of a prompt: expected vLLM, whose /completions knows "
    "prompt_logprobs, or a server that echoes prompts with logprobs, such as llama-cpp-python's "
    "with --logits_all true (llama.cpp's own does not)"
)


class _Unanswered(FedfuseError):
    """A way to ask that a service does not know."""


class EndpointSource:
    """A ``KnowledgeSource`` that asks a service, and keeps what it said.

    Args:
        name: ``URL#MODEL``, as the run config has it.
        config: how to ask.
        archive: what was said before, of this service; its tokenizer is the model's.
        retry: back-off after failures.
        sleep: function that waits for so many seconds.

    Raises:
        FedfuseError: for a name that is no endpoint, or a key that is not set.
    """

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        archive: KnowledgeArchive,
        *,
        retry: Retry | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        url, self._model = parse_endpoint(name)
        self._concurrency = config.concurrency
        self._archive, self._texts = archive, TokenTexts(archive.tokenizer)
        self._retry, self._sleep, self._rng = retry or Retry(), sleep, random.Random()
        self._way: str | None = None  # the one that works
        self._checked = False
        self._service = HttpService(
            f"model {self._model!r} at {url}",
            url,
            key_variable=config.key_variable,
            timeout=config.timeout,
            concurrency=config.concurrency,
            requests_per_minute=config.requests_per_minute,
            sleep=sleep,
        )

    def knowledge(
        self, data: TokenizedDataset, k: int
    ) -> tuple[Knowledge, Float32[ndarray, " samples"]]:
        """As ``KnowledgeSource.knowledge``; asks for what is not known yet.

        Raises:
            FedfuseError: for a service that does not answer, has another tokenizer, or tells no
                log-probabilities.
        """
        keys = input_keys(data)
        held = self._archive.get(keys)
        self._compare(data, keys, held)
        wanted = max(k, 1)  # of the label alone no service can be asked in every form
        missing = {
            key: i
            for i, key in enumerate(keys)
            if has_rows(data, i) and (key not in held or held[key].asked < wanted)
        }
        log_part = self._log_progress(len(missing))
        for key, entry in self._ask_all(data, missing, wanted):
            self._archive.put({key: entry})
            held[key] = entry
            log_part()
        return collect(data, [held.get(key) for key in keys], k)

    def _compare(
        self, data: TokenizedDataset, keys: list[Key], held: dict[Key, InputKnowledge]
    ) -> None:
        """Ask once more, of something that is kept: another model may have got the name since."""
        if self._checked or not len(self._archive):
            self._checked = True
            return
        number = next((i for i, key in enumerate(keys) if key in held), None)
        if number is None:
            return
        before = held[keys[number]]
        now = self._ask(data, number, before.asked)
        self._checked = True
        if np.abs(now.label_logprob - before.label_logprob).max(initial=0) > _SAME:
            log.warning(
                "%s: it says something else than it did; what was kept is forgotten",
                self._service.says("has changed"),
            )
            self._archive.clear()
            held.clear()

    def _ask_all(
        self, data: TokenizedDataset, missing: Mapping[Key, int], k: int
    ) -> Iterator[tuple[Key, InputKnowledge]]:
        """Entries of what is missing, as they come."""
        left = list(missing.items())
        if left and self._way is None:  # alone, to find out how to ask
            key, number = left.pop(0)
            yield key, self._ask(data, number, k)
        if not left:
            return
        with ThreadPoolExecutor(min(self._concurrency, len(left))) as pool:
            futures = {pool.submit(self._ask, data, number, k): key for key, number in left}
            try:
                for done in as_completed(futures):
                    yield futures[done], done.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _log_progress(self, total: int) -> Callable[[], None]:
        done, last = 0, time.monotonic()

        def log_part() -> None:
            nonlocal done, last
            done += 1
            if time.monotonic() - last >= _LOG_SECONDS:
                last = time.monotonic()
                log.info("%s", self._service.says(f"told of {done} of {total} inputs"))

        return log_part

    def _ask(self, data: TokenizedDataset, number: int, k: int) -> InputKnowledge:
        """Knowledge of one sample that has label rows."""
        ids = data.input_ids(number).tolist()
        offsets = data.rows.offsets
        rows = data.rows.row[offsets[number] : offsets[number + 1]].tolist()
        ways = [self._way] if self._way else _WAYS
        unanswered: list[str] = []
        for way in ways:
            text = _text_of(data, number) if way == ECHO_TEXT else None
            try:
                positions = self._retried(partial(self._read, way, ids, text, k))
                nats = np.array([prompt_nats(positions, rows[0])])
                [context_loss] = per_byte(data.take(np.array([number])), nats)
                entry = row_knowledge(positions, rows, k, float(context_loss))
            except _Unanswered as error:
                unanswered.append(f"{way}: {error}")
            except ServiceError:
                raise
            except FedfuseError as error:
                raise FedfuseError(self._service.says(str(error))) from error
            else:
                self._way = way
                return entry
        raise FedfuseError(self._service.says(f"{_NONE}; {'; '.join(unanswered)}"))

    def _retried(self, ask: Callable[[], Positions]) -> Positions:
        failures = 0
        while True:
            try:
                return ask()
            except ServiceError as error:
                failures += 1
                self._sleep(self._retry.pause(error, failures, self._rng))

    def _read(self, way: str, ids: list[int], text: str | None, k: int) -> Positions:
        """Positions of one input.

        Raises:
            _Unanswered: when the service does not know this way.
        """
        if way == ECHO_TEXT and text is None:
            raise _Unanswered("a chat in a template, or a text that was cut inside a character")
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": ids if text is None else text,
            "max_tokens": 1,
            "temperature": 1,
        }
        if way == PROMPT_LOGPROBS:
            body |= {"prompt_logprobs": k}
        else:
            body |= {"echo": True, "logprobs": k}
        response = self._service.post("/completions", body)
        if response.status_code != httpx.codes.OK:
            self._refuse(response, k)
        try:
            [choice, *_] = response.json()["choices"]
            if way == PROMPT_LOGPROBS:
                found = choice.get("prompt_logprobs")
                if not found:
                    raise _Unanswered("none in the reply")
                return read_prompt_logprobs(found, ids, self._texts)
            found = choice.get("logprobs")
            if not found or not found.get("tokens") or len(found["tokens"]) < min(3, len(ids) - 1):
                raise _Unanswered("none of the prompt in the reply")
            return read_echo(found, ids, self._texts)
        except FedfuseError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            start = self._service.start(response)
            what = f"sent no completion ({type(error).__name__}): {start}"
            raise TransientError(self._service.says(what)) from None

    def _refuse(self, response: httpx.Response, k: int) -> None:
        """Raise what a response with another status than 200 means."""
        status, start = response.status_code, self._service.start(response)
        if status in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY):
            if _TOO_MANY.search(response.text):
                raise FedfuseError(
                    f"tells of fewer than {k} entries (knowledge.k): start vLLM with "
                    f"--max-logprobs {k}, or lower knowledge.k; it answered {status}: {start}"
                )
            if self._way is None and not _TOO_LONG.search(response.text):
                raise _Unanswered(f"answered {status}: {start}")
        if "logits_all" in response.text:
            raise _Unanswered(f"answered {status}: {start}")
        self._service.refused(response)


def _text_of(data: TokenizedDataset, number: int) -> str | None:
    """A sample's input as text; None where it is no text of its own."""
    sample = data.samples[number]
    if sample.turns and data.tokenizer.chat:
        return None
    begin, end = data.rows.begin[number], data.rows.byte_end[data.rows.offsets[number + 1] - 1]
    if begin < 0:
        return None
    try:
        return sample.text.encode()[begin : end if end >= 0 else None].decode()
    except UnicodeDecodeError:
        return None
