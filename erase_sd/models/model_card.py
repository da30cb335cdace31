"""The README of an exported erasure: what was erased, how it was measured, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..reading import read_json
from ..run.measurements import RateComparison
from ..run.records import ErasureRecord
from .pipeline_kinds import kind_of, not_erased
from .presets import Models
from .unet import UNET


def card(
    record: ErasureRecord,
    models: Models,
    scores: str,
    rates: Sequence[RateComparison] = (),
    hub_id: str | None = None,
    section: str = "",
) -> str:
    """Markdown with the hub's header; `scores` is the run's table of `rates`, `hub_id` where it will be,
    `section` a further one after the table.

    An erasure is derived from its base and keeps the base's licence; for a model that is not a
    preset's, the user has to fill it in.
    """
    concepts = ", ".join(concept.name for concept in record.concepts)
    quoted = ", ".join(f'"{concept.name}"' for concept in record.concepts)
    base = models.title or record.base.model
    kinds = ("U-Net" if name == UNET else "text encoder" for name in record.weights_sha256)
    part = " and ".join(dict.fromkeys(kinds))
    return f"""---
{_header(models, concepts, rates)}
---

# {part[0].upper() + part[1:]} without {concepts}

The {part} of {base}, unlearned with erase-sd to keep the pipeline from generating
{quoted}; how far that succeeded is measured below. \
{not_erased(models.folder) or "Everything else in the pipeline is unchanged"}.

```python
{_usage(record, models, hub_id)}
```

## What was measured

{scores.strip()}

The rates hold for the prompts, seeds and detector of one run; they do not show that no prompt brings
the concept back.
{section and chr(10) + section + chr(10)}
## How it was made

Base: {base}, weights `{record.base.fingerprint}`; licence of the base: {models.licence}.

```json
{json.dumps(record.settings, indent=2, ensure_ascii=False)}
```
"""


def _usage(record: ErasureRecord, models: Models, hub_id: str | None) -> str:
    """Python that puts the erased modules into the pipeline; without `hub_id`, run in this folder."""
    modules = list(record.weights_sha256)
    pipeline = kind_of(models.folder)
    classes = {name: _class_of(models.folder / name) for name in modules}
    imports: dict[str, list[str]] = {"diffusers": [pipeline]}
    for name, kind in classes.items():
        own = imports.setdefault("diffusers" if name == UNET else "transformers", [])
        own += [kind] if kind not in own else []
    source = json.dumps(hub_id or ".")
    lines = [f"from {library} import {', '.join(kinds)}" for library, kinds in imports.items()]
    if models.own_data:  # the model comes with erase-sd
        lines += ["from erase_sd.models.presets import resolve", "", "base = resolve().folder"]
    elif models.hub_id:
        lines += ["", f"base = {json.dumps(models.hub_id)}"]
    else:
        lines += ["", f"base = {json.dumps(record.base.model)}  # the folder of the base model"]
    lines.append(f"pipe = {pipeline}.from_pretrained(base)")
    for name in modules:
        load = f"{classes[name]}.from_pretrained({source}, subfolder={json.dumps(name)})"
        lines.append(f"pipe.{name} = {load}.to(pipe.dtype)")
    # The name by itself: whether an article belongs before it ("apple", "snow", "Van Gogh") is unknown.
    prompt = json.dumps(record.concepts[0].name)
    lines.append(f'pipe({prompt}).images[0].save("without.png")')
    return "\n".join(lines)


def _class_of(folder: Path) -> str:
    """The transformers or diffusers class of a text encoder or U-Net."""
    config = read_json(folder / "config.json")
    return str(config.get("_class_name") or (config.get("architectures") or ["CLIPTextModel"])[0])


def _header(models: Models, concepts: str, rates: Sequence[RateComparison]) -> str:
    """The fields that the hub reads, as YAML: one field a line, each value as JSON."""
    fields: dict[str, Any] = {
        "license": models.licence,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["unlearning", "concept-erasure", "erase-sd"],
    }
    if models.hub_id:
        fields["base_model"] = models.hub_id
    if metrics := [metric for rate in rates for metric in _metrics(rate)]:
        result = {
            "task": {"type": "text-to-image"},
            "dataset": {"name": "held-out prompts of the run", "type": "prompts"},
            "metrics": metrics,
        }
        fields["model-index"] = [{"name": f"without {concepts}", "results": [result]}]
    return "\n".join(
        f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()
    )


def _metrics(rate: RateComparison) -> list[dict[str, Any]]:
    """One comparison as two metrics, percent: with the original and with the erased encoder."""
    group = {"target": "", "retained_same": ", retained, same prompts",
             "retained_other": ", retained, other prompts"}[rate.group]  # fmt: skip
    kind = "" if rate.kind == "plain" else f", {rate.kind} prompts"
    return [
        {
            "type": "detection_rate",
            "name": f"detection rate %, {rate.concept}{group}{kind}, {variant}",
            "value": round(100 * value.value, 1),
        }
        for variant, value in (("original", rate.original), ("erased", rate.erased))
    ]
