"""The cache of the original's images: whole batches or none, even with concurrent writers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from erase_sd.files import cache_folder, whole_folder
from erase_sd.generation import cache
from erase_sd.generation.cache import cached_batch, image_cache, store_batch

BATCH = [b"one", b"two"]


def test_only_a_complete_and_intact_batch_is_returned() -> None:
    store_batch(image_cache(), "key", BATCH)
    assert cached_batch(image_cache(), "key", 2) == BATCH
    assert cached_batch(image_cache(), "key", 3) == [] == cached_batch(image_cache(), "other", 2)
    (image_cache() / "key").rename(image_cache() / "moved")
    assert cached_batch(image_cache(), "moved", 2) == []  # another batch's images
    store_batch(image_cache(), "key", BATCH)
    first = min((cache_folder() / "images" / "key").iterdir())
    first.write_bytes(b"damaged")
    assert cached_batch(image_cache(), "key", 2) == []
    store_batch(image_cache(), "key", BATCH)
    assert cached_batch(image_cache(), "key", 2) == BATCH


@pytest.mark.parametrize("other", [BATCH, [b"three"]])
def test_losing_a_race_is_an_error_only_if_the_winner_stored_another_batch(
    monkeypatch: pytest.MonkeyPatch, other: list[bytes]
) -> None:
    root = image_cache()

    @contextmanager
    def overtaken(folder: Path) -> Iterator[Path]:
        with whole_folder(folder.with_name("mine")) as partial:
            yield partial
        monkeypatch.undo()
        store_batch(root, folder.name, other)
        raise OSError("Directory not empty")

    monkeypatch.setattr(cache, "whole_folder", overtaken)
    if other == BATCH:
        store_batch(root, "key", BATCH)
        assert cached_batch(root, "key", 2) == BATCH
    else:
        with pytest.raises(OSError, match="not empty"):
            store_batch(root, "key", BATCH)
