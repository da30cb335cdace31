"""CLIP's image features of a dataset, computed once and cached."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ..data.flickr30k import Dataset
from ..files import cache_folder, key_of, whole_file
from .clip import Clip

_BATCH = 128


def image_features(clip: Clip, data: Dataset, images: Sequence[str]) -> dict[str, Tensor]:
    """Unit-norm features by file name, of `images` and of all that were computed before.

    The cache is keyed by the weights and the folder's captions; a damaged file is replaced.
    """
    path = cache_folder() / "features" / f"{key_of([clip.digest, data.digest])}.safetensors"
    try:
        features = load(path.read_bytes())
        if not all(torch.isfinite(feature).all() for feature in features.values()):
            features = {}
    except (OSError, SafetensorError):
        features = {}
    missing = [name for name in dict.fromkeys(images) if name not in features]
    with torch.no_grad():
        for start in range(0, len(missing), _BATCH):
            names = missing[start : start + _BATCH]
            rows = clip.encode_image(clip.pixels([data.path_of(name) for name in names])).cpu()
            features |= {name: row.clone() for name, row in zip(names, rows, strict=True)}
    if missing:
        with whole_file(path) as file:
            save_file(features, file)
    return features
