"""CLIP's image features of a dataset, computed once and cached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..checked import load_tensors, save_tensors
from ..data.dataset import Dataset
from ..data.images import Entry, hash_image, open_image
from ..errors import DataError, RunError
from ..files import cache_folder, key_of
from ..runtime import in_batches, log
from ..sharing import each, from_first, place
from .clip import Clip

_BATCH = 128


def image_features(clip: Clip, data: Dataset, images: Sequence[str]) -> dict[str, Tensor]:
    """Unit-norm features of `images` by file name.

    Images that cannot be read are left out and noted in `data.unreadable`. The cache is keyed by the
    weights and by each image file's hash; a damaged cache is replaced. Processes in step share the
    batches, or whole webdataset shards, each of which has a cache of its own.
    """
    by_shard: dict[Path, list[str]] = {}
    for name in dict.fromkeys(images):
        source = data.path_of(name)
        if not isinstance(source, Entry) or source.width:
            return _features(clip, data, list(dict.fromkeys(images)), data.digest)
        by_shard.setdefault(source.file, []).append(name)

    def of_shard(shard: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        return _features(clip, data, by_shard[shard], str(shard)), data.unreadable

    table: dict[str, Tensor] = {}
    for features, unreadable in each(list(by_shard), of_shard):
        table |= features
        data.unreadable.update(unreadable)
    return table


def _features(clip: Clip, data: Dataset, images: Sequence[str], where: str) -> dict[str, Tensor]:
    """Features of images, with a cache for those of `where`."""
    hashes = {name: hash_image(data.path_of(name)) for name in images}
    path = cache_folder() / "features" / f"{key_of([clip.digest, where])}.safetensors"
    about = {"key": path.stem}  # so that another cache entry in its place is detected
    known = from_first(lambda: _cached(path, about))
    missing = [name for name, sha256 in hashes.items() if sha256 not in known]
    names = readable(data, missing)
    batches = [names[start : start + _BATCH] for start in range(0, len(names), _BATCH)]
    for batch, rows in zip(batches, each(batches, lambda b: _encode(clip, data, b)), strict=True):
        known |= {hashes[name]: row.clone() for name, row in zip(batch, rows, strict=True)}
    if missing and place()[0] == 0:
        try:
            save_tensors(path, known, about)
        except (OSError, RunError) as error:
            log.warning("%s: image features are not cached (%s)", path, error)
    return {name: known[sha256] for name, sha256 in hashes.items() if sha256 in known}


def _cached(path: Path, about: dict[str, str]) -> dict[str, Tensor]:
    """Features by the images' hashes; none without an intact file whose metadata are `about`."""
    try:
        stored, of_stored = load_tensors(path)
    except (OSError, RunError):
        return {}
    return stored if of_stored == about else {}


def report_unreadable(data: Dataset) -> None:
    """Logs how many images were left out, and names the first."""
    for name, why in list(data.unreadable.items())[:1]:
        log.warning(
            "%s: %d unreadable images are left out, first %s (%s)",
            data.folder, len(data.unreadable), name, why.removeprefix(f"{data.path_of(name)}: "),
        )  # fmt: skip


def readable(data: Dataset, images: Iterable[str]) -> list[str]:
    """The images that can be opened; the others are noted in `data.unreadable`."""
    names = [name for name in images if name not in data.unreadable]
    for name, why in zip(names, each(names, lambda n: _why_unreadable(data, n)), strict=True):
        if why is not None:
            data.unreadable[name] = why
    return [name for name in names if name not in data.unreadable]


def _why_unreadable(data: Dataset, name: str) -> str | None:
    try:
        open_image(data.path_of(name))
    except DataError as error:
        return error.rule
    return None


def _encode(clip: Clip, data: Dataset, names: Sequence[str]) -> Tensor:
    def encode(names: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return clip.encode_image(clip.pixels([data.path_of(name) for name in names])).cpu()

    return torch.cat([rows for _, rows in in_batches(names, _BATCH, encode)])
