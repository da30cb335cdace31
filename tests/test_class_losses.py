"""In labelled data, captions repeat: each loss is over one prompt of every class, as worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from labelled_data import write_class_folders
from test_methods import FixedStudent, X, Y, batch_of, unit

from erase_sd.data.classes import TEMPLATES, prompt_of
from erase_sd.data.concept import Concept
from erase_sd.data.readers import read_dataset
from erase_sd.data.split import split_by_concept
from erase_sd.methods.base import Encodings, Task
from erase_sd.methods.cliperase import CLIPErase
from erase_sd.methods.emmn import EMMN
from erase_sd.methods.ga import GradientAscent
from erase_sd.methods.graddiff import GradientDifference
from erase_sd.methods.kl import KLMinimization
from erase_sd.methods.lipschitz import Lipschitz
from erase_sd.methods.npo import NPO
from erase_sd.models.clip import Clip
from erase_sd.models.presets import Models
from erase_sd.models.text_encoder import load_clip
from erase_sd.unlearning.batches import Batches
from erase_sd.unlearning.captions import TokenizedSets, tokenize_sets
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.student import ClipStudent

APPLE = (Concept("apple"),)
CLASSES = [X, Y, [-1.0, 0.0]]
"""Features of three class prompts; the image X is of the first, Y of the second."""
TOTAL_X = math.e + 1 + math.exp(-1)
TOTAL_Y = 1 + math.e + 1
OWN_X, OWN_Y = -math.log(math.e / TOTAL_X), -math.log(math.e / TOTAL_Y)


def labelled(label: list[int], image: list[list[float]]) -> Encodings:
    """Pairs whose captions all have the same feature, as those of one class do."""
    same = unit(*([X] * len(image)))
    return Encodings(same, unit(*image), None, unit(*CLASSES), torch.tensor(label))


def student(prompts: list[list[float]] = CLASSES) -> FixedStudent:
    """Forget images X and X of class 0; retain images Y of class 1 and X of class 0."""
    retain = labelled([1, 0], [Y, X])
    retain.prompts = unit(*prompts)
    return FixedStudent(1.0, labelled([0, 0], [X, X]), retain)


def test_gradient_ascent_is_over_the_classes_not_the_batch() -> None:
    terms = GradientAscent().loss(student(), batch_of(labelled([1, 0], [Y, X])))
    assert float(terms["forget"]) == pytest.approx(-OWN_X)
    # In the batch, the two captions would be each other's negatives: log 4 with any images.


def test_the_temperature_multiplies_the_similarities_to_the_class_prompts() -> None:
    warm = student()
    warm.scale = 3.0
    terms = GradientAscent().loss(warm, batch_of(labelled([1, 0], [Y, X])))
    # Minus the cross entropy of similarities 3, 0 and -3, of which the first is the image's own.
    by_hand = 3 - math.log(math.exp(3) + 1 + math.exp(-3))
    assert float(terms["forget"]) == pytest.approx(by_hand, abs=1e-6)


def test_gradient_difference_and_retention_are_over_the_classes() -> None:
    batch = batch_of(labelled([1, 0], [Y, X]))
    expected = pytest.approx((OWN_X + OWN_Y) / 2)
    assert float(GradientDifference().loss(student(), batch)["retain"]) == expected
    assert float(CLIPErase().loss(student(), batch)["retain"]) == expected
    repair = EMMN(ids=torch.ones(2, 1), pixels=torch.zeros(2, 1))
    assert float(repair.loss(student(), dataclasses.replace(batch, done=0.5))["retain"]) == expected


def test_npo_compares_with_the_originals_loss_over_the_classes() -> None:
    terms = NPO(temperature=0.5).loss(student(), batch_of(labelled([0, 0], [X, X])))
    # The student's loss is the original's: 2 / 0.5 * -log sigmoid(0).
    assert float(terms["forget"]) == pytest.approx(4 * math.log(2))


def test_consistency_compares_the_distributions_over_the_classes() -> None:
    batch = batch_of(labelled([1, 0], [Y, X]))
    for method in (CLIPErase(consistency_weight=1), KLMinimization()):
        name = "consistency" if isinstance(method, CLIPErase) else "retain"
        same = method.loss(student(), batch)[name]
        assert float(same) == pytest.approx(0, abs=1e-6)
        swapped = method.loss(student([Y, X, [-1.0, 0.0]]), batch)[name]
        # Image to class: two images, whose probabilities of the first two classes are swapped.
        by_image = ((math.e - 1) / TOTAL_X + (math.e - 1) / TOTAL_Y) / 2
        # Class to image: (e, 1) / (e + 1) swapped for two classes, the third as it was; mean of three.
        by_class = 2 * (math.e - 1) / (math.e + 1) / 3
        assert float(swapped) == pytest.approx(by_image + by_class, rel=1e-4)


@pytest.fixture(scope="module")
def clip(tiny: Models) -> Clip:
    return load_clip(tiny.clip_folder(0))


@pytest.fixture
def tokenized(tmp_path: Path, clip: Clip) -> TokenizedSets:
    write_class_folders(tmp_path / "data", {"apple": 6, "chair": 6, "dog": 6})
    data = read_dataset(tmp_path / "data")
    sets = split_by_concept(data.items, APPLE)
    return tokenize_sets(clip, data, sets, APPLE, frozenset({"images", "features"}))


def test_step_has_the_prompts_of_one_template_and_each_pairs_class(
    tokenized: TokenizedSets, clip: Clip
) -> None:
    settings = UnlearnSettings(concepts=APPLE, method="kl", forget_batch=4, retain_batch=6)
    batches = Batches(
        settings, clip, tokenized.forget["train"], tokenized.retain["train"], tokenized.prompts
    )
    needs = settings.build().needs
    names = ("apple", "chair", "dog")
    used = set()
    for step in range(12):
        batch = batches.at(step, 12, needs)
        prompts = batch.retain.prompts
        assert prompts is not None and batch.forget.prompts is None
        [template] = [
            t for t in TEMPLATES if prompts.equal(clip.tokens([prompt_of(t, n) for n in names]))
        ]
        used.add(template)
        labels = batch.retain.original.label
        assert labels is not None and set(labels.tolist()) <= {1, 2}
        for ids, label in zip(batch.retain.ids, labels.tolist(), strict=True):
            captions = clip.tokens([prompt_of(t, names[label]) for t in TEMPLATES])
            assert any(ids.equal(own) for own in captions)
        # The student that starts as the original has its features, with the classes' prompts.
        encoded = ClipStudent(clip, "text", torch.float32, needs)(batch.retain)
        torch.testing.assert_close(encoded.prompts, batch.retain.original.prompts)
    assert len(used) > 1


def test_losses_on_hidden_states_encode_no_class_prompts(
    tokenized: TokenizedSets, clip: Clip
) -> None:
    settings = UnlearnSettings(concepts=APPLE)
    batches = Batches(
        settings, clip, tokenized.forget["train"], tokenized.retain["train"], tokenized.prompts
    )
    assert batches.at(0, 1, settings.build().needs).retain.prompts is None


def test_noise_of_emmn_and_images_of_lipschitz_are_against_the_datas_classes(
    tokenized: TokenizedSets, clip: Clip
) -> None:
    task = Task(
        clip, ("apple",), tokenized.forget["train"], tokenized.retain["train"], 0, tokenized.prompts
    )
    noise = EMMN(images=4, noise_steps=2).prepare(task)
    assert noise.label is not None and noise.label.tolist() == [0] * 4
    synthetic = Lipschitz(images=2, iterations=1).prepare(task)
    assert len(synthetic.ids) == 3  # apple, chair, dog
