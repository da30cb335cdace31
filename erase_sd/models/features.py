"""CLIP's image features of a dataset, computed once and cached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..checked import load_tensors, save_tensors
from ..data.dataset import Dataset
from ..data.images import hash_image, open_image
from ..errors import DataError, RunError
from ..files import cache_folder, key_of
from ..runtime import in_batches, log
from .clip import Clip

_BATCH = 128


def image_features(clip: Clip, data: Dataset, images: Sequence[str]) -> dict[str, Tensor]:
    """Unit-norm features of `images` by file name.

    Images that cannot be read are left out and noted in `data.unreadable`. The cache is keyed by the
    weights and by each image file's hash; a damaged cache is replaced.
    """
    hashes = {name: hash_image(data.path_of(name)) for name in dict.fromkeys(images)}
    path = cache_folder() / "features" / f"{key_of([clip.digest, data.digest])}.safetensors"
    try:
        known, _ = load_tensors(path)
    except (OSError, RunError):
        known = {}
    missing = [name for name, sha256 in hashes.items() if sha256 not in known]
    for names, rows in in_batches(
        readable(data, missing), _BATCH, lambda b: _encode(clip, data, b)
    ):
        known |= {hashes[name]: row.clone() for name, row in zip(names, rows, strict=True)}
    if missing:
        try:
            save_tensors(path, known, {})
        except (OSError, RunError) as error:
            log.warning("%s: image features are not cached (%s)", path, error)
    return {name: known[sha256] for name, sha256 in hashes.items() if sha256 in known}


def report_unreadable(data: Dataset) -> None:
    """Logs how many images were left out, and names the first."""
    for name, why in list(data.unreadable.items())[:1]:
        log.warning(
            "%s: %d unreadable images are left out, first %s (%s)",
            data.folder, len(data.unreadable), name, why.removeprefix(f"{data.path_of(name)}: "),
        )  # fmt: skip


def readable(data: Dataset, images: Iterable[str]) -> list[str]:
    """The images that can be opened; the others are noted in `data.unreadable`."""
    names = []
    for name in images:
        if name not in data.unreadable:
            try:
                open_image(data.path_of(name))
                names.append(name)
            except DataError as error:
                data.unreadable[name] = error.rule
    return names


def _encode(clip: Clip, data: Dataset, names: Sequence[str]) -> Tensor:
    with torch.no_grad():
        return clip.encode_image(clip.pixels([data.path_of(name) for name in names])).cpu()
