"""The layers of a text encoder as CUDA graphs, which a card replays without waiting for the processor.

Only timed: unlearning launches its kernels one by one, since its batches shrink if memory runs out.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ..unlearning.trainer import Trainer


def replay(trainer: Trainer) -> None:
    """Captures the layers of the student and of the original for the trainer's batches."""
    rows = sum(trainer.batches.sizes)
    for clip, trained in ((trainer.student.clip, True), (trainer.session.original, False)):
        tower = cast(Any, clip.model.text_model)
        shape = rows, clip.length, int(tower.config.hidden_size)
        sample = torch.zeros(shape, device=clip.device, requires_grad=trained)
        lower = trainer.student.dtype != torch.float32
        # Casts that autocast keeps would be captured once, and never follow the weights.
        precision = torch.autocast(
            clip.device.type, trainer.student.dtype if lower else None, enabled=lower,
            cache_enabled=False,
        )  # fmt: skip
        with torch.set_grad_enabled(trained), precision:
            tower.encoder = ReplayedLayers(tower.encoder, sample)


def replay_with_fused_adam(trainer: Trainer) -> None:
    """The same, with an optimizer that updates many tensors per kernel."""
    replay(trainer)
    for group in trainer.optimizer.param_groups:
        group["fused"] = True


class ReplayedLayers(nn.Module):
    """Stands in for CLIP's `encoder`: batches like `sample` are replayed, all others computed as before."""

    def __init__(self, layers: nn.Module, sample: Tensor) -> None:
        super().__init__()
        self.layers, self.shape, self.trained = layers, sample.shape, sample.requires_grad
        self.replayed = torch.cuda.make_graphed_callables(_Causal(layers), (sample,))

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> BaseModelOutput:
        """Hidden states of the last layer, (n, tokens, width)."""
        captured = inputs_embeds.shape == self.shape and inputs_embeds.requires_grad == self.trained
        if captured and attention_mask is None:
            states = self.replayed(inputs_embeds)
            return BaseModelOutput(last_hidden_state=cast(Any, states))
        output: BaseModelOutput = self.layers(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, **options
        )
        return output


class _Causal(nn.Module):
    """CLIP's layers as a module of tensors alone, which is all that can be captured."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        states: Tensor = self.layers(
            inputs_embeds=inputs_embeds, attention_mask=None, is_causal=True
        ).last_hidden_state
        return states
