"""Closed choices that the command line lists too; importable without PyTorch."""

from __future__ import annotations

from typing import Literal, get_args

Towers = Literal["text", "both"]
"""Towers of CLIP that train."""

Sampler = Literal["ddim", "unipc", "dpm++"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
"""Solvers of the diffusion ODE: DDIM, UniPC and DPM-Solver++ (2M)."""

ExportFormat = Literal["diffusers", "comfyui", "a1111", "lora", "hub-folder"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
