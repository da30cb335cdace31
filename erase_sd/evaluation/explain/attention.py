"""Where CLIP's towers look: attention maps, and how well each patch fits a caption."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.concept import Concept
from ...models.clip import Clip


@dataclass(frozen=True)
class Words:
    """A caption's tokens as they are read, `<|startoftext|>` and `<|endoftext|>` included.

    `last` is the position of the last word's last token, `end` that of `<|endoftext|>`; `mentions`
    are the positions that belong to a concept.
    """

    tokens: tuple[str, ...]
    last: int
    end: int
    mentions: frozenset[int]


def words_of(clip: Clip, text: str, concepts: tuple[Concept, ...]) -> Words:
    """The tokens of `text`, each as the piece of the text that it stands for."""
    encoded = clip.tokenizer(text, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    names = clip.tokenizer.convert_ids_to_tokens(ids)
    tokens = tuple(text[i:j] or name for (i, j), name in zip(spans, names, strict=True))
    end = len(tokens) - 1
    words = [k for k in range(1, end) if any(map(str.isalnum, tokens[k]))]
    said = [span for concept in concepts for span in concept.spans(text)]
    mentions = (k for k, (i, j) in enumerate(spans) if any(i < b and a < j for a, b in said))
    return Words(tokens, words[-1] if words else end - 1, end, frozenset(mentions))


@torch.no_grad()
def text_attention(clip: Clip, ids: Tensor) -> Tensor:
    """Attention of the text tower's last layer, mean over heads, (n, tokens, tokens).

    Row i says how position i shares its look out among the positions up to itself; it sums to 1.
    Only a model that runs `eager` returns its maps.
    """
    out = clip.model.text_model(input_ids=ids.to(clip.device), output_attentions=True)
    maps: Tensor = out.attentions[-1].float().mean(dim=1).cpu()  # (n, heads, i, j) -> (n, i, j)
    return maps


@torch.no_grad()
def image_rollout(clip: Clip, pixels: Tensor) -> Tensor:
    """Abnar & Zuidema 2020, section 3 (arXiv:2005.00928): what of each patch reaches [CLS] through
    the attention of all layers, (n, rows, columns); with [CLS]'s own share a map would sum to 1.

    Half of every layer is the residual connection; heads count alike. Only a model that runs `eager`
    returns its maps. Rollout, as the last layer of a CLIP looks at a few patches of the background.
    """
    where = clip.model.visual_projection.weight.device
    out = clip.model.vision_model(pixel_values=pixels.to(where), output_attentions=True)
    itself = torch.eye(out.attentions[0].shape[-1])
    flow = itself
    for layer in out.attentions:
        flow = (layer.float().mean(dim=1).cpu() + itself) / 2 @ flow
    return _square(flow[:, 0, 1:])


@torch.no_grad()
def patch_similarity(clip: Clip, pixels: Tensor, text: Tensor) -> Tensor:
    """Cosine of each patch's last state, projected as [CLS] is, with the image's own row of `text`.

    (n, rows, columns), -1 to 1; `text` (n, projection) of unit norm.
    """
    tower, project = clip.model.vision_model, clip.model.visual_projection
    states = tower(pixel_values=pixels.to(project.weight.device)).last_hidden_state[:, 1:]
    patches = F.normalize(project(tower.post_layernorm(states)).float(), dim=-1)
    return _square((patches.cpu() @ text.cpu().unsqueeze(-1)).squeeze(-1))


def _square(patches: Tensor) -> Tensor:
    side = round(patches.shape[1] ** 0.5)  # CLIP's images are squares
    return patches.reshape(len(patches), side, side)
