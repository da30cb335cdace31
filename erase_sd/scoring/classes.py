"""The detector's class of each concept, and whether the detector has it."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.concept import Concept
from ..detection.detector import check_class, detect
from ..errors import SettingError
from ..models.presets import Models

REMEDY = "name the class that shows the concept, or a detector that has one"


def classes_of(concepts: Sequence[Concept], options: Sequence[str]) -> dict[str, str]:
    """The detector's class of each concept: its own name, unless an option says otherwise.

    An option is `concept=class`, or just the class for a run with one concept. Case does not matter.
    """
    classes = {concept.name: concept.name.lower() for concept in concepts}
    for option in options:
        name, equals, target = option.rpartition("=")
        if not equals and len(classes) == 1:
            [name] = classes
        if name not in classes or not target:
            raise SettingError(
                f"needs concept=class, with one of the run's concepts: {', '.join(classes)}",
                field="detector_class",
                value=option,
            )
        classes[name] = target.strip().lower()
    return classes


def checked_classes(
    models: Models, concepts: Sequence[Concept], options: Sequence[str], remedy: str = REMEDY
) -> dict[str, str]:
    """`classes_of`, checked before work that ends with detections begins.

    Raises ModelError if the detector cannot be loaded, and SettingError, which ends in the `remedy`, if
    it lacks a class. A preset's own is known to load; only its header is read.
    """
    classes, detector = classes_of(concepts, options), models.detector_file()
    targets = list(classes.values())
    try:
        if models.overrides.get("detector"):
            detect(detector, [], targets, text_encoder=models.detector_text_path())
        else:
            from ..detection.yolov5 import names_in_header

            names = names_in_header(detector)
            for target in targets:
                check_class(target, names)
    except SettingError as error:
        if error.field != "detector_class":
            raise
        rule = f"{error.rule}; {remedy}"
        raise SettingError(rule, field=error.field, value=error.value) from None
    return classes
