"""The cache of the original's images: whole batches or none, whoever else writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from erase_sd.files import cache_folder, whole_folder
from erase_sd.generation import cache as image_cache

BATCH = [b"one", b"two"]


def test_a_batch_is_found_whole_and_nothing_less_is() -> None:
    image_cache.keep("key", BATCH)
    assert image_cache.find("key", 2) == BATCH
    assert image_cache.find("key", 3) == [] == image_cache.find("other", 2)
    first = min((cache_folder() / "images" / "key").iterdir())
    first.write_bytes(b"damaged")
    assert image_cache.find("key", 2) == []
    image_cache.keep("key", BATCH)
    assert image_cache.find("key", 2) == BATCH


@pytest.mark.parametrize("other", [BATCH, [b"three"]])
def test_another_process_may_keep_the_same_meanwhile(
    monkeypatch: pytest.MonkeyPatch, other: list[bytes]
) -> None:
    @contextmanager
    def overtaken(folder: Path) -> Iterator[Path]:
        with whole_folder(folder.with_name("mine")) as partial:
            yield partial
        monkeypatch.undo()
        image_cache.keep(folder.name, other)
        raise OSError("Directory not empty")

    monkeypatch.setattr(image_cache, "whole_folder", overtaken)
    if other == BATCH:
        image_cache.keep("key", BATCH)
        assert image_cache.find("key", 2) == BATCH
    else:
        with pytest.raises(OSError, match="not empty"):
            image_cache.keep("key", BATCH)
