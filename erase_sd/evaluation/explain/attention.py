"""Attention maps of CLIP's towers, and the similarity of image patches with a caption."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.clip import Clip


@torch.no_grad()
def text_attention(clip: Clip, ids: Tensor) -> Tensor:
    """Attention of the text tower's last layer, mean over heads, (n, tokens, tokens).

    Row i is position i's attention over the positions up to itself; it sums to 1. Needs a model that
    runs `eager` attention.
    """
    output = clip.model.text_model(input_ids=ids.to(clip.device), output_attentions=True)
    maps: Tensor = output.attentions[-1].float().mean(dim=1).cpu()  # (n, heads, i, j) -> (n, i, j)
    return maps


@torch.no_grad()
def image_rollout(clip: Clip, pixels: Tensor) -> Tensor:
    """Abnar & Zuidema 2020, section 3, arXiv 2005.00928: attention rollout from each patch to [CLS],
    (n, rows, columns). With [CLS]'s own share a map would sum to 1.

    Half of every layer is the residual connection; heads weigh alike. Rollout rather than the last
    layer, because a CLIP's last layer attends to a few background patches. Needs a model that runs
    `eager` attention.
    """
    device = clip.model.visual_projection.weight.device
    output = clip.model.vision_model(pixel_values=pixels.to(device), output_attentions=True)
    identity = torch.eye(output.attentions[0].shape[-1])
    rollout = identity
    for layer in output.attentions:
        rollout = (layer.float().mean(dim=1).cpu() + identity) / 2 @ rollout
    return _as_square(rollout[:, 0, 1:])


@torch.no_grad()
def patch_similarity(clip: Clip, pixels: Tensor, text: Tensor) -> Tensor:
    """Cosine, (n, rows, columns), of each patch's last hidden state, projected as [CLS] is, with the
    image's row of `text` (n, projection), unit norm."""
    tower, project = clip.model.vision_model, clip.model.visual_projection
    hidden_states = tower(pixel_values=pixels.to(project.weight.device)).last_hidden_state[:, 1:]
    patches = F.normalize(project(tower.post_layernorm(hidden_states)).float(), dim=-1)
    return _as_square((patches.cpu() @ text.cpu().unsqueeze(-1)).squeeze(-1))


def _as_square(patches: Tensor) -> Tensor:
    """(n, patches) to (n, rows, columns); CLIP's images are square."""
    width = round(patches.shape[1] ** 0.5)
    return patches.reshape(len(patches), width, width)
