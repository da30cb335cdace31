"""Checks the miniature world on captions, scenes and seeds that trained nothing.

`python -m erase_sd.mini.training.check` exits with status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import os
import sys

from ...detection.detector import CONTAINED
from ...detection.worker import Detector
from ...models.choices import SAMPLERS
from ...models.quiet import quiet_libraries
from ...runtime import PRECISIONS
from .. import WEIGHTS
from .check_images import Generator, check_images
from .check_models import check_clip, check_detector, check_vae
from .checklist import Checklist


def main() -> None:
    """Reads the options and runs all checks."""
    parser = argparse.ArgumentParser(
        prog="python -m erase_sd.mini.training.check", description=__doc__
    )
    parser.add_argument("--dtype", choices=PRECISIONS, default="auto")
    parser.add_argument("--sampler", choices=SAMPLERS, help="instead of the preset's")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    options = parser.parse_args()
    os.environ.update(CONTAINED)
    quiet_libraries()
    checks, detector = Checklist(), Detector(WEIGHTS / "detector.safetensors")
    check_vae(checks)
    check_clip(checks)
    check_detector(checks, detector)
    check_images(checks, Generator(detector, **vars(options)))
    if checks.failed:
        sys.exit(f"failed: {', '.join(checks.failed)}")


if __name__ == "__main__":
    main()
