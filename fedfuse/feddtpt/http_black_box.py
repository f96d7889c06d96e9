"""A language model behind an OpenAI-compatible URL: one POST to ``/chat/completions`` a text.

Reference: OpenAI, "API reference", Chat; llama.cpp, vLLM, Ollama, ``transformers serve``, and
LiteLLM's proxy for providers with a format of their own, answer in the same form.

The key is read from an environment variable, and is nowhere but in this object and in the requests:
it is removed from answers and errors of the service that repeat it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx

from fedfuse.config.feddtpt import BlackBoxConfig
from fedfuse.errors import check
from fedfuse.feddtpt.black_box import BlackBoxError, Reply, TransientError

log = logging.getLogger(__name__)

# Timeout, conflict, too many requests; besides, all that is the server's fault.
_TRANSIENT = (408, 409, 429)
_FORMAT_TOKENS = 64  # a chat format adds a handful of tokens to a text
_CONNECT_TIMEOUT = 10.0  # seconds
_SHOWN = 200  # characters of a service's answer in an error


class HttpBlackBox:
    """A ``Backend`` over HTTP. ``Meter`` asks again; proxies and certificates are httpx's own.

    Args:
        config: the service, with a URL.
        clock: seconds of a clock that never goes back.
        sleep: function that waits for so many seconds.

    Raises:
        FedfuseError: when the variable of the key is not set, or its value cannot be sent.
    """

    batch_size = 1

    def __init__(
        self,
        config: BlackBoxConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        key = _read_key(config.key_variable)
        self.config = config
        self.concurrency = config.concurrency
        self.name = f"{config.url} {config.model} temperature=0 max_tokens={config.max_tokens}"
        self._limiter = RateLimiter(config.requests_per_minute or float("inf"), clock, sleep)
        # In a closure: an object's attributes end up in dumps of it.
        self._clean: Callable[[str], str] = lambda text: text.replace(key, "***") if key else text
        # What the service turns out not to take; see ``_learn``.
        self._limit_key, self._takes_temperature, self._warned = "max_tokens", True, False
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(config.timeout, connect=_CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=config.concurrency),
        )
        weakref.finalize(self, self._client.close)  # at the latest

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def most_tokens(self, text: str) -> int:
        """One token a byte, the chat's format, and the longest answer."""
        return len(text.encode()) + _FORMAT_TOKENS + self.config.max_tokens

    def ask(self, texts: Sequence[str]) -> list[Reply]:
        """As ``Backend.ask``."""
        return [self._ask(text) for text in texts]

    def _ask(self, text: str) -> Reply:
        response = self._post(body := self._body(text))
        while response.status_code == httpx.codes.BAD_REQUEST and self._learn(response, body):
            response = self._post(body := self._body(text))
        if response.status_code != httpx.codes.OK:
            self._refused(response)
        try:
            return self._read(response, text)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = f"sent no chat completion ({type(error).__name__}): {self._start(response)}"
            raise TransientError(self._says(what)) from None

    def _body(self, text: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": text}],
            self._limit_key: self.config.max_tokens,
        }
        if self._takes_temperature:
            body["temperature"] = 0
        return body

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        self._limiter.wait()
        try:
            url = self.config.url.rstrip("/") + "/chat/completions"
            return self._client.post(url, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise TransientError(
                self._says(f"cannot be reached ({error})"), billed=False
            ) from error
        except httpx.TransportError as error:
            what = f"did not answer ({type(error).__name__}: {error})"
            raise TransientError(self._says(what)) from error

    def _learn(self, response: httpx.Response, body: dict[str, Any]) -> bool:
        """Whether a refusal says how to ask otherwise: some models take the limit of tokens by
        another name, and no temperature but their own.
        """
        if "max_completion_tokens" in response.text and "max_tokens" in body:
            self._limit_key = "max_completion_tokens"
            return True
        if "temperature" in response.text and "temperature" in body:
            if self._takes_temperature:
                what = "takes no temperature of 0: answers may change when asked anew"
                log.warning(self._says(what))
            self._takes_temperature = False
            return True
        return False

    def _read(self, response: httpx.Response, text: str) -> Reply:
        answer: Any = response.json()
        choice = answer["choices"][0]
        content, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        # A model that only thought, or declined, says nothing: an answer that names no label.
        content = "" if content is None else content
        if not isinstance(content, str):
            raise TypeError
        usage = answer.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        # A boolean is an int to Python, and no number to anybody else.
        if type(tokens) is not int or tokens < 0:
            tokens = self.most_tokens(text)
        if cut and not content.strip() and not self._warned:
            self._warned = True
            limit = f"black-box.max-tokens = {self.config.max_tokens}"
            log.warning(self._says(f"had said nothing yet when it was cut off; raise {limit}"))
        return Reply(self._clean(content), tokens, cut)

    def _refused(self, response: httpx.Response) -> NoReturn:
        status = response.status_code
        message = self._says(f"answered {status}: {self._start(response)}")
        if status in _TRANSIENT or status >= 500:
            # What is refused for its rate has not been worked on; about the rest one cannot know.
            later = _retry_after(response.headers.get("Retry-After", ""))
            raise TransientError(message, billed=status != 429, retry_after=later)
        raise BlackBoxError(message, billed=False)

    def _start(self, response: httpx.Response) -> str:
        # Cleaned before it is cut: half a key is none to be found.
        return repr(self._clean(response.text)[:_SHOWN])

    def _says(self, what: str) -> str:
        return self._clean(f"model {self.config.model!r} at {self.config.url} {what}")


class RateLimiter:
    """Lets requests through at an even rate; threads may share it.

    Args:
        per_minute: requests a minute, above 0; infinity for no limit.
        clock: seconds of a clock that never goes back.
        sleep: function that waits for so many seconds.
    """

    def __init__(
        self, per_minute: float, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._interval = 60.0 / per_minute
        self._clock = clock
        self._sleep = sleep
        self._next = float("-inf")
        self._mutex = threading.Lock()

    def wait(self) -> None:
        """Return when the caller may send its request."""
        with self._mutex:
            now = self._clock()
            slot = max(now, self._next)
            self._next = slot + self._interval
        if slot > now:
            self._sleep(slot - now)


def _read_key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    # httpx would quote a header that it cannot send.
    good = key and all("!" <= character <= "~" for character in key)
    found = "other characters" if key else "nothing"
    check(f"environment variable {variable!r}", found, "a key of visible ASCII", good)
    return key


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3); 0 for none."""
    try:
        return max(0.0, float(value)) if float(value) < float("inf") else 0.0
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
