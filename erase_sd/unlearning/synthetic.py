"""Caption pairs with no dataset: a small grammar says them, the original model draws them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.concept import Concept
from ..data.flickr30k import IMAGE_FOLDER, TOKEN_FILE
from ..data.prompts import held_out
from ..errors import DataError
from ..files import cache_folder, key_of, whole_folder
from ..models.pipeline import draw, open_pipeline
from ..models.presets import Models
from ..runtime import say

VERSION = 1  # raised whenever a word or a number below changes
FORGET, RETAIN = 120, 240  # scenes with each concept, and without any
SEED = 2_000_000  # of the first image; prompts are drawn from other seeds
BATCH = 20

PEOPLE = ("man", "woman", "boy", "girl", "child")
THINGS = (
    "bicycle", "motorcycle", "car", "bus", "train", "truck", "boat", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "suitcase", "kite", "ball", "skateboard", "surfboard", "bottle", "cup", "knife", "spoon", "bowl",
    "banana", "apple", "orange", "sandwich", "pizza", "cake", "chair", "couch", "bed", "table",
    "laptop", "keyboard", "phone", "book", "clock", "vase", "tree", "house", "lamp", "hat", "guitar",
    "flower", "ladder", "bridge", "tent", "door",
)  # fmt: skip
COLOURS = ("red", "green", "blue", "black", "white", "brown", "yellow", "purple")
PLACES = (
    "in a kitchen", "in a living room", "in a park", "on a street", "on a beach", "in the snow",
    "on the grass", "on the road", "on the sand", "in a garden", "in a field", "in front of a wall",
)  # fmt: skip
FRAMES = (
    "{x} {p}", "{x} {p}", "there is {x} {p}", "{p} there is {x}", "a picture of {x} {p}", "{x}",
)  # fmt: skip
TWO = ("{a} and {b}", "{a} next to {b}", "{a} beside {b}", "{a} near {b}", "{a} with {b}")
THREE = ("{a}, {b} and {c}", "{a} with {b} and {c}", "{a} and {b} next to {c}")


Fits = Callable[[str], bool]


def captions(
    concepts: Sequence[Concept], fits: Fits = lambda _: True, seed: int = 0
) -> list[list[str]]:
    """Five captions for each scene: first those with a concept, then those without any.

    A concept goes by its name and its synonyms; a sense that is kept is one more thing without it.
    `fits` says whether the model has room for a caption; DataError where it has none for a concept.
    """
    rng = random.Random(seed)
    others = [t for t in THINGS if not any(c.in_text(t) for c in concepts)]
    people = [p for p in PEOPLE if not any(c.in_text(p) for c in concepts)]
    kept = [sense for concept in concepts for sense in concept.keep_senses]
    firsts = [[rng.choice((c.name, *c.synonyms))] for c in concepts for _ in range(FORGET)]
    firsts += [[rng.choice(kept)] if kept and i % 8 == 0 else [] for i in range(RETAIN)]
    return [_scene(first, others, people, fits, rng) for first in firsts]


def _scene(
    first: list[str], others: list[str], people: list[str], fits: Fits, rng: random.Random
) -> list[str]:
    """Five ways to say the same up to three things in the same place, none of them held out."""
    for _ in range(100):
        pool = rng.sample(others, 3)
        if people and rng.random() < 0.4:
            pool.insert(0, rng.choice(people))
        things = (first + pool)[: rng.choice((1, 2, 2, 3))]
        colours = [rng.choice(COLOURS) if rng.random() < 0.3 else "" for _ in things]
        place = rng.choice(PLACES)
        said = (_say(things, colours, place, rng) for _ in range(40))
        texts = [text for text in said if fits(text) and not held_out(text)]
        if len(texts) >= 5:
            return texts[:5]
    raise DataError(f"--data synth: the model has no room for a caption with {first or others[0]}")


def _say(things: list[str], colours: list[str], place: str, rng: random.Random) -> str:
    named = [
        (colour if thing not in PEOPLE else "", thing)
        for thing, colour in zip(things, colours, strict=True)
    ]
    rng.shuffle(named)
    phrases = [_with_article(f"{colour} {thing}".strip()) for colour, thing in named]
    join = ("{a}",) if len(phrases) == 1 else TWO if len(phrases) == 2 else THREE
    x = rng.choice(join).format(**dict(zip("abc", phrases, strict=False)))
    return rng.choice(FRAMES).format(x=x, p=place)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def pairs(models: Models, concepts: Sequence[Concept]) -> Path:
    """A folder in Flickr30K's layout: the captions, and for each scene an image that the original
    model draws of the first of them. Made once, then read from the cache."""
    settings = [VERSION, FORGET, RETAIN, models.steps, models.guidance]
    words = [[c.name, *c.synonyms, *c.keep_senses] for c in concepts]
    folder = cache_folder() / f"synth-{key_of([models.fingerprint(), words, settings])}"
    if folder.is_dir():
        return folder
    pipe = open_pipeline(models.folder)
    room = pipe.tokenizer.model_max_length
    scenes = captions(concepts, lambda text: len(pipe.tokenizer(text)["input_ids"]) <= room)
    say(f"drawing {len(scenes)} images of captions about {', '.join(c.name for c in concepts)}")
    with whole_folder(folder) as partial:
        (partial / IMAGE_FOLDER).mkdir()
        names = [f"{i:06}.jpg" for i in range(len(scenes))]
        for start in range(0, len(scenes), BATCH):
            rows = range(start, min(start + BATCH, len(scenes)))
            images = draw(
                pipe, [scenes[i][0] for i in rows], [SEED + i for i in rows], models.steps,
                models.guidance,
            )  # fmt: skip
            for i, image in zip(rows, images, strict=True):
                image.save(partial / IMAGE_FOLDER / names[i], quality=95)
        lines = [
            f"{name}#{number}\t{text}\n"
            for name, texts in zip(names, scenes, strict=True)
            for number, text in enumerate(texts)
        ]
        (partial / TOKEN_FILE).write_text("".join(lines), encoding="utf-8")
    return folder
