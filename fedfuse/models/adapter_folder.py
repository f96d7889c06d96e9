"""Adapter folders: which base they are for, by name and by content, and folders to refuse.

PEFT's format names the base by the path or hub id that it had where the adapter was made, which
means nothing on another machine. So a folder of ours says beside it what the base's weights are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fedfuse.errors import FedfuseError, check

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Beside PEFT's files: the fingerprint of the base.
BASE = "base.json"
# Bytes of each tensor that the fingerprint is of: enough to tell weights apart, and cheap for large
# models.
_SAMPLED = 4096


def base_of(folder: Path) -> str | None:
    """Name of the base that an adapter folder is for; None for a folder that is no adapter.

    Raises:
        FedfuseError: for a folder that holds a base model and an adapter, an adapter that does not
            name its base, one whose base is not here, or one that was made for another base.
    """
    if not (folder / CONFIG).is_file():
        return None
    if (folder / "config.json").is_file():
        raise FedfuseError(
            f"model folder {str(folder)!r}: expected a base model or an adapter, got both; move "
            f"{CONFIG} and the adapter's weights into a folder of their own"
        )
    named, wanted = named_base(folder), _fingerprint_of_base(folder)
    if not Path(named).expanduser().is_dir():
        suffix = f", of fingerprint {wanted}" if wanted else ""
        raise FedfuseError(
            f"adapter {str(folder)!r}: expected its base model in the folder {named!r}, which is "
            f"not here{suffix}; download or copy it, and put its folder into {CONFIG} "
            "(base_model_name_or_path)"
        )
    check_base(folder, named)
    return named


def named_base(folder: Path) -> str:
    """Name of the base that an adapter folder is for, a folder or a hub id, whether here or not.

    Raises:
        FedfuseError: for an adapter that does not name its base.
    """
    named = _read(folder / CONFIG).get("base_model_name_or_path")
    good = isinstance(named, str) and bool(named)
    check(f"{folder / CONFIG}: base_model_name_or_path", repr(named), "name of a model", good)
    return str(named)


def check_base(folder: Path, base: str) -> None:
    """Refuse a base whose weights are not those that an adapter was made for.

    An adapter that says nothing of its base's content is taken at its word.

    Args:
        folder: of the adapter.
        base: folder of the base; a hub id is taken as it is.

    Raises:
        FedfuseError: naming both fingerprints.
    """
    wanted, found = _fingerprint_of_base(folder), weights_fingerprint(base)
    good = not (wanted and found) or found == wanted
    check(f"adapter {str(folder)!r}: base {base!r}", found, f"fingerprint {wanted}", good)


def _fingerprint_of_base(folder: Path) -> object:
    """What ``write_base`` said of the base's content; None where it was a hub id."""
    return _read(folder / BASE).get("fingerprint") if (folder / BASE).is_file() else None


def write_base(folder: Path, base: str) -> None:
    """Say in an adapter folder what its base's weights are, where the base is a folder."""
    path = Path(base).expanduser()
    if path.is_dir():
        about = {"name": base, "fingerprint": fingerprint(path)}
        (folder / BASE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def weights_fingerprint(name: str) -> str:
    """``fingerprint`` of a model's folder; "" for a hub id, which names its content."""
    folder = Path(name).expanduser()
    return fingerprint(folder) if folder.is_dir() else ""


def fingerprint(folder: Path) -> str:
    """SHA-256 (hex, the first 16 digits) of a model's safetensors: of names, shapes and dtypes of
    all tensors, and of the first bytes of each.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            size = int.from_bytes(weights.read(8), "little")
            header = json.loads(weights.read(size))
            for name, tensor in sorted(header.items()):
                if name == "__metadata__":
                    continue
                start, end = tensor["data_offsets"]
                digest.update(json.dumps([name, tensor["dtype"], tensor["shape"]]).encode())
                weights.seek(8 + size + start)
                digest.update(weights.read(min(end - start, _SAMPLED)))
    return digest.hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FedfuseError(f"{path}: expected JSON, got {error}") from error
    check(str(path), type(found).__name__, "a JSON object", isinstance(found, dict))
    return dict(found)
