"""A base model and its LoRA adapter; or a teacher that does not learn."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from fedfuse.config.fields import (
    between,
    check_fields,
    count_or_share,
    inline,
    is_service_url,
    name_of_variable,
    one_of,
    text,
)
from fedfuse.config.training import AUTOCAST
from fedfuse.errors import FedfuseError

ALL_LINEAR = "all-linear"
# Begins the targets of an adapter that are one regular expression.
EXPRESSION = "re:"
# Begins the name of a teacher that is a file of knowledge.
KNOWLEDGE = "knowledge:"


def is_endpoint(model: str) -> bool:
    """Whether a model is named as one behind a URL."""
    return model.startswith(("http://", "https://"))


def is_knowledge_file(model: str) -> bool:
    """Whether a model is named as a file of its knowledge."""
    return model.startswith(KNOWLEDGE)


def can_learn(model: str) -> bool:
    """Whether a model is in the process that names it, and so can be trained."""
    return not is_endpoint(model) and not is_knowledge_file(model)


def parse_endpoint(model: str) -> tuple[str, str]:
    """URL and name of a model behind a URL, ``https://host/v1#NAME``.

    Raises:
        FedfuseError: for another form. It does not repeat the value, which may hold a password.
    """
    url, _, name = model.partition("#")
    if not is_endpoint(model) or not is_service_url(url) or not name:
        raise FedfuseError(
            "model behind a URL: expected http(s)://HOST/v1#MODEL, MODEL as the service knows it, "
            "without user, password and query"
        )
    return url, name


def shown_name(model: str) -> str:
    """A model's name as others may see it: without the address of a service, or a file's folder."""
    if is_endpoint(model):
        return model.partition("#")[2]
    if is_knowledge_file(model):
        return KNOWLEDGE + PurePath(model.removeprefix(KNOWLEDGE)).name
    return model


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A LoRA adapter (Hu et al., arXiv 2106.09685).

    Attributes:
        rank: rank r of the update, 1 or more; 8 is common, more than the layers' width is a waste.
        alpha: scale of the update is alpha / r, above 0; twice the rank is common.
        dropout: dropout on the adapter's input while training, 0 to below 1.
        targets: ``all-linear`` for all but the output head; or names of modules, ``attention`` and
            ``mlp``, joined by commas; or ``re:`` and a regular expression of whole paths.
        layers: how many of the last layers get an adapter, or a share of them below 1; 0 for all.
            What is below the first of them is computed once a run.
    """

    rank: int = between(16, 1)
    alpha: float = between(16.0, 0, above=True)
    dropout: float = between(0.0, 0, 0.99)
    targets: str = text(ALL_LINEAR)
    layers: float = count_or_share(0.0)

    def __post_init__(self) -> None:
        check_fields(self, "LoRA")
        if self.targets.startswith(EXPRESSION):
            try:
                re.compile(self.targets.removeprefix(EXPRESSION).strip())
            except re.error as error:
                raise FedfuseError(
                    f"LoRA: targets: expected a regular expression after {EXPRESSION}, got "
                    f"{self.targets!r}: {error}"
                ) from error

    @property
    def target_names(self) -> list[str]:
        """The targets, one by one."""
        if self.targets.startswith(EXPRESSION):
            return [self.targets]
        return [name.strip() for name in self.targets.split(",") if name.strip()]


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """How to ask a model behind a URL.

    Attributes:
        key_variable: name of the environment variable that holds the service's key; empty: no key
            is sent.
        concurrency: requests at a time.
        requests_per_minute: rate, sent evenly; 0 for no limit.
        timeout: seconds without a byte of an answer.
    """

    key_variable: str = name_of_variable()
    concurrency: int = between(4, 1)
    requests_per_minute: float = between(0.0, 0)
    timeout: float = between(120.0, 0, above=True)

    def __post_init__(self) -> None:
        check_fields(self, "endpoint")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A base model and its adapter, or a teacher that does not learn.

    Attributes:
        model: ``builtin:NAME``, a hub id or a local folder; as a teacher that does not learn,
            ``https://HOST/v1#MODEL``, or ``knowledge:FILE`` of ``fedfuse extract``. For clients
            also a cycle ``a, b, c`` or a mapping ``0=a, 3=b, *=c`` from partition to model.
        tokenizer: tokenizer of a model behind a URL: a folder, a ``tokenizer.json``, a hub id;
            empty for the hub id or folder that MODEL is. For clients also a cycle or a mapping.
        dtype: data type of the frozen weights.
        autocast: data type of products while training, extracting and scoring; the adapter stays
            float32, and float16 trains with a loss scale.
        device: ``auto`` takes a GPU where there is one.
        quantization: quantization of the frozen weights; needs bitsandbytes and a GPU.
        device_map: ``auto`` spreads the layers over all accelerators; with ``fedfuse extract`` also
            over the machine's memory.
        gradient_checkpointing: trade time for memory.
        states_cache: GiB on disk for hidden states below the first layer with an adapter, in the
            cache folder; 0 to keep none.
        lora: the adapter; its keys begin with ``lora-``.
        endpoint: how to ask a model behind a URL; its keys begin with ``endpoint-``.
    """

    model: str = text("builtin:server")
    tokenizer: str = text("", empty=True)
    dtype: str = one_of("float32", "float32", "bfloat16", "float16")
    autocast: str = one_of("none", *AUTOCAST)
    device: str = text("auto")
    quantization: str = one_of("none", "none", "4bit", "8bit")
    device_map: str = one_of("none", "none", "auto")
    gradient_checkpointing: bool = False
    states_cache: float = between(8.0, 0)
    lora: AdapterConfig = inline(AdapterConfig(), "lora-")  # noqa: RUF009
    endpoint: EndpointConfig = inline(EndpointConfig(), "endpoint-")  # noqa: RUF009
