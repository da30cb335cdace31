"""What an erasure has done to captions: the concept's share that is left, and the rest's that is kept."""

from __future__ import annotations

import torch

from ..models.clip import Clip
from .captions import Rows


@torch.no_grad()
def shares(
    clip: Clip, original: Clip, forget: Rows, retain: Rows, most: int = 512
) -> dict[str, float]:
    """`forget` and `retain` of at most `most` captions a side, each 1 before anything is unlearned.

    forget: how much closer a caption with the concept is to its image than the same caption without
    it, as a share of what that was originally; 0 gone, below 0 repelled. retain: 1 - squared change
    of the retain captions' token states over their variance. It needs a caption that mentions the
    concept, and two that do not.
    """
    mentions = torch.nonzero(forget.mask.sum(1)).flatten()[:most]
    others = torch.linspace(0, len(retain) - 1, min(most, len(retain))).long()
    now, _ = clip.encode_texts(forget.ids[mentions])
    before, _ = original.encode_texts(forget.ids[mentions])
    without_it, _ = original.encode_texts(forget.reduced_ids[mentions])
    image = forget.image[mentions].to(clip.device)
    base = (image * without_it).sum(-1).mean()
    left = ((image * now).sum(-1).mean() - base) / ((image * before).sum(-1).mean() - base)
    _, then = original.encode_texts(retain.ids[others])
    _, after = clip.encode_texts(retain.ids[others])
    kept = 1 - (after - then).square().mean() / (then - then.mean(0)).square().mean()
    return {"forget": float(left), "retain": float(kept)}
