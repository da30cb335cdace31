"""Renders training scenes on all CPU cores: `python -m erase_sd.mini.training.rendering FOLDER`.

Needs no torch, so that it can start before, and run beside, whatever uses the GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import WEIGHTS
from ..captions import training_captions
from ..scenes import SIZE, Scene, render_scene, sample

TRAIN_SEED = 10_000_000
"""Seed of the first training scene; these scenes are used for nothing else."""
TOKENS = 32
"""Context length, as 77 is CLIP's."""
EMPHASIS = 3.0
"""Extra weight of the U-Net's loss inside a thing's box, where 1 is the weight outside."""
HARD_CLASSES = {
    "chair": 2.0, "bicycle": 3.0, "elephant": 1.75, "umbrella": 1.75,
    "apple": 2.0, "laptop": 1.25, "dog": 1.5, "cup": 1.5,
}  # fmt: skip
"""Thin, small or pale classes, which a second copy of another thing tends to replace: factor of how
often their scenes are sampled, and of EMPHASIS in their boxes."""
CHUNK = 1_000
"""Scenes that a worker renders at a time."""
ARRAYS = ("scenes", "captions", "weights", "frequencies")

Chunk = dict[str, NDArray[Any]]
"""scenes: pixels, uint8, (n, 3, 64, 64); captions: token ids, int16, (n, 5, 32); weights of the loss,
float16, (n, 1, 16, 16); frequencies, float32, (n,)."""


def training_texts(scene: Scene) -> list[str]:
    """Five captions of a scene; every other one ends in a full stop."""
    return [text + (" ." if i % 2 else "") for i, text in enumerate(training_captions(scene))]


def loss_weights(scenes: Sequence[Scene], cells: int = 16) -> NDArray[np.float16]:
    """Weights of the latent cells in the U-Net's loss, (scenes, 1, cells, cells).

    1 outside of things; inside, 1 + EMPHASIS times the factor of HARD_CLASSES; not yet scaled to a
    mean of 1. Places are learned within minutes, the shapes of things are not.
    """
    edges = np.arange(cells + 1) * (SIZE / cells)
    weights = np.ones((len(scenes), 1, cells, cells), np.float16)
    for i, scene in enumerate(scenes):
        covered = np.zeros((cells, cells))
        for thing in scene.things:
            spans = []
            for centre, extent in zip(thing.centre, thing.extent, strict=True):
                low, high = centre - extent / 2, centre + extent / 2
                spans.append(np.clip(edges[1:].clip(max=high) - edges[:-1].clip(min=low), 0, None))
            across, down = (span * cells / SIZE for span in spans)
            share = HARD_CLASSES.get(thing.name, 1.0) * down[:, None] * across[None, :]
            covered = np.maximum(covered, share)
        weights[i, 0] += (EMPHASIS * covered).astype(np.float16)
    return weights


def sampling_weights(scenes: Sequence[Scene]) -> NDArray[np.float32]:
    """How often each scene is sampled, relative to one without HARD_CLASSES, (scenes,)."""
    classes = ([thing.name for thing in scene.things] for scene in scenes)
    return np.array(
        [max((HARD_CLASSES.get(n, 1.0) for n in names), default=1.0) for names in classes],
        np.float32,
    )


def render_chunk(first: int) -> Chunk:
    """Renders CHUNK training scenes from row `first` on, with their captions' token ids."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(WEIGHTS / "sd" / "tokenizer" / "tokenizer.json"))
    end = "<|endoftext|>"
    tokenizer.enable_padding(length=TOKENS, pad_id=tokenizer.token_to_id(end), pad_token=end)
    scenes = [sample(TRAIN_SEED + first + i) for i in range(CHUNK)]
    pixels = np.stack([np.asarray(render_scene(scene)[0]) for scene in scenes])
    texts = [text for scene in scenes for text in training_texts(scene)]
    ids = np.array([row.ids for row in tokenizer.encode_batch(texts)], np.int16)
    return {
        "scenes": pixels.transpose(0, 3, 1, 2),
        "captions": ids.reshape(CHUNK, -1, TOKENS),
        "weights": loss_weights(scenes),
        "frequencies": sampling_weights(scenes),
    }


def render(folder: Path, scenes: int, workers: int | None = None) -> None:
    """Writes `scenes`.npy, captions.npy, weights.npy and frequencies.npy; nothing if they are there.

    `scenes`: how many, a multiple of CHUNK.
    """
    if all((folder / f"{name}.npy").exists() for name in ARRAYS):
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f".{name}.npy" for name in ARRAYS}
    arrays: Chunk = {}
    firsts = range(0, scenes, CHUNK)
    with multiprocessing.get_context("fork").Pool(workers or os.cpu_count()) as pool:
        for first, chunk in zip(firsts, pool.imap(render_chunk, firsts), strict=True):
            for name, rows in chunk.items():
                if name not in arrays:
                    arrays[name] = np.lib.format.open_memmap(
                        partial[name], "w+", rows.dtype, (scenes, *rows.shape[1:])
                    )
                arrays[name][first : first + CHUNK] = rows
    for name, path in partial.items():
        path.rename(folder / f"{name}.npy")


def main() -> None:
    """Reads the options and renders."""
    parser = argparse.ArgumentParser(
        prog="python -m erase_sd.mini.training.rendering", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=400_000)
    parser.add_argument("--workers", type=int, default=None)
    render(**vars(parser.parse_args()))


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main()
