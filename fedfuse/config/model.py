"""A base model and its LoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass

from fedfuse.config.fields import between, check_fields, inline, one_of, text
from fedfuse.config.training import AUTOCAST

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A LoRA adapter (Hu et al., arXiv 2106.09685).

    Attributes:
        rank: rank r of the update, 1 or more; 8 is common, more than the layers' width is a waste.
        alpha: scale of the update is alpha / r, above 0; twice the rank is common.
        dropout: dropout on the adapter's input while training, 0 to below 1.
        targets: names of modules joined by commas, or ``all-linear`` for all but the output head.
    """

    rank: int = between(16, 1)
    alpha: float = between(16.0, 0, above=True)
    dropout: float = between(0.0, 0, 0.99)
    targets: str = text(ALL_LINEAR)

    def __post_init__(self) -> None:
        check_fields(self, "LoRA")

    @property
    def target_names(self) -> list[str]:
        """The targets, one by one."""
        return [name.strip() for name in self.targets.split(",") if name.strip()]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A base model and its adapter.

    Attributes:
        model: ``builtin:NAME``, a hub id or a local folder. For clients also a cycle ``a, b, c`` or
            a mapping ``0=a, 3=b, *=c`` from partition to model.
        dtype: data type of the frozen weights.
        autocast: data type of products while training, extracting and scoring; the adapter stays
            float32, and float16 trains with a loss scale.
        device: ``auto`` takes a GPU where there is one.
        quantization: quantization of the frozen weights; needs bitsandbytes and a GPU.
        gradient_checkpointing: trade time for memory.
        lora: the adapter; its keys begin with ``lora-``.
    """

    model: str = text("builtin:server")
    dtype: str = one_of("float32", "float32", "bfloat16", "float16")
    autocast: str = one_of("none", *AUTOCAST)
    device: str = text("auto")
    quantization: str = one_of("none", "none", "4bit", "8bit")
    gradient_checkpointing: bool = False
    lora: AdapterConfig = inline(AdapterConfig(), "lora-")  # noqa: RUF009
