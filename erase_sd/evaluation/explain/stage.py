"""The explain command: figures of what an erasure changed in CLIP, from the run's held-out pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ... import runtime
from ...data.concept import Concept
from ...data.dataset import Dataset
from ...data.pair import CONCEPT_SETS, CaptionPair
from ...data.split import ConceptSets
from ...errors import ModelError, RunError
from ...files import write_bytes
from ...models.blip import Blip
from ...models.clip import Clip
from ...models.erased import check_base, erased_clip
from ...models.features import image_features, readable
from ...models.presets import Models
from ...models.quiet import quiet_libraries
from ...models.source import fingerprint
from ...models.tokens import words_of
from ...models.towers import encoders_to_unlearn, load_towers
from ...run import Run
from ...run.folder import suffix_of
from ...unlearning.pairs import concept_sets_of
from .attention import image_rollout, patch_similarity, text_attention
from .figures import image_attention_figure, text_attention_figure, tsne_figure
from .views import Array, ModelView, PairSelection

PAIRS_PER_SET = 100  # in the t-SNE
ATTENTION_EXAMPLES = 4  # forget pairs in the two attention figures
SHORT_CAPTION = 16  # tokens; longer captions are examples only if there are too few short ones
TSNE_SEED = 0


def explain(run: Run, models: Models) -> list[Path]:
    """Writes `tsne.png`, `attention-text.png` and `attention-image.png` into the run folder.

    They compare the original with the erased model on the run's held-out pairs. SDXL's second encoder
    adds three more, with `_2` in their names. Raises RunError before unlearning is done, and if the
    models or caption pairs are no longer those that the run was unlearned with.
    """
    quiet_libraries()
    concepts = run.unlearned().concepts
    data, sets = concept_sets_of(run, models)
    erasure = check_base(run, models)
    encoders = encoders_to_unlearn(models)
    if not {encoder.name for encoder in encoders} & set(erasure.weights_sha256):
        raise RunError(f"{run.folder}: changed the U-Net alone; the figures show text encoders")
    folders = [models.clip_folder(number) for number in range(len(encoders))]
    _check_clips(run, folders)
    written = []
    with run.lock():
        for folder, encoder in zip(folders, encoders, strict=True):
            clip = load_towers(folder, encoder)
            if isinstance(clip, Blip):
                raise ModelError(f"{folder}: attention maps need a CLIP; this is a BLIP")
            selection = select_pairs(clip, data, sets, concepts)
            views = _views(clip, run.erased, encoder.name, data, selection)
            both_towers = erasure.settings.get("towers") == "both"
            pixels = _displayable(clip, selection.pixels)
            for name, png in draw_figures(selection, views, pixels, both_towers).items():
                path = run.folder / f"{name}{suffix_of(encoder.name)}.png"
                write_bytes(path, png)
                written.append(path)
    return written


def _check_clips(run: Run, folders: Sequence[Path]) -> None:
    """RunError if the CLIP folders are not those that the run was unlearned with."""
    known = run.unlearned().origin.clip
    if tuple(fingerprint(folder, known) for folder in folders) != known:
        names = ", ".join(map(str, folders))
        raise RunError(f"{run.folder}: unlearned with another CLIP than {names} holds now")


def select_pairs(
    clip: Clip, data: Dataset, sets: ConceptSets, concepts: tuple[Concept, ...]
) -> PairSelection:
    """The first held-out images of each set, each with its first caption that fits the context length
    and, in the forget set, mentions a concept. Raises RunError if a set has none."""
    chosen: list[CaptionPair] = []
    for concept_set in CONCEPT_SETS:
        held_out = sets.pairs(concept_set, "held-out")
        by_image = itertools.groupby(held_out, key=lambda pair: pair.image)
        firsts = (
            _first_usable(clip, pairs) for image, pairs in by_image if readable(data, [str(image)])
        )
        of_set = list(itertools.islice(filter(None, firsts), PAIRS_PER_SET))
        if not of_set:
            raise RunError(f"no held-out {concept_set} caption has at most {clip.length} tokens")
        chosen += of_set
    words = [
        words_of(clip.tokenizer, pair.caption, concepts) for pair in chosen if pair.set == "forget"
    ]
    by_length = sorted(range(len(words)), key=lambda k: len(words[k].tokens) > SHORT_CAPTION)
    examples = by_length[:ATTENTION_EXAMPLES]
    return PairSelection(
        pairs=chosen,
        examples=examples,
        words=[words[k] for k in examples],
        pixels=clip.pixels([data.path_of(_photograph(chosen[k])) for k in examples]),
    )


def _first_usable(clip: Clip, pairs: Iterator[CaptionPair]) -> CaptionPair | None:
    for pair in pairs:
        if (pair.mentions or pair.set == "retain") and clip.token_limit.fits(pair.caption):
            return pair
    return None


def _photograph(pair: CaptionPair) -> str:
    assert pair.image is not None  # a prompt is never held out with an image
    return pair.image


def _views(
    clip: Clip, erased: Path, encoder: str, data: Dataset, selection: PairSelection
) -> tuple[ModelView, ModelView]:
    """How the original `clip` and the one with the erased towers embed the selection."""
    clip.model.to(runtime.device()).set_attn_implementation("eager")
    names = [_photograph(pair) for pair in selection.pairs]
    features = image_features(clip, data, names)
    original = view_of(clip, selection, features)
    after = erased_clip(erased, encoder, clip)
    if after.model.vision_model is not clip.model.vision_model:
        features = image_features(after, data, names)
    return original, view_of(after, selection, features)


def view_of(clip: Clip, selection: PairSelection, features: Mapping[str, Tensor]) -> ModelView:
    """One model's view; `features` are its image features by file name. Needs `eager` attention."""
    ids = clip.tokens([pair.caption for pair in selection.pairs])
    text = clip.encode_texts(ids)[0].cpu()
    maps = text_attention(clip, ids[selection.examples])
    return ModelView(
        text=text,
        image=torch.stack([features[_photograph(pair)] for pair in selection.pairs]),
        text_attention=[
            attention[[words.end, words.last], : words.end + 1]
            for attention, words in zip(maps, selection.words, strict=True)
        ],
        image_rollout=image_rollout(clip, selection.pixels),
        patch_similarity=patch_similarity(clip, selection.pixels, text[selection.examples]),
    )


def draw_figures(
    selection: PairSelection,
    views: tuple[ModelView, ModelView],
    pixels: Array,
    both_towers: bool,
) -> dict[str, bytes]:
    """PNG files by name; `both_towers` if the image tower was trained too."""
    points = tsne([features for view in views for features in (view.text, view.image)])
    return {
        "tsne": tsne_figure(selection, views, (points[:2], points[2:])),
        "attention-text": text_attention_figure(selection, views),
        "attention-image": image_attention_figure(selection, views, pixels, both_towers),
    }


def tsne(sets: Sequence[Tensor]) -> list[Array]:
    """One seeded t-SNE (van der Maaten & Hinton 2008) of the rows of all `sets`; the points of each.

    Equal rows, such as those of a tower that was not trained, are one point.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    stacked = torch.cat(list(sets)).numpy()
    rows, index = np.unique(stacked, axis=0, return_inverse=True)
    perplexity = min(30.0, (len(rows) - 1) / 3)  # scikit-learn's default, less for few points
    with threadpool_limits(1):  # several threads would sum in varying order
        plane = TSNE(perplexity=perplexity, random_state=TSNE_SEED).fit_transform(rows)
    return np.split(plane[index.reshape(-1)], np.cumsum([len(part) for part in sets])[:-1])


def _displayable(clip: Clip, pixels: Tensor) -> Array:
    """Processed images with the normalization undone, (k, size, size, 3), 0-1."""
    mean, std = (
        torch.tensor(getattr(clip.processor, name)) for name in ("image_mean", "image_std")
    )
    return (pixels.permute(0, 2, 3, 1) * std + mean).clamp(0, 1).numpy()
