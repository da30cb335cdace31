"""The measures of two towers over a gallery: zero-shot, retrieval, and drift between two of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .. import runtime
from ..data.concept import Concept
from ..errors import DataError
from ..models.clip import Clip
from . import measures
from .embedders import BATCH, ClipEmbedder, Embedder
from .explain.attention import words_of
from .galleries import Gallery, Side
from .measures import DRIFT_GROUPS, Estimate

SIDES: tuple[Side, ...] = ("forget", "retain")
KS = (1, 5, 10)
DRIFTING = 500  # texts of a side: their states are large, and so many give a mean to 0.02
MEASURES = (
    "zero_shot_prediction", "zero_shot_retrieval",
    *(f"{what}_retrieval_r{k}" for what in ("image", "text") for k in KS),
    *(f"drift_{name}" for name in DRIFT_GROUPS),
)  # fmt: skip
Arm = Literal["original", "erased"]
Progress = Callable[[int, int, str], None]
Found = dict[tuple[str, Side], Estimate]
"""By measure and side; a side that has nothing to measure is left out."""


def measure(
    arms: dict[Arm, Embedder],
    gallery: Gallery,
    concepts: tuple[Concept, ...],
    templates: Sequence[str],
    progress: Progress | None,
) -> dict[Arm, Found]:
    """What the gallery allows to measure, of each arm; what is left out is said."""
    captions, prompts = _captions(gallery, arms["original"]), _prompts(gallery, templates)
    features = _features(arms, gallery, progress)
    found: dict[Arm, Found] = {arm: {} for arm in arms}
    for arm, towers in arms.items():
        if prompts:
            found[arm] |= zero_shot(towers, gallery, prompts, features[arm])
        if captions:
            found[arm] |= retrieval(towers, gallery, captions, features[arm])
    before, after = arms["original"], arms.get("erased")
    if isinstance(before, ClipEmbedder) and isinstance(after, ClipEmbedder):
        if not captions:  # the class's name is the subject of its prompts, whatever the concept's
            concepts += tuple(Concept(name) for name in sorted(gallery.forgotten))
        texts = _texts(gallery, captions, prompts, concepts)
        found["erased"] |= drift(before.clip, after.clip, texts, concepts)
    return found


def _captions(gallery: Gallery, towers: Embedder) -> Captions | None:
    """The gallery's captions, if it has any; those that are left out are counted."""
    if not any(picture.captions for picture in gallery.pictures):
        return None
    captions, long = captions_of(gallery, towers)
    if long:
        runtime.say(f"{long} captions of more tokens than the model has room for are left out")
    if not captions.texts:
        raise DataError(f"{gallery.about['folder']}: the model has room for none of the captions")
    return captions


def _prompts(gallery: Gallery, templates: Sequence[str]) -> list[list[str]]:
    """The prompts of each class; none, which is said, without a class to forget and one to retain."""
    classes = gallery.classes
    if len({name in gallery.forgotten for name in classes}) < 2:
        runtime.say(
            f"{gallery.about['folder']}: no image whose captions name the concept, or none whose "
            "captions name another thing, and no other of COCO's classes; the zero-shot measures "
            "are left out"
        )
        return []
    return [[prompt_of(template, name) for template in templates] for name in classes]


def _features(
    arms: dict[Arm, Embedder], gallery: Gallery, progress: Progress | None
) -> dict[Arm, Tensor]:
    """Each arm's image features, (pictures, d); those of one image tower are made once, and the
    original's are read from the cache where the gallery has one."""
    features: dict[Arm, Tensor] = {}
    for arm, towers in arms.items():
        original = arms["original"]
        if arm != "original" and towers.image_tower is original.image_tower:
            features[arm] = features["original"]
        elif arm == "original" and gallery.cached and isinstance(original, ClipEmbedder):
            features[arm] = gallery.cached(original.clip)
        else:
            features[arm] = _embed(arm, towers, gallery, progress)
    return features


def _embed(arm: Arm, towers: Embedder, gallery: Gallery, progress: Progress | None) -> Tensor:
    parts = []
    for start in range(0, len(gallery.pictures), BATCH):
        some = gallery.pictures[start : start + BATCH]
        parts.append(towers.images([picture.open() for picture in some]))
        if progress:
            progress(start + len(some), len(gallery.pictures), f"images, {arm}")
    return torch.cat(parts)


def _texts(
    gallery: Gallery,
    captions: Captions | None,
    prompts: list[list[str]],
    concepts: tuple[Concept, ...],
) -> dict[Side, list[str]]:
    """The texts whose drift is measured, at most DRIFTING a side: captions that mention a concept, and
    those of images none of whose captions does; without captions, the prompts of the classes."""
    texts: dict[Side, list[str]] = {"forget": [], "retain": []}
    if captions is None:
        for name, of_class in zip(gallery.classes, prompts, strict=True):
            texts["forget" if name in gallery.forgotten else "retain"] += of_class
    else:
        retain = torch.tensor([picture.side == "retain" for picture in gallery.pictures])
        for text, own in zip(captions.texts, captions.own, strict=True):
            if any(concept.in_text(text) for concept in concepts):
                texts["forget"].append(text)
            elif (own & retain).any():
                texts["retain"].append(text)
    return {side: of_side[:DRIFTING] for side, of_side in texts.items()}


def prompt_of(template: str, name: str) -> str:
    """The template with the name in it; the "a" before it is "an" where the name begins with a vowel."""
    if name[:1].lower() in tuple("aeiou"):
        template = re.sub(r"\b([aA]) \{\}", r"\1n {}", template)
    return template.replace("{}", name)


def zero_shot(
    towers: Embedder, gallery: Gallery, prompts: Sequence[Sequence[str]], images: Tensor
) -> Found:
    """Over the pictures that have a class: is it the one whose prompts are nearest; and the average
    precision of each class among them, which is averaged over the classes of a side.

    `prompts` are those of each class of the gallery, `images` the pictures' features.
    """
    classes, pictures = gallery.classes, gallery.pictures
    chosen = [i for i, picture in enumerate(pictures) if picture.label is not None]
    truth = torch.tensor([[pictures[i].label == name for name in classes] for i in chosen])
    flat = towers.texts([prompt for of_class in prompts for prompt in of_class])
    features = measures.class_features(flat.view(len(classes), -1, flat.shape[-1]))
    similarity = images[chosen] @ features.T  # (chosen, classes)
    hits = measures.ranks(similarity, truth) == 1
    precision = torch.tensor(
        [
            measures.average_precision(scores, right)
            for scores, right in zip(similarity.T, truth.T, strict=True)
        ]
    )
    gone = torch.tensor([name in gallery.forgotten for name in classes])
    found: Found = {}
    for side, own in zip(SIDES, (gone, ~gone), strict=True):
        if own.any():
            of_side = truth[:, own].any(1)
            found["zero_shot_prediction", side] = measures.share(hits[of_side])
            found["zero_shot_retrieval", side] = measures.mean(precision[own], 1.0)
    return found


@dataclass(frozen=True)
class Captions:
    """The different captions of a gallery, and whose they are: (captions, pictures), bool.

    What two pictures share is one caption, and either picture is right for it.
    """

    texts: list[str]
    own: Tensor


def captions_of(gallery: Gallery, towers: Embedder) -> tuple[Captions, int]:
    """The captions that the model has room for, and how many it has none for."""
    texts = list(dict.fromkeys(text for picture in gallery.pictures for text in picture.captions))
    fitting = [text for text, fits in zip(texts, towers.fits(texts), strict=True) if fits]
    number = {text: i for i, text in enumerate(fitting)}
    own = torch.zeros(len(fitting), len(gallery.pictures), dtype=torch.bool)
    for i, picture in enumerate(gallery.pictures):
        own[[number[text] for text in picture.captions if text in number], i] = True
    return Captions(fitting, own), len(texts) - len(fitting)


def retrieval(towers: Embedder, gallery: Gallery, captions: Captions, images: Tensor) -> Found:
    """Recall at 1, 5 and 10 of images by their captions and of captions by their images, among all
    of both sides; the queries are those of one side's pictures."""
    similarity = towers.texts(captions.texts) @ images.T  # (captions, pictures)
    forget = torch.tensor([picture.side == "forget" for picture in gallery.pictures])
    found: Found = {}
    for side, pictures in zip(SIDES, (forget, ~forget), strict=True):
        queries = {
            "image": (similarity, captions.own, captions.own[:, pictures].any(1)),
            "text": (similarity.T, captions.own.T, pictures & captions.own.any(0)),
        }
        for what, (scores, right, asked) in queries.items():
            if asked.any():
                ranks = measures.ranks(scores[asked], right[asked])
                for k in KS:
                    found[f"{what}_retrieval_r{k}", side] = measures.share(ranks <= k)
    return found


def drift(
    before: Clip, after: Clip, texts: dict[Side, list[str]], concepts: tuple[Concept, ...]
) -> Found:
    """How far the token states of each side's texts went, by group of tokens; `concepts` say which
    are the subject's."""
    found: Found = {}
    for side, said in texts.items():
        parts = []
        for start in range(0, len(said), BATCH):
            some = said[start : start + BATCH]
            ids = before.tokens(some)
            groups = torch.stack([_groups(before, text, concepts) for text in some])
            was, now = (clip.encode_texts(ids)[1].cpu() for clip in (before, after))
            parts.append(measures.drift(was, now, groups))
        for name, column in zip(DRIFT_GROUPS, torch.cat(parts).T if parts else (), strict=False):
            values = column[~column.isnan()]
            if len(values):
                found[f"drift_{name}", side] = measures.mean(values, 2.0)
    return found


def _groups(clip: Clip, text: str, concepts: tuple[Concept, ...]) -> Tensor:
    """The number in DRIFT_GROUPS of each token, (tokens,)."""
    words = words_of(clip, text, concepts)
    start, subject, other, end, padding = range(len(DRIFT_GROUPS))
    groups = torch.full((clip.length,), padding)
    groups[: words.end] = other
    groups[sorted(words.mentions)] = subject
    groups[0], groups[words.end] = start, end
    return groups
