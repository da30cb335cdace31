"""The caption pairs of a run, for `unlearn` and for the stages that follow it."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.concept import Concept
from ..data.dataset import Dataset
from ..data.readers import read_dataset
from ..data.split import ConceptSets, split_by_concept
from ..errors import RunError
from ..models.presets import Models
from ..run import Run
from .synthetic import synthetic_pairs


def dataset_of(models: Models, concepts: Sequence[Concept]) -> Dataset:
    """The caption pairs of `models`; if its data is `synth`, those that it generates itself."""
    folder = synthetic_pairs(models, concepts) if models.data == "synth" else models.pairs()
    return read_dataset(folder, concepts)


def concept_sets_of(run: Run, models: Models) -> tuple[Dataset, ConceptSets]:
    """The caption pairs that a run was unlearned with, and their forget and retain sets.

    Raises RunError before unlearning is done, and if the data has changed since.
    """
    record = run.unlearned()
    data = dataset_of(models, record.concepts)
    begun = record.origin
    if (data.digest, data.images_digest) != (begun.data, begun.images):
        changed = "images" if data.digest == begun.data else "caption pairs"
        raise RunError(
            f"{run.folder}: unlearned with other {changed} than those of {data.folder}; use the data "
            "that the run began with, or unlearn again"
        )
    return data, split_by_concept(data.items, record.concepts).present(data)
