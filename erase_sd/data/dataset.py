"""A dataset: images with captions, whichever format they come in."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from ..files import digest, is_encodable, key_of
from .images import ImageSource, hash_image
from .pair import Split


@dataclass(frozen=True)
class CaptionedImage:
    """An image with all of its captions."""

    image: str
    """Name of the image, unique in its dataset."""
    captions: tuple[str, ...]
    split: Split | None = None
    """The image's split in the dataset itself, if it has one."""
    label: str | None = None
    """Its class, if the dataset has classes instead of captions."""


@dataclass(frozen=True)
class Dataset:
    """A folder's captioned images, in the order of the captions."""

    folder: Path
    source: Path
    """File or folder that holds the captions."""
    format: str
    """Title of the format."""
    digest: str
    """SHA-256 of image names, captions and splits."""
    items: tuple[CaptionedImage, ...]
    files: Mapping[str, ImageSource]
    """Where the images lie that exist, by name."""
    unreadable: dict[str, str] = field(default_factory=dict, compare=False)
    """Images that were found not to be readable, and why; they are left out."""
    images_sha256: str | None = None
    """`images_digest` over all images, if the items are only a sample of them."""

    def __post_init__(self) -> None:
        for item in self.items:
            if not is_encodable(" ".join((item.image, item.label or "", *item.captions))):
                raise DataError(
                    f"the name, class or caption of image {item.image!r} is not UTF-8",
                    field="data", value=self.folder,
                )  # fmt: skip

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Classes of the images, sorted by name; empty for a dataset of captions."""
        return tuple(sorted({item.label for item in self.items if item.label is not None}))

    @functools.cached_property
    def missing(self) -> tuple[str, ...]:
        """Names of images that have captions but no file."""
        return tuple(item.image for item in self.items if item.image not in self.files)

    @functools.cached_property
    def images_digest(self) -> str:
        """SHA-256 of the images: their names and hashes."""
        return self.images_sha256 or key_of(
            [
                [i.image, hash_image(self.files[i.image])]
                for i in self.items
                if i.image in self.files
            ]
        )

    def path_of(self, image_name: str) -> ImageSource:
        """Where an image lies. Raises DataError if its file is missing."""
        if image_name not in self.files:
            raise DataError(f"image {image_name} is missing", field="data", value=self.folder)
        return self.files[image_name]


def digest_of(items: Iterable[CaptionedImage]) -> str:
    """SHA-256 of image names, splits and captions."""
    content = json.dumps([[item.image, item.split, *item.captions] for item in items])
    return digest(content.encode())
