"""Classes of an open-vocabulary detector, YOLO-World or YOLOE: embeddings by a text encoder.

YOLO-World (Cheng et al., CVPR 2024, arXiv 2401.17270) reads the features of OpenAI's CLIP ViT-B/32;
YOLOE (Wang et al., ICCV 2025, arXiv 2503.07465) those of MobileCLIP, which it changes first. A file holds
the embeddings of the classes that it was saved with; other words need the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.pickles import Inert
from ..errors import ModelError, SettingError, reason
from ..models import unpickle

MIN_COSINE = 0.5
"""Minimum median cosine similarity between a file's embeddings and those of the right text encoder."""
SCRIPT_TOKENS = 77
"""Context length of MobileCLIP's text encoder; shorter texts are padded with zeros."""
CLIP_VOCABULARY = 49408
WORLD_NEEDS = "a folder or hub id of openai/clip-vit-base-patch32 with safetensors"
YOLOE_NEEDS = (
    "mobileclip_blt.ts (mobileclip2_b.ts for YOLOE-26), which runs its own code, and beside it the "
    "tokenizer files of a CLIP"
)


@dataclass
class Vocabulary:
    """An open-vocabulary model of ultralytics and the names of its classes."""

    model: Any
    names: list[str]
    """Classes whose embeddings the model has."""

    @property
    def _is_world(self) -> bool:
        """Whether it is YOLO-World; the other kind is YOLOE."""
        return hasattr(self.model, "txt_feats")

    @property
    def _attribute(self) -> str:
        """Where the model keeps the embeddings of its classes, (1, classes, width)."""
        return "txt_feats" if self._is_world else "pe"

    @property
    def needs(self) -> str:
        """The text encoder of this kind of detector, in words."""
        return WORLD_NEEDS if self._is_world else YOLOE_NEEDS

    @property
    def embeddings(self) -> Tensor:
        """Embeddings of the classes, (classes, width)."""
        own: Tensor = getattr(self.model, self._attribute)
        return own[0]

    def restore(self, stored: Inert, names: Sequence[str]) -> None:
        """Takes the embeddings of `names` from a pickled model, if it has them."""
        record = stored.state.get(self._attribute)
        own = unpickle.tensor(record) if isinstance(record, Inert) else torch.zeros(1, 0, 1)
        norms = own.norm(dim=-1)
        if own.ndim == 3 and own.shape[1] == len(names) and ((norms - 1).abs() < 0.02).all():
            self._set(own, list(names))

    def add(self, words: Sequence[str], encoder: Path | None) -> None:
        """Adds the words that are not yet classes.

        Raises SettingError without a text encoder, ModelError if `encoder` is not the detector's.
        """
        new = [word for word in dict.fromkeys(words) if word not in self.names]
        if not new and self.names:
            return
        if encoder is None:
            raise SettingError(
                f"{', '.join(new) or 'the detector'}: not in the detector's file, an open-vocabulary "
                f"detector; needs its text encoder: {self.needs}",
                field="detector_text",
            )
        known = self.names
        embeddings = self._embed([*known, *new], encoder)
        if known:
            similarity = F.cosine_similarity(embeddings[: len(known)], self.embeddings).median()
            if similarity < MIN_COSINE:
                raise ModelError(
                    f"not the detector's text encoder: the similarity of its class embeddings to those "
                    f"in the file is {similarity:.2f}; needs {self.needs}",
                    field="detector_text", value=encoder,
                )  # fmt: skip
        self._set(embeddings[None], [*known, *new])

    def _embed(self, words: Sequence[str], encoder: Path) -> Tensor:
        """What the model compares boxes with, (words, width)."""
        world = self._is_world
        if world != encoder.is_dir():
            raise ModelError(f"needs {self.needs}", field="detector_text", value=encoder)
        features = _clip_features(words, encoder) if world else _script_features(words, encoder)
        width = self.model.model[-1].cv3[0][-1].out_channels
        if features.shape != (len(words), width):
            raise ModelError(
                f"returns features of {tuple(features.shape)}, the detector reads "
                f"{(len(words), width)}; needs {self.needs}",
                field="detector_text", value=encoder,
            )  # fmt: skip
        with torch.no_grad():
            return features if world else self.model.model[-1].get_tpe(features[None])[0]

    def _set(self, embeddings: Tensor, names: list[str]) -> None:
        """Makes `names` the classes; `embeddings` are (1, names, width)."""
        setattr(self.model, self._attribute, embeddings)
        self.model.model[-1].nc = len(names)
        self.names = names


def _clip_features(words: Sequence[str], folder: Path) -> Tensor:
    from ..models.text_encoder import load_clip

    clip = load_clip(folder)
    return clip.encode_texts(clip.tokens(words))[0]


def _script_features(words: Sequence[str], path: Path) -> Tensor:
    """Features by a TorchScript program, (words, width), normalized."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(path.parent, local_files_only=True)
    except Exception as error:  # which it is differs between releases
        raise ModelError(
            f"the tokenizer beside it cannot be read ({reason(error)})",
            field="detector_text",
            value=path,
        ) from None
    if len(tokenizer) != CLIP_VOCABULARY:
        raise ModelError(
            f"needs the tokenizer of a CLIP beside it, with {CLIP_VOCABULARY} tokens, got "
            f"{len(tokenizer)}",
            field="detector_text", value=path,
        )  # fmt: skip
    ids = torch.zeros(len(words), SCRIPT_TOKENS, dtype=torch.long)
    for row, word in zip(ids, words, strict=True):
        own = tokenizer(word, truncation=True, max_length=SCRIPT_TOKENS)["input_ids"]
        row[: len(own)] = torch.tensor(own)
    load: Any = torch.jit.load
    try:
        with torch.inference_mode():
            features = load(str(path), map_location="cpu")(ids)
        return F.normalize(features.float(), dim=-1).clone()
    except Exception as error:  # a foreign program can raise anything
        raise ModelError(
            f"not a TorchScript text encoder ({reason(error)})", field="detector_text", value=path
        ) from None
