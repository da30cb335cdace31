"""The README of an exported encoder: what went, what stayed, from what, and how to use it."""

from __future__ import annotations

import json
from typing import Any

from .presets import Models

LICENCES = {
    "mini": "agpl-3.0",
    "sd14": "creativeml-openrail-m",
    "sd15": "creativeml-openrail-m",
    "sd21": "openrail++",
    "sdxl": "openrail++",
}
PIPELINES = {1: "StableDiffusionPipeline", 2: "StableDiffusionXLPipeline"}


def card(described: dict[str, Any], encoders: list[str], models: Models, scores: str) -> str:
    """Markdown with the hub's header. `described` is `erase.json`, `scores` the run's table.

    An erased encoder is made from its base and stays under the base's licence; for a model of no
    preset that is for the user to fill in.
    """
    words = ", ".join(described["concepts"])
    own_model = "model" in models.given
    licence = "other" if own_model else LICENCES[models.given.get("preset", "mini")]
    base = "the miniature world of erase-sd" if licence == "agpl-3.0" else str(models.model)
    header = {"license": licence, "library_name": "diffusers", "tags": ["unlearning", "erase-sd"]}
    if licence not in ("agpl-3.0", "other"):
        header["base_model"] = base
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    load = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    kinds = ", ".join(load[name] for name in encoders)
    loading = "\n".join(
        f'pipe.{name} = {load[name]}.from_pretrained("this-folder", subfolder="{name}")'
        for name in encoders
    )
    settings = {
        k: v for k, v in described["settings"].items() if k not in ("clip", "data", "model")
    }
    return f"""---
{lines}
---

# Text encoder without: {words}

The text encoder of {base}, unlearned with [erase-sd](https://github.com/erase-sd/erase-sd) so that
"{words}" is no longer drawn. Everything else of the pipeline stays as it is.

```python
from diffusers import {PIPELINES[len(encoders)]}
from transformers import {kinds}

pipe = {PIPELINES[len(encoders)]}.from_pretrained("{base if "base_model" in header else "base"}")
{loading}
```

## What was measured

{scores.strip()}

Rates are of the prompts, seeds and detector of one run; they do not show that no prompt brings the
concept back.

## How it was made

Base: {base}, weights `{described["base"]["fingerprint"]}`; licence of the base: {licence}.

```json
{json.dumps(settings, indent=2, ensure_ascii=False)}
```
"""
