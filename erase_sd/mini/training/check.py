"""Checks the miniature world on captions, scenes and seeds that trained nothing.

`python -m erase_sd.mini.training.check` exits with status 1 if a check fails.
"""

from __future__ import annotations

import os
import sys

from ...detection.detector import CONTAINED
from ...detection.worker import Detector
from ...models.quiet import quiet_libraries
from .. import WEIGHTS
from .check_images import Generator, check_images
from .check_models import check_clip, check_detector, check_vae
from .checklist import Checklist


def main() -> None:
    """Runs all checks."""
    os.environ.update(CONTAINED)
    quiet_libraries()
    checks, detector = Checklist(), Detector(WEIGHTS / "detector.safetensors")
    check_vae(checks)
    check_clip(checks)
    check_detector(checks, detector)
    check_images(checks, Generator(detector))
    if checks.failed:
        sys.exit(f"failed: {', '.join(checks.failed)}")


if __name__ == "__main__":
    main()
