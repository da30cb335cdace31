"""A CLIP: token ids, joint text and image features, and the hidden states that a U-Net reads."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.images import ImageSource, open_image
from ..errors import ModelError
from ..files import key_of
from ..sharing.rows import by_rows
from .choices import Towers
from .source import foreign_files
from .tokens import TokenLimit

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer


@dataclass(frozen=True)
class Tap:
    """Hidden states that a U-Net reads: the output of one layer."""

    layer: int
    """Number of the layer, from 1."""
    norm: bool
    """Whether the tower's final layer norm is applied to it."""


@dataclass(frozen=True)
class FreeEmbeddings:
    """Input embeddings that stand in the place of tokens, as an attack optimizes them."""

    mask: Tensor
    """Whether a token is replaced, bool (n, tokens)."""
    embeddings: Tensor
    """Their values, (n, tokens, width); ignored elsewhere."""


@dataclass(frozen=True)
class Clip:
    """A CLIP with its tokenizer and image processor."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    folder: Path
    """Model folder, for the image processor."""
    digest: str
    """Hash of the weights."""
    taps: tuple[Tap, ...] = ()
    """Hidden states to return; if empty, those of the last layer, after the norm."""

    @functools.cached_property
    def processor(self) -> Any:
        """The image processor, imported only here: where image features are cached, it is not needed, and
        its import takes over a second. Raises ModelError for a damaged file."""
        from transformers import CLIPImageProcessor

        with foreign_files(self.folder):
            return CLIPImageProcessor.from_pretrained(self.folder, local_files_only=True)

    @property
    def device(self) -> torch.device:
        """Device of the text tower."""
        device: torch.device = self.model.text_projection.weight.device
        return device

    @property
    def starts_slowly(self) -> bool:
        """Whether starting kernels can take longer than running them: of the 167 ms of a step of unlearning
        on an H100, 134 do not depend on the batch sizes."""
        return self.device.type == "cuda"

    @functools.cached_property
    def scale(self) -> float:
        """The temperature, which multiplies similarities; read once, since it is never trained."""
        return float(self.model.logit_scale.exp())

    @property
    def image_size(self) -> int:
        """Width and height of processed images, pixels."""
        return int(self.model.config.vision_config.image_size)

    @property
    def towers(self) -> tuple[str, str]:
        """Prefixes of the parameters of the text and of the image tower."""
        return "text_model.", "vision_model."

    @property
    def blocks(self) -> tuple[str, str]:
        """Prefixes of the parameters in the transformer blocks of the text and of the image tower."""
        return "text_model.encoder.layers.", "vision_model.encoder.layers."

    @property
    def length(self) -> int:
        """Context length: texts are padded to this many tokens."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def token_limit(self) -> TokenLimit:
        """Which texts fit into the context length."""
        return TokenLimit(self.tokenizer, self.length)

    def copied(self, image_tower: bool) -> Clip:
        """A copy, for changes to the text tower and, if asked for, the image tower, which is shared
        otherwise."""
        tower = self.model.vision_model
        shared = {} if image_tower else {id(tower): tower}
        return replace(self, model=copy.deepcopy(self.model, shared))

    def with_weights(
        self,
        tensors: Mapping[str, Tensor],
        image_tower: bool,
        source: Path,
        sha256: Sequence[str | None],
    ) -> Clip:
        """`copied`, with the weights of the file or folder `source`, named as in the model.

        `sha256` are the hashes of the files that the weights come from. Raises ModelError for a tensor
        that is not finite or does not fit.
        """
        after = replace(self.copied(image_tower), digest=key_of([self.digest, *sha256]))
        own = after.model.state_dict()
        for name, tensor in tensors.items():
            if name not in own or own[name].shape != tensor.shape or not tensor.isfinite().all():
                raise ModelError(f"{source}: {name} does not fit this model")
        after.model.load_state_dict(tensors, strict=False)
        return after

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Padded token ids, (n, length). Raises DataError for a text that does not fit."""
        return self.padded(self.token_limit.ids(texts, "caption"))

    def padded(self, ids: Iterable[Sequence[int]]) -> Tensor:
        """Token ids of texts that fit, padded, (n, length)."""
        pad = self.tokenizer.pad_token_id
        return torch.tensor([[*row, *[pad] * (self.length - len(row))] for row in ids])

    def ends(self, ids: Tensor) -> Tensor:
        """Position of the first `<|endoftext|>` of each row, (n,)."""
        positions: Tensor = (ids == self.tokenizer.eos_token_id).int().argmax(1)
        return positions

    def cut(self, ids: Tensor) -> Tensor:
        """The rows without the padding that all of them share.

        The features stay the same, because the mask is causal and `<|endoftext|>` is what is pooled;
        the hidden states of the padding are lost.
        """
        return ids[:, : int(self.ends(ids).max()) + 1]

    def encode_text(
        self, ids: Tensor, unit: bool = True, free: FreeEmbeddings | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (n, projection), normalized if `unit`, and hidden states (n, tokens, width).

        `free` embeddings replace those of the tokens in their place.
        """
        tower = self.model.text_model
        with _replacing(tower.embeddings.token_embedding, free):
            out = tower(input_ids=ids.to(self.device), output_hidden_states=bool(self.taps))
        text = self.model.text_projection(out.pooler_output).float()
        text = F.normalize(text, dim=-1) if unit else text
        last = Tap(self.model.config.text_config.num_hidden_layers, norm=True)
        if self.taps in ((), (last,)):
            return text, out.last_hidden_state.float()
        taps = []
        for tap in self.taps:
            hidden_states = out.hidden_states[tap.layer]
            taps.append(tower.final_layer_norm(hidden_states) if tap.norm else hidden_states)
        return text, torch.cat(taps, dim=-1).float()

    def encode_texts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """`encode_text` of any number of rows, in batches, which processes in step share, and without
        gradient."""
        batch = 512 if self.starts_slowly else 128

        def encode(ids: Tensor) -> tuple[Tensor, Tensor]:
            text, hidden_states = self.encode_text(ids[:batch])
            # Filled row by row: joining the batches would take their memory twice.
            texts = text.new_empty(len(ids), *text.shape[1:])
            all_states = hidden_states.new_empty(len(ids), *hidden_states.shape[1:])
            texts[:batch], all_states[:batch] = text, hidden_states
            for start in range(batch, len(ids), batch):
                rows = slice(start, start + batch)
                texts[rows], all_states[rows] = self.encode_text(ids[rows])
            return texts, all_states

        with torch.no_grad():
            text, hidden_states = by_rows(encode, ids, unit=batch)
        return text, hidden_states

    def encode_image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        """Features (n, projection), normalized if `unit`, of pixels (n, 3, size, size)."""
        weight = self.model.visual_projection.weight
        out = self.model.vision_model(pixel_values=pixels.to(weight.device))
        image: Tensor = self.model.visual_projection(out.pooler_output).float()
        return F.normalize(image, dim=-1) if unit else image

    def pixels(self, paths: Sequence[ImageSource]) -> Tensor:
        """Processed image files, (n, 3, size, size). Raises DataError for an unreadable one."""
        return self.process([open_image(path) for path in paths])

    def process(self, images: Sequence[Image.Image]) -> Tensor:
        """Images as input of the image tower, (n, 3, size, size)."""
        return torch.as_tensor(self.processor(list(images), return_tensors="pt")["pixel_values"])


@contextlib.contextmanager
def _replacing(table: nn.Module, free: FreeEmbeddings | None) -> Iterator[None]:
    """Lets the embedding table return the free embeddings in the place of the tokens' own."""
    if free is None:
        yield
        return

    def replaced(table: nn.Module, arguments: object, own: Tensor) -> Tensor:
        del table, arguments
        return torch.where(free.mask[..., None], free.embeddings.to(own.dtype), own)

    hook = table.register_forward_hook(replaced)
    try:
        yield
    finally:
        hook.remove()


def trainable(clip: Clip, towers: Towers) -> dict[str, nn.Parameter]:
    """The parameters that unlearning trains.

    The projections and the temperature are frozen: Stable Diffusion reads neither (SDXL only its
    second encoder's projection), so a concept forgotten there would still be generated.
    """
    trained = clip.towers if towers == "both" else clip.towers[:1]
    return {
        name: parameter
        for name, parameter in clip.model.named_parameters()
        if name.startswith(trained) and ".crossattention." not in name  # BLIP's matching head's
    }
