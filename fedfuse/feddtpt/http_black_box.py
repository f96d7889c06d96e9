"""A language model behind an OpenAI-compatible URL: one POST to ``/chat/completions`` a text.

Reference: OpenAI, "API reference", Chat; llama.cpp, vLLM, Ollama, ``transformers serve``, and
LiteLLM's proxy for providers with a format of their own, answer in the same form. The key is
``HttpService``'s to keep.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from fedfuse.config.feddtpt import BlackBoxConfig
from fedfuse.feddtpt.black_box import Reply
from fedfuse.http_service import HttpService, TransientError

log = logging.getLogger(__name__)

_FORMAT_TOKENS = 64  # a chat format adds a handful of tokens to a text


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
        self.config = config
        self.concurrency = config.concurrency
        self.name = f"{config.url} {config.model} temperature=0 max_tokens={config.max_tokens}"
        self._service = HttpService(
            f"model {config.model!r} at {config.url}",
            config.url,
            key_variable=config.key_variable,
            timeout=config.timeout,
            concurrency=config.concurrency,
            requests_per_minute=config.requests_per_minute,
            clock=clock,
            sleep=sleep,
        )
        # What the service turns out not to take; see ``_learn``.
        self._limit_key, self._takes_temperature, self._warned = "max_tokens", True, False

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

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
            self._service.refused(response)
        try:
            return self._read(response, text)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = (
                f"sent no chat completion ({type(error).__name__}): {self._service.start(response)}"
            )
            raise TransientError(self._service.says(what)) from None

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
        return self._service.post("/chat/completions", body)

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
                log.warning(self._service.says(what))
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
            log.warning(
                self._service.says(f"had said nothing yet when it was cut off; raise {limit}")
            )
        return Reply(self._service.clean(content), tokens, cut)
