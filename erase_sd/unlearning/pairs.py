"""The caption pairs of a run: where `unlearn` reads them, and the same ones again for what follows."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.concept import Concept
from ..data.flickr30k import Dataset, read
from ..data.split import Split, split, with_images
from ..errors import RunError
from ..models.presets import SYNTH, Models
from ..run import Run, concepts_of
from . import synthetic as synth


def dataset_of(models: Models, concepts: Sequence[Concept]) -> Dataset:
    """The pairs of `models`; with `--data synth` those that the model makes of the concepts."""
    return read(synth.pairs(models, concepts) if models.data == SYNTH else models.pairs())


def sides_of(run: Run, models: Models) -> tuple[Dataset, Split]:
    """The pairs that the run was unlearned with, and its own split of them.

    Raises RunError before unlearning is done, and where the pairs are others by now.
    """
    manifest = run.require("unlearn", "unlearn first")
    settings, concepts = manifest["stages"]["unlearn"]["settings"], concepts_of(manifest)
    data = dataset_of(models, concepts)
    if data.digest != settings["data"]:
        raise RunError(f"{run.folder}: unlearned with other caption pairs than {data.folder} has")
    return data, with_images(split(data.items, concepts), data)
