"""The run folder: what the stages leave for one another, one writer at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

from .. import runtime
from ..data.concept import joined_slug
from ..errors import RunError, SettingError
from ..files import digest, is_encodable, write_json
from ..reading import read_bytes, read_record, read_records
from ..sharing import writes
from .differences import refuse_other
from .lock import writer_lock
from .measurements import (
    AttackImage,
    AttacksRecord,
    DetectionRecord,
    EvaluationRecord,
    ScoresRecord,
)
from .records import (
    ErasureRecord,
    GenerateRecord,
    ImageRecord,
    RunRecord,
    ScoreRecord,
    StageName,
    StageRecord,
    Stages,
    Status,
    TrainRecord,
    UnlearnRecord,
)
from .undo import run_before

S = TypeVar("S", bound=StageRecord)

RUNS = Path("runs")
FORMAT = 2  # of run.json; a folder of another format has to be made again
STAGES: tuple[StageName, ...] = get_args(StageName)


def run_folder(run: str | Path | None, concepts: tuple[str, ...] = ()) -> Path:
    """`runs/<name>` for a plain name, the folder itself for a path, which `.` and `..` are too.

    Without either, the concepts name the run: `apple+chair`.
    """
    run = joined_slug(concepts) if run is None else run
    if not str(run).strip():
        raise SettingError("needs a name or a folder", field="run")
    if not is_encodable((path := Path(run)).name):
        raise SettingError("needs a name in UTF-8", field="run", value=repr(str(run)))
    if path.name in ("", ".."):  # tables show the folder's own name
        return path.resolve()
    return path if path.parent != Path() else RUNS / path


def suffix_of(module: str) -> str:
    """What the names of a module's own files end with: `_2` for the second encoder, `_unet`."""
    return {"text_encoder_2": "_2", "unet": "_unet"}.get(module, "")


class Run:
    """A run folder. Stages read typed records, and write inside `with run.stage(...)`.

    Of a launcher's processes the first alone writes: in the others, `stage`, `lock` and `update` leave
    no trace.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.folder / "run.json").is_file()

    @property
    def erased(self) -> Path:
        """Folder of the erased text encoders and U-Net."""
        return self.folder / "erased"

    @property
    def record(self) -> RunRecord:
        """`run.json`; RunError if it is missing, damaged, or of another version."""
        path = self.folder / "run.json"
        if not self.exists:
            raise RunError(f"{self.folder}: not a run folder (no run.json); unlearn first")
        record = read_record(path, RunRecord, hint=f"unlearn again, or remove {self.folder}")
        if record.format != FORMAT:
            raise RunError(
                f"{path}: format {record.format}, this version reads {FORMAT}; unlearn again"
            )
        return record

    @property
    def stages(self) -> Stages:
        """The stages' entries in `run.json`; empty if there is no run yet."""
        return self.record.stages if self.exists else Stages()

    def status(self, stage: StageName) -> Status:
        """`running` also means interrupted, unless another process is running it right now."""
        entry: StageRecord | None = getattr(self.stages, stage)
        return entry.status if entry else "missing"

    def unlearned(self) -> UnlearnRecord:
        """The unlearn stage's entry; RunError if it is not done."""
        return self._done("unlearn", self.record.stages.unlearn)

    def generated(self) -> GenerateRecord:
        """The generate stage's entry; RunError if it is not done."""
        return self._done("generate", self.record.stages.generate)

    def scored(self) -> ScoreRecord:
        """The score stage's entry; RunError if it is not done."""
        return self._done("score", self.record.stages.score)

    def _done(self, stage: StageName, entry: S | None) -> S:
        if entry is None or entry.status != "done":
            status = entry.status if entry else "missing"
            raise RunError(f"{self.folder}: {stage} is {status}; {stage} first")
        return entry

    def images(self) -> list[ImageRecord]:
        """Rows of `images.jsonl`; empty before any image is generated."""
        return read_records(self.folder / "images.jsonl", ImageRecord)

    def image_bytes(self, image: ImageRecord | AttackImage) -> bytes:
        """An image's file; RunError if it is missing, or not the image that was generated."""
        command = "attack" if isinstance(image, AttackImage) else "generate"
        path = self.folder / image.file
        try:
            data = read_bytes(path)
        except FileNotFoundError:
            raise RunError(f"{path}: missing; {command} again") from None
        if digest(data) != image.sha256:
            raise RunError(f"{path}: damaged, not the image that was generated; {command} again")
        return data

    def detections(self) -> list[DetectionRecord]:
        """Rows of `detections.jsonl`; empty before scoring."""
        return read_records(self.folder / "detections.jsonl", DetectionRecord)

    def training_log(self, module: str = "text_encoder") -> Path:
        """Path of a module's `train.jsonl`; `train_2.jsonl` of the second encoder, `train_unet.jsonl`."""
        return self.folder / f"train{suffix_of(module)}.jsonl"

    def training(self, module: str = "text_encoder") -> list[TrainRecord]:
        """Validation steps of a module's unlearning."""
        return read_records(self.training_log(module), TrainRecord)

    def checkpoint(self, module: str) -> Path:
        """Path of the checkpoint of a module's unlearning, named as its training log."""
        return self.folder / f"checkpoint{suffix_of(module)}.safetensors"

    def erasure(self) -> ErasureRecord:
        """`erased/erase.json`."""
        return read_record(self.erased / "erase.json", ErasureRecord, hint="unlearn again")

    def scores(self) -> ScoresRecord:
        """`scores.json`."""
        return read_record(self.folder / "scores.json", ScoresRecord, hint="score again")

    def evaluation(self) -> EvaluationRecord | None:
        """`evaluation.json`; None if the run has not been evaluated."""
        path = self.folder / "evaluation.json"
        if not path.is_file():
            return None
        record = read_record(path, EvaluationRecord, hint="evaluate again")
        self._check_weights(path, record.about.get("erased_sha256"), "evaluate")
        return record

    def attacks(self) -> AttacksRecord | None:
        """`attacks.json`; None if the run has not been attacked."""
        path = self.folder / "attacks.json"
        if not path.is_file():
            return None
        record = read_record(path, AttacksRecord, hint="attack again")
        self._check_weights(path, record.erased_sha256, "attack")
        return record

    def _check_weights(self, path: Path, measured: object, command: str) -> None:
        """RunError if a file was measured on other weights than the run now has."""
        known = measured and (self.erased / "erase.json").is_file()
        if known and measured != self.erasure().weights_sha256:
            raise RunError(f"{path}: measured on other weights than the run has; {command} again")

    def update(self, **fields: Any) -> None:
        """Sets fields of `run.json`: `models`, `versions`, `stages` or `total`."""
        if not writes():
            return
        record = self.record if self.exists else RunRecord(format=FORMAT, stages=Stages())
        write_json(
            self.folder / "run.json", dataclasses.asdict(dataclasses.replace(record, **fields))
        )

    def lock(self, reader: bool = False) -> contextlib.AbstractContextManager[None]:
        """`writer_lock` of the folder, if this process writes."""
        return writer_lock(self.folder, reader) if writes() else contextlib.nullcontext()

    @contextlib.contextmanager
    def stage(
        self, name: StageName, settings: dict[str, Any], **entry: Any
    ) -> Iterator[dict[str, Any]]:
        """Runs one stage under the lock: `running` with its settings at first, `done` at the end.

        Yields the stage's entry in `run.json`, a dict, for results to be added to. Later stages rest on
        this one and are dropped. A stage that fails before it changed a file leaves `run.json` as it was.
        Raises RunError, naming what differs, if an interrupted unlearning would resume with other
        settings.
        """
        if not writes():
            yield entry
            return
        with self.lock():
            before = run_before(self.folder)
            stages = self.stages
            if name == "unlearn" and stages.unlearn:
                refuse_other(self.folder, stages.unlearn, settings, **entry)
            records = dataclasses.asdict(stages)
            earlier = {s: records[s] for s in STAGES[: STAGES.index(name)]}
            entry |= {"status": "running", "settings": settings}
            self._write_stage(earlier | {name: entry})
            began = time.monotonic()
            try:
                yield entry
            except BaseException:  # a signal, too
                before.restore()
                raise
            entry |= {
                "status": "done",
                "seconds": round(time.monotonic() - began, 1),
                "peak_memory_mb": round(runtime.peak_memory() / 1e6),
            }
            self._write_stage(earlier | {name: entry})

    def _write_stage(self, stages: dict[str, Any]) -> None:
        record = dataclasses.asdict(self.record) if self.exists else {"format": FORMAT}
        record |= {"stages": stages, "versions": runtime.versions()}
        write_json(self.folder / "run.json", record)
