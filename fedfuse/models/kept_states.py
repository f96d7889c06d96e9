"""What a model's frozen layers make of data sets, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor, nn

from fedfuse.models.frozen_layers import FrozenLayers
from fedfuse.models.head import without_dropout
from fedfuse.models.precision import mixed_precision
from fedfuse.models.states_file import StatesFile, StatesFolder
from fedfuse.tokenizers.dataset import TokenizedDataset, to_tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What names the states of a precision.

    Attributes:
        digest: of the states of a few texts: other weights, layers, precisions have others.
        width: d of a state.
        dtype: dtype of the states.
    """

    digest: str
    width: int
    dtype: torch.dtype


class KeptStates:
    """Hidden states behind a model's frozen layers, by data set.

    A file is found by what it holds: the base's weights, the number of its frozen layers, the
    precision, and the data set's token ids. So processes and clients with the same of all share
    it, and a run that goes on finds what it had.

    Attributes:
        layers: the frozen layers.
    """

    def __init__(
        self,
        layers: FrozenLayers,
        model: nn.Module,
        base: str,
        vocab_size: int,
        folder: StatesFolder,
    ) -> None:
        """Keep states.

        Args:
            layers: the frozen layers.
            model: the model that they are in.
            base: digest of its weights, or its name on the hub.
            vocab_size: number of token ids that it knows.
            folder: where files are.
        """
        self.layers = layers
        self._model, self._folder = model, folder
        self._base, self._vocab_size = base, vocab_size
        self._kinds: dict[str, _Kind] = {}

    def below(
        self,
        autocast: str,
        data: TokenizedDataset,
        which: Int64[ndarray, " texts"],
        places: Int64[ndarray, "batch length"],
        device: torch.device | str,
    ) -> Float[Tensor, "batch length width"] | None:
        """States of the samples ``which``, those that were missing computed now.

        Args:
            autocast: the precision, one of ``AUTOCAST``.
            data: the data set.
            which: samples by their places in it.
            places: places among all its token ids, of these samples.
            device: device of the states.

        Returns:
            ``[B, L, d]`` states at the places; at one beyond a sample's length they are another
            token's. None where nothing can be kept.
        """
        kind = self._kind(device, autocast)
        content = f"{self._base} {self.layers.number} {kind} {data.ids_digest}"
        name = hashlib.sha256(content.encode()).hexdigest()[:32]
        file = self._folder.open(name, data.num_ids, kind.width, kind.dtype)
        if file is None:
            return None
        try:
            self._complete(file, data, which, device, autocast)
        except OSError as error:
            logger.warning("hidden states are not kept in %s: %s", self._folder.path, error)
            self._folder.give_up(name)
            return None
        return file.read(places).to(device)

    def _complete(
        self,
        file: StatesFile,
        data: TokenizedDataset,
        which: Int64[ndarray, " texts"],
        device: torch.device | str,
        autocast: str,
    ) -> None:
        """Compute and write what the file lacks of some samples.

        Each alone: in a batch its last bits would depend on the others, and so on who asks first.
        """
        starts = data.starts(which)
        lacking = file.missing(starts, data.lengths[which])
        for start, number in zip(starts[lacking], which[lacking], strict=True):
            input_ids = to_tensor(data.padded_ids(np.array([number])), device)
            file.write(int(start), self._states(input_ids, autocast)[0])

    def _states(self, input_ids: Int64[Tensor, "batch length"], autocast: str) -> Tensor:
        with without_dropout(self._model), mixed_precision(autocast, input_ids.device):
            return self.layers.states(input_ids)

    def _kind(self, device: torch.device | str, autocast: str) -> _Kind:
        if autocast not in self._kinds:
            input_ids = torch.arange(64, device=device).view(4, 16) * 11 % self._vocab_size
            states = self._states(input_ids, autocast)
            digest = hashlib.sha256(states.cpu().view(torch.uint8).numpy().tobytes())
            self._kinds[autocast] = _Kind(digest.hexdigest(), states.shape[-1], states.dtype)
        return self._kinds[autocast]
