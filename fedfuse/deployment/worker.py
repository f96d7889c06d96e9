"""A client process that answers all messages of a SuperNode, and keeps its model loaded.

Flower starts a new process for each message, and importing libraries and loading a model takes
longer than many messages. With ``flower-supernode --isolation process`` it does not, and ``serve``
answers one message after the other as ``flwr-clientapp`` does, by Flower's own functions. A
client's state travels with each message, so the results are those of new processes.

Differs from ``flwr-clientapp``: the app is loaded once, for the first message (a message of another
version of the app restarts the process); a failing handler's changes of ``Context.state`` are lost.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from contextlib import suppress
from logging import ERROR, INFO
from typing import NoReturn

from flwr.app import Context, Error, Message
from flwr.cli.install import install_from_fab
from flwr.clientapp import ClientApp
from flwr.clientapp.utils import get_load_client_app_fn
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore import log
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedfuse.flower.app_bundle import PACKAGES

POLL_SECONDS = 0.1
# Token of a message that this process acquired before it restarted itself.
_TOKEN = "FEDFUSE_TASK_TOKEN"


def serve(supernode: str) -> NoReturn:
    """Answer the messages of the SuperNode at an address, ``HOST:PORT``, until a signal comes.

    It may start before the SuperNode does, and waits for it again when that restarts.
    """
    importlib.import_module("peft")  # Seconds that the first message need not wait for.
    worker = Worker(supernode)
    if token := os.environ.pop(_TOKEN, ""):
        worker.answer(token)
    tasks = _connect(supernode)
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while True:
        given = tasks.AcquireTask(request)
        if not given.token:
            time.sleep(POLL_SECONDS)
        elif worker.app_hash in ("", given.task.fab_hash):
            worker.answer(given.token)
        else:
            _restart(given.token)


class Worker:
    """One app, loaded once.

    Attributes:
        app_hash: hash of the app's bundle; empty before the first message.
    """

    def __init__(self, supernode: str) -> None:
        self._supernode = supernode
        self.app_hash = ""
        self._app: ClientApp

    def answer(self, token: str) -> None:
        """Pull the message of a token, and push its reply."""
        client = _connect(self._supernode, token)
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heartbeat.start()
        try:
            message, context, run, fab = pull_task_input(client)
            reply, failure = self._reply(message, context, run, fab)
            push_message(client, reply, context)
            status = SubStatus.FAILED if failure else SubStatus.COMPLETED
            push_task_output(client, None if failure else context, status, failure)
        except Exception as error:
            # The SuperNode is gone or gave the message up: nobody waits for this reply.
            log(ERROR, "a message was lost", exc_info=error)
            with suppress(Exception):
                push_task_output(client, None, SubStatus.FAILED, _reason(error))
        finally:
            with suppress(RuntimeError):  # It has ended by itself if the SuperNode is gone.
                heartbeat.stop()
            client.close()

    def _reply(self, message: Message, context: Context, run: Run, fab: Fab) -> tuple[Message, str]:
        """The app's reply and "", or an error and its reason."""
        try:
            if not self.app_hash:
                self._app, self.app_hash = _load(run, fab), fab.hash_str
            started = time.perf_counter()
            reply = self._app(message=message, context=context)
            seconds = time.perf_counter() - started
            log(INFO, "%s answered in %.1f s", message.metadata.message_type, seconds)
            return reply, ""
        except Exception as error:
            log(ERROR, "%s failed", message.metadata.message_type, exc_info=error)
            reason = _reason(error)
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code=code, reason=reason), reply_to=message), reason


def _load(run: Run, fab: Fab) -> ClientApp:
    """The ClientApp in a bundle, with the bundle's own code and not what is installed here."""
    install_from_fab(fab.content, skip_prompt=True)
    for name in list(sys.modules):
        if name.partition(".")[0] in PACKAGES:
            del sys.modules[name]
    load = get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    return load(run.fab_id, run.fab_version, fab.hash_str)


def _restart(token: str) -> NoReturn:
    """Restart this process, without the loaded app, for the message of a token."""
    os.execve(sys.executable, sys.orig_argv, {**os.environ, _TOKEN: token})


def _connect(supernode: str, token: str = "") -> RuntimeHttpClient:
    """A connection to a SuperNode, which is on this machine, so without TLS."""
    version = RuntimeVersionHttpInterceptor(component_name="fedfuse-worker")
    return RuntimeHttpClient.from_server_address(
        server_address=supernode,
        insecure=True,
        root_certificates=None,
        interceptors=[version, RuntimeTokenHttpInterceptor(token)] if token else [version],
        retry_invoker=make_simple_http_retry_invoker(),
    )


def _reason(error: Exception) -> str:
    """An error as ``flwr-clientapp`` words it."""
    return f"{type(error)}:<'{error}'>"
