"""Check a machine before it joins a federation, and say what to fix.

Every check runs the client's own functions: it loads the model, reads the data, trains two steps on
the longest samples, connects with the machine's certificate and key. A check is skipped when one
that it depends on failed.
"""

from __future__ import annotations

import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from packaging.requirements import Requirement

from fedfuse.algorithms.local_model import LocalModel
from fedfuse.config.node import ClientConfig, parse_client
from fedfuse.data.sample import Sample, SharedSamples
from fedfuse.deployment.superlink_client import Credentials, probe_superlink
from fedfuse.distillation.oom import is_out_of_memory
from fedfuse.errors import FedfuseError
from fedfuse.factory.data import private_samples
from fedfuse.factory.models import check_model, load_local_model
from fedfuse.flower.app_bundle import app_dir, dependencies
from fedfuse.models.devices import peak_memory, reset_peak, resolve_device, total_memory
from fedfuse.tokenizers.dataset import TokenizedDataset

GIGABYTE = 2**30
_MISSING = "none"  # in place of a version


class CheckError(Exception):
    """Failure of a check, and how to fix it."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found)
        self.fix = fix


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Result of one check.

    Attributes:
        check: name of the check.
        found: description of what was found, or of the failure.
        fix: how to fix the failure; empty for success.
    """

    check: str
    found: str
    fix: str = ""


@dataclass(slots=True)
class Machine:
    """A machine under check.

    Attributes:
        node_config: flat node config, as Flower carries it.
        run_config: flat run config of the run to take part in.
        credentials: credentials for the SuperLink; None skips the connection.
        results: results so far, in the order of the checks.
    """

    node_config: Mapping[str, Any]
    run_config: Mapping[str, Any]
    credentials: Credentials | None = None
    results: list[CheckResult] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether all checks so far succeeded."""
        return not any(result.fix for result in self.results)

    def check(self, name: str, function: Callable[[], tuple[str, Any]], fix: str) -> Any:
        """Run a check and keep its result; returns what it loaded, None for a failure."""
        try:
            found, loaded = function()
        except CheckError as error:
            self.results.append(CheckResult(name, str(error), error.fix))
        except FedfuseError as error:
            self.results.append(CheckResult(name, str(error), fix))
        else:
            self.results.append(CheckResult(name, found))
            return loaded
        return None


def check_machine(machine: Machine) -> None:
    """Run all checks that apply; see ``machine.results``."""
    machine.check("versions", check_versions, "install fedfuse again: make setup, or pip install")
    fix = "correct the node config, or the run config"
    client: ClientConfig | None = machine.check(
        "configuration", lambda: _configuration(machine), fix
    )
    if client:
        private = machine.check(
            "data", lambda: _data(client), "correct data in the node config, or the file"
        )
        fix = "take a model with a tokenizer.json, that is a fast tokenizer"
        tokenizer = machine.check("tokenizer", lambda: _tokenizer(client), fix)
        local_model: LocalModel | None = tokenizer and machine.check(
            "model",
            lambda: _model(client, private or [Sample("any", " text")]),
            "correct model, device or dtype in the node config",
        )
        if local_model and private:
            fix = "give samples with an answer within data.max-length"
            machine.check("memory", lambda: _memory(client, local_model, private), fix)
    if machine.credentials:
        credentials = machine.credentials
        authority = machine.check(
            "certificate", lambda: _authority(credentials), "copy ca.crt from the SuperLink's files"
        )
        fix = "fedfuse certs node NAME; chmod 600 NAME.key"
        key = machine.check("key", lambda: _key(credentials), fix)
        if authority and key:
            machine.check("SuperLink", lambda: _superlink(credentials), "correct --superlink")


def check_versions() -> tuple[str, bool]:
    """Compare Python and the installed packages with the versions that the app requires.

    Raises:
        CheckError: naming every package that is missing or of another version.
    """
    python, packages = dependencies(app_dir())
    here = ".".join(map(str, sys.version_info[:3]))
    versions = [("Python", python, here)]
    versions += [(package.name, package.specifier, _installed(package)) for package in packages]
    wrong = [
        f"{name}: expected {expected}, got {found}"
        for name, expected, found in versions
        if found == _MISSING or not expected.contains(found, prereleases=True)
    ]
    if wrong:
        raise CheckError(
            "\n".join(wrong), "install fedfuse with its constraints: make setup, or pip install"
        )
    return f"Python {here}, flwr {version('flwr')}, torch {torch.__version__}", True


def _installed(package: Requirement) -> str:
    try:
        return version(package.name)
    except PackageNotFoundError:
        return _MISSING


def _configuration(machine: Machine) -> tuple[str, ClientConfig]:
    client = parse_client(machine.node_config, machine.run_config)
    model = client.config.clients
    device = resolve_device(model.device)
    return f"client {client.node.partition_id}: {model.model} in {model.dtype} on {device}", client


def _data(client: ClientConfig) -> tuple[str, Any]:
    private = private_samples(client).train
    domains = ", ".join(sorted({sample.domain for sample in private}))
    return f"{len(private)} private samples ({domains})", private


def _tokenizer(client: ClientConfig) -> tuple[str, bool]:
    model = client.config.clients
    check_model(model.model, model.tokenizer)
    return "fast", True


def _model(client: ClientConfig, private: Sequence[Sample]) -> tuple[str, LocalModel]:
    """Load the model; the longest private samples stand for the public ones, which will be sent."""
    config = client.config
    longest = sorted(private, key=lambda sample: -len(sample.text))[: max(1, config.data.public)]
    started = time.perf_counter()
    try:
        local_model = load_local_model(
            "client",
            config.clients.model,
            config.clients,
            SharedSamples(longest, longest),
            config.data.max_length,
            config.seed,
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fix = "quantization = '4bit' or another model in the node config"
        raise CheckError(f"does not fit into the GPU's memory: {error}", fix) from error
    if not local_model.learns:  # private text is not for asking it
        return "a teacher that does not learn; it is asked when the run begins", local_model
    size = sum(parameter.numel() for parameter in local_model.lm.model.parameters())
    seconds = time.perf_counter() - started
    return f"{size / 1e6:.1f} million parameters, loaded in {seconds:.1f} s", local_model


def _memory(
    client: ClientConfig, local_model: LocalModel, private: Sequence[Sample]
) -> tuple[str, bool]:
    """Train both phases on the longest samples and extract: the peak of a round."""
    if not local_model.learns:
        return "not needed here", True
    config = client.config
    place = local_model.lm.device
    reset_peak(place)
    started = time.perf_counter()
    own = _longest(local_model, local_model.encode(private), config.local.batch_size)
    public = _longest(local_model, local_model.public, config.client_distill.batch_size)
    try:
        # In the second step the optimizer has its state.
        local = replace(config.local, steps=2)
        local_model.learn(own, local, seed=0)
        distill = replace(config.client_distill, steps=2)
        replay = own if config.client_distill.replay else None
        local_model.learn(public, distill, seed=0, replay=replay)
        local_model.knowledge(config.knowledge.k)
    except torch.OutOfMemoryError as error:
        fix = "set max-tokens in the node config: half of what it is, or 4096 for a start"
        raise CheckError(f"a step does not fit into the GPU's memory: {error}", fix) from error
    finally:
        local_model.reset()
    seconds = time.perf_counter() - started
    found = f"two steps of each phase and a pass over the data: {seconds:.1f} s"
    peak, total = peak_memory(place), total_memory(place)
    if peak is not None and total is not None:
        found += f", {peak / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GiB"
    return found, True


def _longest(local_model: LocalModel, data: TokenizedDataset, number: int) -> TokenizedDataset:
    order = np.argsort(-data.lengths, kind="stable")[:number]
    return local_model.encode([data.samples[i] for i in order])


def _authority(credentials: Credentials) -> tuple[str, bool]:
    end = credentials.authority().not_valid_after_utc
    return f"{credentials.root_certificates}, valid until {end:%Y-%m-%d}", True


def _key(credentials: Credentials) -> tuple[str, bool]:
    return f"{credentials.private_key}, {credentials.key().curve.name}", True


def _superlink(credentials: Credentials) -> tuple[str, bool]:
    where = credentials.superlink
    try:
        probe_superlink(credentials)
    except ssl.SSLCertVerificationError as error:
        found = f"shows a certificate that is not to be trusted: {error.verify_message}"
        fix = "copy the ca.crt of this SuperLink; connect by a name that its certificate has"
        raise CheckError(f"{where} {found}", fix) from error
    except PermissionError as error:
        fix = (
            "register its public key there: flwr supernode register NAME.pub; stop a SuperNode "
            "that has this key already; set this machine's clock"
        )
        raise CheckError(f"{where} does not let this machine in: {error}", fix) from error
    except OSError as error:
        fix = "start the SuperLink; open its port; correct --superlink"
        raise CheckError(f"{where} cannot be reached: {error}", fix) from error
    return f"{where} knows this machine", True
