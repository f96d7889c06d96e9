"""A service behind an OpenAI-compatible URL: requests, their rate, failures, and a key to keep.

The key is read from an environment variable, and is nowhere but in this object and in the requests:
it is removed from answers and errors of the service that repeat it.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx

from fedfuse.errors import FedfuseError, check

# Timeout, conflict, too many requests; besides, all that is the server's fault.
_TRANSIENT = (408, 409, 429)
_CONNECT_TIMEOUT = 10.0  # seconds
_SHOWN = 200  # characters of a service's answer in an error


class ServiceError(FedfuseError):
    """A service did not answer.

    Attributes:
        billed: whether the attempt may have been paid for.
    """

    def __init__(self, message: str, *, billed: bool = True) -> None:
        super().__init__(message)
        self.billed = billed


class TransientError(ServiceError):
    """An attempt failed, but another one may succeed.

    Attributes:
        retry_after: seconds to wait that the service asks for; 0 for none.
    """

    def __init__(self, message: str, *, billed: bool = True, retry_after: float = 0.0) -> None:
        super().__init__(message, billed=billed)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential back-off with full jitter: the wait is uniform in 0 to min(longest, first * 2^n).

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Attributes:
        attempts: number of attempts at one text, the first included; at least 1.
        first: upper bound of the first wait, seconds.
        longest: upper bound of any wait, seconds. A service that asks for a longer one is not asked
            again.
    """

    attempts: int = 6
    first: float = 0.5
    longest: float = 60.0

    def __post_init__(self) -> None:
        good = self.attempts >= 1 and 0 <= self.first <= self.longest < float("inf")
        check("back-off", self, "at least 1 attempt and 0 <= first <= longest, finite", good)

    def wait(self, failures: int, rng: random.Random) -> float:
        """Seconds before the next attempt, after a number of failures, at least 1."""
        return rng.uniform(0.0, min(self.longest, self.first * 2.0 ** (failures - 1)))

    def pause(self, error: ServiceError, failures: int, rng: random.Random) -> float:
        """Seconds before the next attempt after an error.

        Raises:
            ServiceError: when there is to be none.
        """
        if not isinstance(error, TransientError):
            raise error
        if failures == self.attempts or error.retry_after > self.longest:
            raise ServiceError(f"{error}; gave up after {failures} attempts") from error
        return max(self.wait(failures, rng), error.retry_after)


class HttpService:
    """Posts JSON; proxies and certificates are httpx's own. Threads may share it.

    Args:
        name: name of the service in errors, with its URL; without its key.
        url: address up to and without a path such as ``/completions``.
        key_variable: name of the environment variable that holds the key; empty for none.
        timeout: seconds without a byte of an answer.
        concurrency: connections at a time.
        requests_per_minute: rate, sent evenly; 0 for no limit.
        clock: seconds of a clock that never goes back.
        sleep: function that waits for so many seconds.

    Raises:
        FedfuseError: when the variable of the key is not set, or its value cannot be sent.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        key_variable: str = "",
        timeout: float,
        concurrency: int,
        requests_per_minute: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        key = _read_key(key_variable)
        self._name, self._url = name, url.rstrip("/")
        self._limiter = RateLimiter(requests_per_minute or float("inf"), clock, sleep)
        # In a closure: an object's attributes end up in dumps of it.
        self.clean: Callable[[str], str] = lambda text: text.replace(key, "***") if key else text
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=_CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=concurrency),
        )
        weakref.finalize(self, self._client.close)  # at the latest

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Send one request, when its turn has come; any status is returned.

        Raises:
            TransientError: when there is no response.
        """
        self._limiter.wait()
        try:
            return self._client.post(self._url + path, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise TransientError(self.says(f"cannot be reached ({error})"), billed=False) from error
        except httpx.TransportError as error:
            what = f"did not answer ({type(error).__name__}: {error})"
            raise TransientError(self.says(what)) from error

    def refused(self, response: httpx.Response) -> NoReturn:
        """Raise the error that a response with another status than 200 stands for."""
        status = response.status_code
        message = self.says(f"answered {status}: {self.start(response)}")
        if status in _TRANSIENT or status >= 500:
            # What is refused for its rate has not been worked on; about the rest one cannot know.
            later = _retry_after(response.headers.get("Retry-After", ""))
            raise TransientError(message, billed=status != 429, retry_after=later)
        raise ServiceError(message, billed=False)

    def start(self, response: httpx.Response) -> str:
        """The first characters of a response, quoted, without the key."""
        # Cleaned before it is cut: half a key is none to be found.
        return repr(self.clean(response.text)[:_SHOWN])

    def says(self, what: str) -> str:
        """A message about the service."""
        return self.clean(f"{self._name} {what}")


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


def check_key(variable: str) -> None:
    """Refuse a variable of a key that is not set, or whose value cannot be sent.

    Raises:
        FedfuseError: naming the variable.
    """
    _read_key(variable)


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
