"""Training of a method with a schedule of stages."""

from __future__ import annotations

from typing import Any

from ..methods.base import Method, StagedMethod
from .metrics import ErasureMetrics
from .session import Session
from .trainer import Trainer


class StagedTrainer(Trainer):
    """Rolls back a validation that does not lower the method's residual, and begins the next stage."""

    def __init__(self, method: StagedMethod, session: Session) -> None:
        self.stages = method.stages()
        self.residual = 1.0
        super().__init__(self.stages[0], session)

    def scheduled(self) -> Method:
        """The method in the current stage."""
        return self.stages[self.state.stage]

    def resume(self) -> None:
        """Restores the checkpoint, or measures the residual before the first step."""
        super().resume()
        if not self.state.step:
            self.state.residual = self.stages[0].residual(self.student)

    def accepts(self, metrics: ErasureMetrics) -> bool:
        """Whether the residual is lower than before and the retain floor holds."""
        self.residual = self.stages[self.state.stage].residual(self.student)
        assert self.state.residual is not None
        return super().accepts(metrics) and self.residual < self.state.residual

    def accept(self, metrics: ErasureMetrics) -> None:
        """Keeps the weights, and stops if the concept is erased by either measure."""
        super().accept(metrics)
        self.state.residual = self.residual
        if self.residual == 0:
            self.state.stopped = "thresholds"

    def adjust(self) -> None:
        """After a roll-back: begins the next stage, or stops after the last."""
        if self.state.stage + 1 == len(self.stages):
            self.state.stopped = "schedule"
        else:
            self.state.stage += 1
            self.begin(self.scheduled())

    def schedule(self) -> dict[str, Any]:
        """Stage and residual."""
        return {"schedule_stage": self.state.stage, "schedule_residual": self.residual}
