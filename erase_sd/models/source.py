"""Model folders and hub ids: fetching, fingerprints, and the check that nothing foreign would run."""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..checked import hash_files, walk_files
from ..errors import EraseError, ModelError, reason
from ..reading import read_json
from ..runtime import is_out_of_memory, log

Source = str | Path
"""A folder, or a model hub id (`owner/name`)."""

# Files fetched from a repository: no pickles, no copies in other precisions, no safety checker.
SD_FILES = (
    "model_index.json",
    "scheduler/*.json",
    *(f"{module}/{name}" for module in ("text_encoder", "text_encoder_2", "text_encoder_3", "unet",
                                        "transformer", "vae")
      for name in ("config.json", "model*.safetensors", "diffusion_pytorch_model*.safetensors",
                   "*.safetensors.index.json")),
    *(f"{module}/{name}" for module in ("tokenizer", "tokenizer_2", "tokenizer_3")
      for name in ("*.json", "*.txt", "*.model")),
)  # fmt: skip
CONFIG_FILES = ("*.json", "*/*.json", "*/*.txt")
CLIP_FILES = ("*.json", "*.txt", "model*.safetensors")
TOKENIZER_FILES = ("*.json", "*.txt")
MAX_LAYERS, MAX_SIZE = 1000, 10_000_000
"""Maximum number of layers of a model, and of everything else that a configuration counts."""
UNWANTED = ("*.fp16.*", "*.fp16-*", "*.non_ema.*", "*/flax_*", "*/openvino_*")


def fetch(field: str, source: Source, files: Sequence[str], revision: str | None = None) -> Path:
    """A folder itself, or a hub repository's files in the hub's cache, downloaded if missing.

    The only function that downloads anything; it logs that it does. Raises ModelError about `field` if
    `source` is neither a folder nor a repository that can be fetched.
    """
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise ModelError("no such folder, and not a hub id (owner/name)", field=field, value=source)
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    log.info("%s: checking the model hub", source)
    try:
        folder = Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=list(files),
                ignore_patterns=list(UNWANTED),
            )
        )
        if half := _without_weights(folder, files):  # a repository in half precision only
            snapshot_download(source, revision=revision, allow_patterns=half)
        return folder
    except LocalEntryNotFoundError:
        why = "no such folder, not in the hub's cache, and the hub cannot be reached"
    except (HfHubHTTPError, HFValidationError, httpx2.HTTPError) as error:
        why = f"cannot be fetched ({reason(error)})"
    raise ModelError(why, field=field, value=source)


def _without_weights(folder: Path, files: Sequence[str]) -> list[str]:
    """Patterns of half-precision weights for the components that were fetched without any."""
    if not any(".safetensors" in pattern for pattern in files):
        return []
    return [
        f"{config.parent.relative_to(folder).as_posix()}/{name}"
        for config in sorted(folder.glob("*/config.json"))
        if not any(config.parent.glob("*.safetensors"))
        for name in ("*.fp16*.safetensors*", "*.safetensors.index.fp16.json")
    ]


@contextlib.contextmanager
def foreign_files(folder: Path) -> Iterator[None]:
    """Turns whatever a library raises over a folder's damaged or foreign files into a ModelError."""
    try:
        yield
    except EraseError:
        raise
    except Exception as error:  # which it is differs between releases
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{folder}: files are damaged or foreign ({reason(error)})") from None


def fingerprint(folder: Path, known: Collection[str] = ()) -> str:
    """Hash of a model folder's weights and settings, as far as `fetch` would take them from the hub.

    Other files that come into the folder do not change it: runs and exports, and in the hub's cache the
    safety checker and the half-precision copies that diffusers downloads there. If that of earlier
    versions is among the `known`, it is returned instead.
    """
    own = hash_files(
        folder, [path for path in _weights_and_settings(folder) if _is_read(folder, path)]
    )
    if known and own not in known and (earlier := earlier_fingerprint(folder)) in known:
        return earlier
    return own


def earlier_fingerprint(folder: Path) -> str:
    """The hash that earlier versions took, of all weights and settings in the folder."""
    return hash_files(folder, _weights_and_settings(folder))


def _weights_and_settings(folder: Path) -> list[Path]:
    """Without a `vocab.json` beside a `tokenizer.json`, which holds the same vocabulary."""
    files = [p for p in walk_files(folder) if p.suffix in (".json", ".safetensors")]
    copies = {path.parent for path in files if path.name == "tokenizer.json"}
    return [p for p in files if not (p.name == "vocab.json" and p.parent in copies)]


def _is_read(folder: Path, path: Path) -> bool:
    """Whether a file in a model folder is one that `fetch` takes."""
    name = path.relative_to(folder).as_posix()
    if (folder / "model_index.json").is_file():
        wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in SD_FILES)
    else:
        wanted = path.parent == folder and any(fnmatch.fnmatchcase(name, p) for p in CLIP_FILES)
    other = any(fnmatch.fnmatchcase(name, pattern) for pattern in UNWANTED)
    return wanted and (not other or variant_of(path.parent) == "fp16")


def variant_of(folder: Path) -> str | None:
    """`fp16` for a component that is there in half precision only (`model.fp16.safetensors`)."""
    names = [path.name for path in folder.glob("*.safetensors") if not path.name.startswith(".")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def check_config(folder: Path) -> None:
    """Raises ModelError for a folder without `config.json`, one that would run its own code, and one of
    absurd sizes."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: not a model folder (no config.json)")
    if "auto_map" in read_json(folder / "config.json"):
        raise ModelError(f"{folder}: its config.json would run code of its own; refused")
    check_sizes(folder / "config.json")


def check_sizes(path: Path) -> None:
    """ModelError for a configuration of absurd sizes, which would be built until the memory is full."""
    for name, value in _numbers(read_json(path)):
        most = MAX_LAYERS if "layer" in name or "block" in name else MAX_SIZE
        if value > most:
            raise ModelError(f"{path}: {name} is {value}, at most {most:,} is read")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers in parsed JSON, each with the name of the field that it is in."""
    if isinstance(value, int):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
