"""Results of a run: report, contact sheet, local page, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from ..errors import RunError
from ..models.choices import ExportFormat
from ..runtime import Precision, log
from . import options as opt


def report(
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Run to write the report of; repeatable.",
            show_default="all runs with images",
        ),
    ] = None,
) -> None:
    """Write report.html of each run, and runs/index.html to compare several.

    Without --run, runs that cannot be read are named, and the exit status is 1.
    """
    from ..report import write, write_all
    from ..run import RUNS, Run, run_folder
    from ..scoring.stage import runs_with_images

    runs, unreadable = ([Run(run_folder(n)) for n in run], []) if run else runs_with_images()
    for why in unreadable:
        log.error("%s; left out", why)
    if not runs:
        raise RunError(f"no run with images in {RUNS}/; unlearn and generate first")
    for path in [write(runs[0])] if run and len(runs) == 1 else write_all(runs):
        print(path)
    if unreadable:
        raise typer.Exit(1)


def show(
    run: Annotated[
        list[str],
        typer.Option("--run", metavar="RUN", help="Run to show, one row each; repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("pairs.png"),
    columns: Annotated[int, typer.Option(help="Maximum number of prompts, one column each.")] = 12,
    scale: Annotated[int, typer.Option(help="Factor by which the images are enlarged.")] = 1,
) -> None:
    """Write a contact sheet: the original's images, and below them the erased model's from the same seeds."""
    from ..report.contact_sheet import contact_sheet
    from ..run import Run, run_folder

    print(contact_sheet([Run(run_folder(name)) for name in run], out, columns, scale))


def play(
    run: opt.OneRun,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)
    ] = 7860,
    detector: opt.DetectorFile = None,
    detector_text: opt.DetectorText = None,
) -> None:
    """Open a local page that takes a prompt and a seed and shows both images with their detections."""
    from ..models.recorded import models_of_run
    from ..report.play.page import play as serve
    from ..run import Run, run_folder

    own = Run(run_folder(run))
    models = models_of_run(own, detector=detector, detector_text=detector_text)
    serve(own, models, host, port, lambda url: print(url, flush=True))


def export(
    run: opt.OneRun,
    to: Annotated[
        ExportFormat,
        typer.Option(
            metavar="FORMAT",
            help=f"Program or format to export to, one of {', '.join(get_args(ExportFormat))}.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write.", show_default="export/<format> in the run"),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Single-file checkpoint (.safetensors) to put the erasure in; a1111 only."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the LoRA; lora only.", show_default="32")
    ] = None,
    dtype: Annotated[
        Precision | None,
        typer.Option(
            help="Precision of the weights.",
            show_default="fp32; fp16 for comfyui; the checkpoint's own for a1111",
        ),
    ] = None,
    push_to: Annotated[
        str | None,
        typer.Option(
            metavar="HUB_ID",
            help="Model hub repository (owner/name) to upload a hub-folder to, with your login.",
        ),
    ] = None,
) -> None:
    """Export the erased text encoder or U-Net for another program."""
    from ..models.export import export as write_export
    from ..models.recorded import models_of_run
    from ..report.ladder_pictures import ladder_section
    from ..run import Run, run_folder

    own = Run(run_folder(run))
    folder = write_export(
        own, models_of_run(own), to, out, base, rank=rank, dtype=dtype, push_to=push_to,
        pictures=ladder_section,
    )  # fmt: skip
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(file)
