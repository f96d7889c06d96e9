"""A language model behind an OpenAI-compatible endpoint: one POST to ``/chat/completions`` a text.

Reference: OpenAI, "API reference", Chat; llama.cpp, vLLM, Ollama, ``transformers serve``, and
LiteLLM's proxy for providers with a format of their own, answer in the same form.

The key is read from an environment variable, and is nowhere but in this object and in the requests:
an answer or an error of the service that repeats it is cleaned first.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.black_box import BlackBoxError, Reply, Transient

# Timeout, conflict, too many requests; and all that is the server's fault.
_TRANSIENT = (408, 409, 429)
# What a chat format adds to a text is a handful of tokens.
_FORMAT_TOKENS = 64
_SHOWN = 200  # characters of what a service says, in an error


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """An endpoint and how it is used.

    Attributes:
        url: up to and without ``/chat/completions``, such as ``https://api.openai.com/v1``; http or
            https, without user, password or query, which would end up in logs.
        model: as the service names it.
        key_variable: name of the environment variable that holds the key; empty: no key is sent.
        max_tokens: of an answer, at least 1.
        concurrency: most requests at a time, at least 1.
        connect_timeout: seconds, above 0.
        read_timeout: seconds without a byte of the answer, above 0.
        requests_per_minute: sent evenly, above 0; infinity: as fast as it goes.
    """

    url: str
    model: str
    key_variable: str = ""
    max_tokens: int = 16
    concurrency: int = 4
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    requests_per_minute: float = float("inf")

    def __post_init__(self) -> None:
        wrong = []
        if not _is_plain(self.url):
            # Without the value: somebody may have put a password there.
            wrong.append("url; allowed: http or https with a host, no user, password, query or #")
        if not self.model:
            wrong.append("model is empty; allowed: a name")
        for name in ("max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                wrong.append(f"{name} is {getattr(self, name)}; allowed: at least 1")
        for name in ("connect_timeout", "read_timeout", "requests_per_minute"):
            if not getattr(self, name) > 0:
                wrong.append(f"{name} is {getattr(self, name)}; allowed: above 0")
        if wrong:
            raise FedfuseError("endpoint's " + "; ".join(wrong))


class HttpModel:
    """A ``Backend`` over HTTP. ``Meter`` asks again; httpx's proxies and certificates are its own.

    Args:
        settings: the endpoint.
        clock: seconds, of a clock that never goes back.
        sleep: waits for so many seconds.

    Raises:
        FedfuseError: when the variable of the key is not set, or its value cannot be sent.
    """

    batch_size = 1

    def __init__(
        self,
        settings: HttpSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        key = _read_key(settings.key_variable)
        self.settings = settings
        self.concurrency = settings.concurrency
        self.name = (
            f"{settings.url} {settings.model} temperature=0 max_tokens={settings.max_tokens}"
        )
        self._pace = Pace(settings.requests_per_minute, clock, sleep)
        # In a closure: an object's attributes end up in dumps of it.
        self._clean: Callable[[str], str] = lambda text: text.replace(key, "***") if key else text
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(settings.read_timeout, connect=settings.connect_timeout),
            limits=httpx.Limits(max_connections=settings.concurrency),
        )
        weakref.finalize(self, self._client.close)  # at the latest

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def most_tokens(self, text: str) -> int:
        """At most a token a byte, the chat's format, and the longest answer."""
        return len(text.encode()) + _FORMAT_TOKENS + self.settings.max_tokens

    def ask(self, texts: Sequence[str]) -> list[Reply]:
        """As ``Backend.ask``."""
        return [self._ask(text) for text in texts]

    def _ask(self, text: str) -> Reply:
        self._pace.wait()
        body = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.settings.max_tokens,
            "temperature": 0,
        }
        try:
            url = self.settings.url.rstrip("/") + "/chat/completions"
            response = self._client.post(url, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Transient(self._says(f"cannot be reached ({error})"), billed=False) from error
        except httpx.TransportError as error:
            what = f"did not answer ({type(error).__name__}: {error})"
            raise Transient(self._says(what)) from error
        if response.status_code != httpx.codes.OK:
            self._refused(response)
        try:
            return self._read(response, text)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = f"sent no chat completion ({type(error).__name__}): {self._start(response)}"
            raise Transient(self._says(what)) from None

    def _read(self, response: httpx.Response, text: str) -> Reply:
        answer: Any = response.json()
        content = answer["choices"][0]["message"]["content"]
        # A model that only thought, or declined, says nothing: an answer that names no label.
        content = "" if content is None else content
        if not isinstance(content, str):
            raise TypeError
        usage = answer.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        # A boolean is an int to Python, and no number to anybody else.
        if type(tokens) is not int or tokens < 0:
            tokens = self.most_tokens(text)
        return Reply(self._clean(content), tokens)

    def _refused(self, response: httpx.Response) -> NoReturn:
        status = response.status_code
        message = self._says(f"answered {status}: {self._start(response)}")
        if status in _TRANSIENT or status >= 500:
            # What is refused for its rate has not been worked on; about the rest one cannot know.
            later = _retry_after(response.headers.get("Retry-After", ""))
            raise Transient(message, billed=status != 429, retry_after=later)
        raise BlackBoxError(message, billed=False)

    def _start(self, response: httpx.Response) -> str:
        # Cleaned before it is cut: half a key is none to be found.
        return repr(self._clean(response.text)[:_SHOWN])

    def _says(self, what: str) -> str:
        return self._clean(f"model {self.settings.model!r} at {self.settings.url} {what}")


class Pace:
    """Lets requests through at an even pace; threads may share it.

    Args:
        per_minute: above 0, infinity for no pace.
        clock: seconds.
        sleep: waits for so many seconds.
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
        """Return when it is the caller's turn."""
        with self._mutex:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._interval
        if turn > now:
            self._sleep(turn - now)


def _is_plain(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    hidden = parsed.userinfo or parsed.query or parsed.fragment
    return parsed.scheme in ("http", "https") and bool(parsed.host) and not hidden


def _read_key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    # httpx would quote a header that it cannot send.
    if not key or not all("!" <= character <= "~" for character in key):
        state = "not set" if not key else "no key"
        raise FedfuseError(
            f"environment variable {variable!r} is {state}; allowed: a key of visible ASCII"
        )
    return key


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3); 0 if it says none."""
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
