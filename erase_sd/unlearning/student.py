"""The model being unlearned."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..methods.base import Batch, EncodedPairs, Encodings, Need
from ..models.choices import Towers
from ..models.clip import Clip, FreeEmbeddings, trainable
from ..models.denoiser import Denoiser
from ..runtime import Precision
from ..sharing.rows import by_rows

KEY_BIASES = (".k_proj.bias", ".self.key.bias")
"""Endings of the names of the key biases in CLIP and in BLIP. The attention's softmax does not depend on
them: their gradient is rounding error, which Adam would scale up to full steps, and which differs with the
batch size."""
LARGE = 500_000_000
"""A text tower with more parameters recomputes its activations in the backward pass: those of SDXL's second
encoder (695 million parameters) would take 15 GB at the default batch sizes."""


class ClipStudent:
    """A CLIP in training: the `Student` of the methods.

    `parameters` are all that may train, by their names in `CLIPModel`.
    """

    def __init__(
        self, clip: Clip, towers: Towers, dtype: torch.dtype, needs: frozenset[Need]
    ) -> None:
        self.clip, self.dtype, self.needs = clip, dtype, needs
        if dtype != torch.float32 and clip.device.type == "cpu":
            # PyTorch's fused attention is several times slower backward in bf16 on a CPU.
            clip.model.set_attn_implementation("eager")
        self.parameters: dict[str, nn.Parameter] = trainable(clip, towers)
        large = sum(parameter.numel() for parameter in self.parameters.values()) > LARGE
        self.joins = clip.starts_slowly and not large
        if large:
            tower = clip.model.text_model
            # transformers 5.17 and earlier have the old name only, later ones warn of it.
            enable = getattr(tower, "activation_checkpointing_enable", None)
            (enable or tower.gradient_checkpointing_enable)({"use_reentrant": False})
            tower.train()  # transformers checkpoints in training mode only; CLIP has no dropout

    @property
    def denoiser(self) -> Denoiser:
        """Only a `UNetStudent` has one."""
        raise LookupError("the U-Net is not in training; `denoiser_of(task)` is the original")

    @property
    def dtype_name(self) -> Precision:
        """The precision of the passes through the model, as `--dtype` names it."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    @property
    def scale(self) -> float:
        """CLIP's temperature, which multiplies similarities."""
        return self.clip.scale

    def text(
        self, ids: Tensor, unit: bool = True, free: FreeEmbeddings | None = None
    ) -> tuple[Tensor, Tensor]:
        """`Clip.encode_text` in the student's precision; processes in step share the rows."""

        def encode(ids: Tensor, *free: Tensor) -> tuple[Tensor, Tensor]:
            with self.precision():
                return self.clip.encode_text(ids, unit, FreeEmbeddings(*free) if free else None)

        text, hidden_states = by_rows(encode, ids, *((free.mask, free.embeddings) if free else ()))
        return text, hidden_states

    def image(self, pixels: Tensor, unit: bool = True) -> Tensor:
        """`Clip.encode_image` in the student's precision; processes in step share the rows."""

        def encode(pixels: Tensor) -> tuple[Tensor]:
            with self.precision():
                return (self.clip.encode_image(pixels, unit),)

        return by_rows(encode, pixels)[0]

    def __call__(self, pairs: EncodedPairs) -> Encodings:
        """Encodes caption pairs, and class prompts if there are any. Images are encoded if their tower
        trains; otherwise the original's features are used."""
        if "hidden_states" in self.needs:
            text, hidden_states = self.text(pairs.ids)
        else:
            (text, _), hidden_states = self.text(self.clip.cut(pairs.ids)), None
        prompts = None
        if pairs.prompts is not None:
            prompts, _ = self.text(self.clip.cut(pairs.prompts))
        if pairs.pixels is not None:
            image = self.image(pairs.pixels)
            return Encodings(text, image, hidden_states, prompts, pairs.original.label)
        return pairs.original.with_text(text, hidden_states, prompts)

    def both(self, batch: Batch) -> tuple[Encodings, Encodings]:
        """The forget and the retain pairs of a method that reads hidden states, by one pass."""
        forget, retain = batch.forget, batch.retain
        text, hidden_states = self.text(torch.cat([forget.ids, retain.ids]))
        sizes = [len(forget.ids), len(retain.ids)]
        parts = [torch.split(t, sizes) for t in (text, hidden_states)]
        first, second = (
            pairs.original.with_text(*encoded, None)
            for pairs, *encoded in zip((forget, retain), *parts, strict=True)
        )
        return first, second

    def precision(self) -> torch.autocast:
        """Autocast for passes through the towers; off in float32."""
        lower = self.dtype != torch.float32
        return torch.autocast(self.clip.device.type, self.dtype if lower else None, enabled=lower)

    def train_only(self, trains: Callable[[str], bool]) -> dict[str, nn.Parameter]:
        """Requires gradients of the parameters that `trains` names, except KEY_BIASES, and returns them."""
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(trains(name) and not name.endswith(KEY_BIASES))
            parameter.grad = None
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    def weights(self) -> dict[str, Tensor]:
        """A copy of all parameters that may train."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Sets parameters that may train."""
        with torch.no_grad():
            for name, tensor in weights.items():
                self.parameters[name].copy_(tensor)


class UNetStudent(ClipStudent):
    """A pipeline whose U-Net is in training, and the CLIP that it comes with, which stays as it is.

    `parameters` are those of the U-Net that `trains` names, by their names in its state dict.
    """

    def __init__(
        self, clip: Clip, original: Denoiser, dtype: torch.dtype, trains: Callable[[str], bool]
    ) -> None:
        super().__init__(clip, "text", dtype, frozenset())
        self.joins = False  # it encodes no captions with gradients
        self._denoiser = original.with_copy()
        named = self._denoiser.unet.named_parameters()
        self.parameters = {name: p for name, p in named if trains(name)}

    @property
    def denoiser(self) -> Denoiser:
        """The pipeline with the U-Net in training."""
        return self._denoiser
