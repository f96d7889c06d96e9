"""A server on the loopback that tells a small model's log-probabilities of prompts.

It answers ``/completions`` as vLLM, as servers of the first OpenAI form, or as llama.cpp's own
does, with the numbers of one forward pass, and can be told to misbehave.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from fedfuse.tokenizers.tokenizer import TextTokenizer

MOST_LOGPROBS = 20
# What vLLM, and llama.cpp's own server, answer to what they do not do.
TOO_MANY = "Requested prompt logprobs of {}, which is greater than max allowed: 20"
NO_ECHO = "Only no echo is supported"


class LogprobServer:
    """What it serves, how, and what it was sent.

    Args:
        model: logits of input ids.
        tokenizer: the model's.
        form: ``vllm``; ``echo``, with token ids; ``text``, which takes text alone and writes no
            begin token, as llama-cpp-python's; or ``llama.cpp``.
    """

    def __init__(self, model: Any, tokenizer: TextTokenizer, form: str) -> None:
        self.model, self.tokenizer, self.form = model, tokenizer, form
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.change: Callable[[dict[str, Any]], None] = lambda reply: None
        self.fail: dict[int, tuple[int, str]] = {}  # status and body, by number of the request
        self.delay = 0.0
        self.url = ""
        self.mutex = threading.Lock()
        self._names = {number: name for name, number in tokenizer.vocabulary.items()}

    def name(self, key: str = "tiny") -> str:
        """As the run config names the model."""
        return f"{self.url}#{key}"

    def answer(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = request["prompt"]
        if self.form == "llama.cpp":
            error = {"error": {"message": NO_ECHO}}
            return (400, error) if request.get("echo") else (200, _choice({"logprobs": None}))
        if self.form == "text" and not isinstance(prompt, str):
            return 422, {"detail": "Input should be a valid string"}
        if isinstance(prompt, str):
            prompt = [self.tokenizer.bos_id, *self.tokenizer.encode_ids([prompt])[0]]
        logprobs = self.logprobs(prompt)
        if self.form == "vllm":
            return self._vllm(prompt, request.get("prompt_logprobs"), logprobs)
        if not request.get("echo"):
            return 200, _choice({"text": "x", "logprobs": None})
        return 200, self._echo(prompt, request, logprobs)

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        with self.mutex, torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0].double()
        return torch.log_softmax(logits[:, : self.tokenizer.vocab_size], 1)

    def _vllm(
        self, ids: list[int], k: int | None, logprobs: torch.Tensor
    ) -> tuple[int, dict[str, Any]]:
        if k is None:
            return 200, _choice({"prompt_logprobs": None})
        if k > MOST_LOGPROBS:
            return 400, {"message": TOO_MANY.format(k)}
        rows: list[dict[str, Any] | None] = [None]
        for row, token in zip(logprobs, ids[1:], strict=False):
            numbers = [token, *row.topk(min(k, len(row))).indices.tolist()]
            rows.append(
                {
                    str(n): {
                        "logprob": float(row[n]),
                        "rank": int((row > row[n]).sum()) + 1,
                        "decoded_token": self.tokenizer.decode([n]) or self._names[n],
                    }
                    for n in dict.fromkeys(numbers)
                }
            )
        return 200, _choice({"text": "x", "prompt_logprobs": rows})

    def _echo(
        self, ids: list[int], request: dict[str, Any], logprobs: torch.Tensor
    ) -> dict[str, Any]:
        def written(number: int) -> str:
            if number in self.tokenizer.vocabulary_bytes.special:
                return self._names[number]
            return self.tokenizer.token_bytes[number].decode(errors="ignore")

        own: list[float | None] = [None]
        top: list[dict[str, float] | None] = [None]
        for row, token in zip(logprobs, ids[1:], strict=False):
            best = row.topk(request["logprobs"])
            entries = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top.append(
                {written(n): value for n, value in entries} | {written(token): row[token].item()}
            )
            own.append(row[token].item())
        tokens = [written(n) for n in ids]
        if self.form == "text":  # no begin token, and nothing of the first
            tokens, own, top = tokens[1:], [None, *own[2:]], [None, *top[2:]]
        found = {
            "tokens": [*tokens, "x"],
            "token_logprobs": [*own, -1.0],
            "top_logprobs": [*top, {}],
        }
        return _choice({"logprobs": found})


def _choice(about: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": "", **about}]}


@contextmanager
def serve(model: Any, tokenizer: TextTokenizer, form: str = "vllm") -> Iterator[LogprobServer]:
    """Run it on a free port."""
    served = LogprobServer(model, tokenizer, form)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with served.mutex:
                number = len(served.requests)
                served.requests.append(request | {"path": self.path})
                served.keys.append(self.headers.get("Authorization", ""))
            time.sleep(served.delay)
            if number in served.fail:
                status, body = served.fail[number]
            else:
                status, reply = served.answer(request)
                served.change(reply)
                body = json.dumps(reply)
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked may not have waited
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
