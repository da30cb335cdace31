"""The README of an exported encoder: what was erased, how it was measured, and how to use it."""

from __future__ import annotations

import json

from ..run.records import ErasureRecord
from .presets import Models

PIPELINE_CLASSES = {1: "StableDiffusionPipeline", 2: "StableDiffusionXLPipeline"}
ENCODER_CLASSES = {
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}


def card(record: ErasureRecord, models: Models, scores: str) -> str:
    """Markdown with the hub's header; `scores` is the run's table of rates.

    An erased encoder is derived from its base and keeps the base's licence; for a model that is not a
    preset's, the user has to fill it in.
    """
    concepts = ", ".join(concept.name for concept in record.concepts)
    base = models.title or record.base.model
    return f"""---
{_header(models)}
---

# Text encoder without: {concepts}

The text encoder of {base}, unlearned with erase-sd so that the pipeline no longer generates
"{concepts}". Everything else in the pipeline is unchanged.

```python
{_usage(list(record.weights_sha256), models.hub_id or "path/to/the/base-model")}
```

## What was measured

{scores.strip()}

The rates hold for the prompts, seeds and detector of one run; they do not show that no prompt brings
the concept back.

## How it was made

Base: {base}, weights `{record.base.fingerprint}`; licence of the base: {models.licence}.

```json
{json.dumps(record.settings, indent=2, ensure_ascii=False)}
```
"""


def _usage(encoders: list[str], base: str) -> str:
    """Python that puts the erased encoders into the pipeline."""
    pipeline = PIPELINE_CLASSES[len(encoders)]
    lines = [
        f"from diffusers import {pipeline}",
        f"from transformers import {', '.join(ENCODER_CLASSES[name] for name in encoders)}",
        "",
        f'pipe = {pipeline}.from_pretrained("{base}")',
    ]
    for name in encoders:
        load = f"{ENCODER_CLASSES[name]}.from_pretrained"
        lines.append(f'pipe.{name} = {load}("this-folder", subfolder="{name}")')
    return "\n".join(lines)


def _header(models: Models) -> str:
    """The fields that the hub reads, as YAML."""
    fields = {
        "license": models.licence,
        "library_name": "diffusers",
        "tags": ["unlearning", "erase-sd"],
    }
    if models.hub_id:
        fields["base_model"] = models.hub_id
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())
