"""Unlearning in closed form: the method's solution, checked and logged."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from ..errors import DivergedError
from ..methods.base import ClosedFormMethod
from ..run.records import EncoderResult, TrainRecord
from .session import Session


def solve(method: ClosedFormMethod, session: Session) -> tuple[dict[str, Tensor], EncoderResult]:
    """The weights with the method's solution in them, and its metrics.

    Raises DivergedError if the metrics are not finite.
    """
    session.student.load(method.solve(session.task))
    metrics = session.measure("validation")
    if not metrics.finite:
        raise DivergedError("the solution is not finite; nothing is saved")
    record = TrainRecord(step=0, terms={}, **dataclasses.asdict(metrics))
    session.write_log([record])
    return session.student.weights(), EncoderResult(
        steps=0,
        stopped="solved",
        resumed_at=0,
        batch_sizes=(session.settings.forget_batch, session.settings.retain_batch),
        dtype=session.student.dtype_name,
        held_out=dataclasses.asdict(session.measure("held-out")),
    )
