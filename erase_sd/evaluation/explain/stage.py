"""Pictures of what an erasure did to CLIP: t-SNE of the embeddings, and where the towers look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ... import runtime
from ...data.concept import Concept
from ...data.flickr30k import Captioned, Dataset
from ...data.split import Split
from ...errors import RunError
from ...files import hash_folder, write_bytes
from ...models import erased as artifact
from ...models.clip import Clip
from ...models.presets import Models
from ...models.text_encoder import load_clip, text_encoders
from ...run import Run, concepts_of
from ...unlearning.captions import image_features
from ...unlearning.pairs import sides_of
from . import figures as figures
from .attention import Words, image_rollout, patch_similarity, text_attention, words_of
from .figures import Array

PAIRS = 100  # of each side, in the t-SNE
EXAMPLES = 4  # forget pairs, in the two pictures of attention
SHORT = 16  # tokens; a longer caption is an example only where there are too few of these
SEED = 0  # of the t-SNE


@dataclass(frozen=True)
class Pairs:
    """n held-out captions, each with its image: `forget` of the forget side, then the retain side's.

    The examples are k of the forget side: their rows, their words, and their images as the image
    tower gets them, (k, 3, size, size).
    """

    captions: list[str]
    items: list[Captioned]
    forget: int
    examples: list[int]
    words: list[Words]
    pixels: Tensor

    @property
    def sides(self) -> dict[str, slice]:
        """Which rows are whose."""
        return {"forget": slice(self.forget), "retain": slice(self.forget, None)}


@dataclass(frozen=True)
class Seen:
    """What one arm, the original or the erased model, makes of n pairs and of their k examples."""

    text: Tensor
    """(n, projection), unit norm."""
    image: Tensor
    """(n, projection), unit norm."""
    looks: list[Tensor]
    """k of (2, tokens): the attention of `<|endoftext|>`, and of the last word."""
    rollout: Tensor
    """(k, rows, columns): what of each patch reaches [CLS]."""
    similarity: Tensor
    """(k, rows, columns): cosine of each patch with the caption."""

    @property
    def fit(self) -> Tensor:
        """Cosine of each caption with its image, (n,)."""
        return (self.text * self.image).sum(-1)


def explain(run: Run, models: Models) -> list[Path]:
    """Writes `tsne.png`, `attention-text.png` and `attention-image.png` into the run folder.

    They look at the run's own held-out pairs, in the split's order, with the original and with the
    erased model. SDXL's second encoder has three more, with `_2` in their names. Raises RunError
    before unlearn is done, and where models or pairs are no longer those that the run began with.
    """
    runtime.quiet_libraries()
    manifest = run.require("unlearn", "unlearn first")
    settings, concepts = manifest["stages"]["unlearn"]["settings"], concepts_of(manifest)
    data, sides = sides_of(run, models)
    encoders = text_encoders(models.folder)
    clips = [models.clip_folder(number) for number in range(len(encoders))]
    hashes = [hash_folder(folder, "*.safetensors", "*.json") for folder in clips]
    for now, name, at in (
        (models.fingerprint(), "model", models.folder),
        (hashes, "clip", ", ".join(map(str, clips))),
    ):
        if now != settings[name]:
            raise RunError(f"{run.folder}: unlearned with another --{name} than {at} is now")
    both = settings["towers"] == "both"
    written = []
    with run.lock():
        artifact.check(run.folder / "erased")
        for folder, encoder in zip(clips, encoders, strict=True):
            clip = load_clip(folder, encoder)
            pairs = choose(clip, data, sides, concepts)
            arms = _arms(clip, run.folder / "erased", encoder.name, data, pairs)
            for name, png in _pictures(pairs, arms, _shown(clip, pairs.pixels), both).items():
                written.append(
                    run.folder / f"{name}{encoder.name.removeprefix('text_encoder')}.png"
                )
                write_bytes(written[-1], png)
    return written


def choose(clip: Clip, data: Dataset, sides: Split, concepts: tuple[Concept, ...]) -> Pairs:
    """The first held-out images of each side, each with the first of its captions that the model has
    room for and, on the forget side, that mentions a concept. Raises RunError where there is none."""
    found: dict[str, list[tuple[str, Captioned]]] = {"forget": [], "retain": []}
    for side, inside in found.items():
        for item in getattr(sides, side)["held-out"]:
            captions = [
                text
                for text in item.captions
                if (side == "retain" or any(concept.in_text(text) for concept in concepts))
                and len(clip.tokenizer(text, verbose=False)["input_ids"]) <= clip.length
            ]
            inside += [(text, item) for text in captions[:1]]
            if len(inside) == PAIRS:
                break
        if not inside:
            raise RunError(f"no held-out {side} caption has at most {clip.length} tokens")
    rows = found["forget"] + found["retain"]
    words = [words_of(clip, text, concepts) for text, _ in found["forget"]]
    examples = sorted(range(len(words)), key=lambda k: len(words[k].tokens) > SHORT)[:EXAMPLES]
    return Pairs(
        captions=[text for text, _ in rows],
        items=[item for _, item in rows],
        forget=len(words),
        examples=examples,
        words=[words[k] for k in examples],
        pixels=clip.pixels([data.path_of(rows[k][1]) for k in examples]),
    )


def _arms(clip: Clip, erased: Path, encoder: str, data: Dataset, pairs: Pairs) -> tuple[Seen, Seen]:
    """What the original `clip` sees, and what it sees with the erased towers of that encoder."""
    clip.model.to(runtime.device()).set_attn_implementation("eager")
    table = image_features(clip, data, pairs.items)
    original = see(clip, pairs, table)
    after = artifact.erased_clip(erased, encoder, clip)
    if after.model.vision_model is not clip.model.vision_model:
        table = image_features(after, data, pairs.items)
    return original, see(after, pairs, table)


def see(clip: Clip, pairs: Pairs, table: Mapping[str, Tensor]) -> Seen:
    """One arm's view; `table` holds its image features by name. The model has to run `eager`."""
    ids = clip.tokens(pairs.captions)
    text = clip.encode_texts(ids)[0].cpu()
    maps = text_attention(clip, ids[pairs.examples])
    return Seen(
        text=text,
        image=torch.stack([table[item.image] for item in pairs.items]),
        looks=[m[[w.end, w.last], : w.end + 1] for m, w in zip(maps, pairs.words, strict=True)],
        rollout=image_rollout(clip, pairs.pixels),
        similarity=patch_similarity(clip, pairs.pixels, text[pairs.examples]),
    )


def _pictures(pairs: Pairs, arms: tuple[Seen, Seen], pixels: Array, both: bool) -> dict[str, bytes]:
    placed = places([feature for arm in arms for feature in (arm.text, arm.image)])
    return {
        "tsne": figures.tsne(pairs, arms, (placed[:2], placed[2:])),
        "attention-text": figures.looks(pairs, arms),
        "attention-image": figures.images(pairs, arms, pixels, both),
    }


def places(sets: Sequence[Tensor]) -> list[Array]:
    """One t-SNE (van der Maaten & Hinton 2008) of the rows of all `sets`; the places of each set.

    Rows that are equal, as those of a tower that was not trained, are one point. Seeded.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    stacked = torch.cat(list(sets)).numpy()
    rows, where = np.unique(stacked, axis=0, return_inverse=True)
    perplexity = min(30.0, (len(rows) - 1) / 3)  # scikit-learn's own, less where points are few
    with threadpool_limits(1):  # threads would add up in the order in which they end
        plane = TSNE(perplexity=perplexity, random_state=SEED).fit_transform(rows)
    return np.split(plane[where.reshape(-1)], np.cumsum([len(part) for part in sets])[:-1])


def _shown(clip: Clip, pixels: Tensor) -> Array:
    """Processed images as they look, (k, size, size, 3), 0-1."""
    mean, std = (
        torch.tensor(getattr(clip.processor, name)) for name in ("image_mean", "image_std")
    )
    return (pixels.permute(0, 2, 3, 1) * std + mean).clamp(0, 1).numpy()
