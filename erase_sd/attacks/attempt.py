"""One attack on one concept: its images and detections, as rows of `attacks.json`."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import runtime
from ..data.concept import slug
from ..data.images import hash_image, png_of
from ..detection.detector import text_encoder_hash
from ..files import digest, key_of, write_bytes
from ..generation.write_behind import WriteBehind
from ..models.presets import Models
from ..run import Run
from ..run.measurements import AttackImage, AttackRecord, Rate
from ..scoring.rates import rate_of
from .base import Access, Attack, Probe
from .target import Embeds, Target, is_shown
from .tokens import encode_rows, with_name

if TYPE_CHECKING:
    from PIL.Image import Image

WAITING = 64
"""Maximum number of images that wait to be written while others are generated."""
_Images = tuple[list[AttackImage], list[AttackImage]]
"""A probe's images by the attacked model, and by the original from the same input if it can read it."""


@dataclass(frozen=True)
class Attempt:
    """One attack on one concept."""

    run: Run
    models: Models
    target: Target
    name: str
    attack: Attack | None
    """None for the captions that name the concept, without an attack."""

    @functools.cached_property
    def judge(self) -> dict[str, Any]:
        """What the detector judges the images by, as JSON: its class, and the hash of the text encoder
        of an open vocabulary."""
        text = text_encoder_hash(self.target.detector_text)
        return {"detector_class": self.target.detector_class, "detector_text_sha256": text}

    @property
    def access(self) -> Access:
        """What the attack reads of this erasure: if only the U-Net was erased, a search in the text encoder
        reads nothing but the original's."""
        if self.attack is None:
            return "black box"
        same = all(own is self.target.original[name] for name, own in self.target.erased.items())
        return "original" if same and not self.attack.through_unet else self.attack.access

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the models and captions that the outcome depends on, as JSON."""
        return self._earlier_settings | {"sampler": self.models.sampler} | self.judge

    @property
    def _earlier_settings(self) -> dict[str, Any]:
        """Those that earlier versions recorded."""
        return {
            "budgets": self.attack.budgets_json() if self.attack else {},
            "split": self.target.split,
            "seed": self.target.seed,
            "images": self.target.n,
            "steps": self.target.steps,
            "guidance": self.target.guidance,
        }

    @functools.cached_property
    def key(self) -> str:
        """Hash of everything that the rows depend on."""
        return key_of([self.name, self.target.concept.name, self.settings, *self._materials])

    @functools.cached_property
    def _earlier_key(self) -> str:
        """The key in earlier versions."""
        own, text = self._earlier_settings, self.judge["detector_text_sha256"]
        name, judged_as = self.target.concept.name, self.target.detector_class
        return key_of(
            [self.name, name, judged_as, own, *self._materials, *([text] if text else [])]
        )

    @functools.cached_property
    def _materials(self) -> list[Any]:
        """Captions, photographs and hashes of the models."""
        texts = [
            [c.text, hash_image(c.image)] for c in (*self.target.captions, *self.target.training)
        ]
        erasure = self.run.erasure()
        base, detector = erasure.base.fingerprint, self.models.detector_hash()
        return [texts, erasure.weights_sha256, base, detector]

    def is_among(self, rows: Sequence[AttackRecord]) -> bool:
        """Whether the rows include this attack's, with the same key and with all images intact."""
        own = [row for row in rows if self._is_own(row)]
        return bool(own) and all(self._has_key(row) and self._intact(row) for row in own)

    def added_to(
        self, rows: Sequence[AttackRecord], outcome: Sequence[AttackRecord]
    ) -> list[AttackRecord]:
        """`rows` with the attack's outcome instead of its earlier rows; unchanged while they lack the row
        without an attack, of the same settings, whose rates the outcome is compared with."""
        others = [row for row in rows if not self._is_own(row)]
        if self.attack is None:
            return [*others, *outcome]
        without = replace(self, name="none", attack=None)
        none = next((row for row in others if without.is_among([row])), None)
        if none is None:
            return list(rows)
        for row in outcome:
            n = len(row.images)
            no_attack, original = _rate(none.images[:n]), _rate(none.original_images[:n])
            others.append(replace(row, no_attack=no_attack, original=original))
        return others

    def outcome(self) -> list[AttackRecord]:
        """Runs the attack; returns one row per probe."""
        began = time.monotonic()
        with runtime.deterministic():
            probes = self.attack.run(self.target) if self.attack else [self._no_attack()]
        judged = self._judged([self._generated(probe) for probe in probes])
        rows = [self._record(probe, *images) for probe, images in zip(probes, judged, strict=True)]
        seconds = round(time.monotonic() - began, 1)
        return [replace(row, seconds=seconds) for row in rows]

    def _is_own(self, row: AttackRecord) -> bool:
        return (row.attack, row.concept) == (self.name, self.target.concept.name)

    def _has_key(self, row: AttackRecord) -> bool:
        earlier = "sampler" not in row.settings
        return row.key == (self._earlier_key if earlier else self.key)

    def _intact(self, row: AttackRecord) -> bool:
        images = (*row.images, *row.original_images)
        files = [(self.run.folder / image.file, image.sha256) for image in images]
        return all(path.is_file() and hash_image(path) == sha256 for path, sha256 in files)

    def _no_attack(self) -> Probe:
        rows = with_name(self.target, self.target.captions)
        return Probe(
            name="names it",
            texts=tuple(caption.text for caption in self.target.captions),
            embeds=encode_rows(self.target, self.target.erased, rows),
            original=encode_rows(self.target, self.target.original, rows),
        )

    def _generated(self, probe: Probe) -> _Images:
        """Generates and writes a probe's images."""
        target, n = self.target, probe.images or self.target.n
        folder = f"attacks/{self.name}/{slug(target.concept.name)}-{slug(probe.name)}"
        empty = probe.empty or target.empty(target.erased)
        attacked = self._batch(folder, probe.texts, probe.embeds, empty, n)
        if probe.original is None:
            return attacked, []
        n = n if self.attack is None else (n + 1) // 2
        empty, folder = target.empty(target.original), f"{folder}-original"
        return attacked, self._batch(
            folder, probe.texts, probe.original, empty, n, by_original=True
        )

    def _batch(
        self,
        folder: str,
        texts: Sequence[str],
        embeds: Embeds,
        empty: Embeds,
        n: int,
        *,
        by_original: bool = False,
    ) -> list[AttackImage]:
        """The first `n` images, by the attacked model or the original."""
        rows = {key: tensor[:n] for key, tensor in embeds.items()}
        generated = self.target.images(rows, empty, self.target.seeds[:n], original=by_original)
        images: list[AttackImage] = []
        with WriteBehind(WAITING) as behind:
            for number, image in enumerate(generated):
                file, seed = f"{folder}/{number:04}.png", self.target.seeds[number]
                behind.add(functools.partial(self._write, images, image, file, texts[number], seed))
        return images

    def _write(
        self, images: list[AttackImage], image: Image, file: str, text: str, seed: int
    ) -> None:
        """Writes an image and adds it to `images`; it is judged later."""
        png = png_of(image)
        write_bytes(self.run.folder / file, png)
        sha256 = digest(png)
        images.append(AttackImage(file=file, sha256=sha256, text=text, seed=seed, probability=0.0))

    def _judged(self, generated: Sequence[_Images]) -> list[_Images]:
        """The images with the concept's detection probability."""
        files = [
            self.run.folder / image.file
            for pair in generated
            for images in pair
            for image in images
        ]
        shown = iter(self.target.probabilities(files))

        def judged(images: Sequence[AttackImage]) -> list[AttackImage]:
            return [replace(image, probability=next(shown)) for image in images]

        return [(judged(attacked), judged(original)) for attacked, original in generated]

    def _record(
        self, probe: Probe, images: Sequence[AttackImage], same: Sequence[AttackImage]
    ) -> AttackRecord:
        """A row; `same` are the original's images, `added_to` fills in the rates without an attack."""
        attacked = _rate(images)
        return AttackRecord(
            attack=self.name,
            concept=self.target.concept.name,
            row=probe.name,
            control=probe.control,
            access=self.access,
            key=self.key,
            attacked=attacked,
            no_attack=attacked,
            original=_rate((same or images)[: len(images)]),
            same_input=_rate(same) if same else None,
            found=probe.found,
            images=tuple(images),
            original_images=tuple(same),
            seconds=0.0,
            settings=self.settings,
        )


def _rate(images: Sequence[AttackImage]) -> Rate:
    return rate_of([is_shown(image.probability) for image in images])
