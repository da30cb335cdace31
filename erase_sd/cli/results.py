"""What to do with a run: its page, its pictures, the local page, the export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import RunError
from .app import app
from .options import DetectorFile

PANEL = "A run"


@app.command(rich_help_panel=PANEL)
def report(
    run: Annotated[
        list[str] | None,
        typer.Option(help="Run to report on; may be given more than once. None: all with images."),
    ] = None,
) -> None:
    """Write each run's page, report.html, and of several runs runs/index.html to compare them."""
    from ..report import write, write_all
    from ..run import RUNS, Run, folder_of
    from ..scoring.stage import all_runs

    runs = [Run(folder_of(name)) for name in run] if run else all_runs()
    if not runs:
        raise RunError(f"no run with images in {RUNS}/; unlearn and generate first")
    for path in [write(runs[0])] if run and len(runs) == 1 else write_all(runs):
        print(path)


@app.command(rich_help_panel=PANEL)
def show(
    run: Annotated[list[str], typer.Option(help="Run to show; may be given more than once.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("pairs.png"),
    columns: Annotated[int, typer.Option(help="Prompts to show.")] = 12,
    scale: Annotated[int, typer.Option(help="Enlarge the images this many times.")] = 1,
) -> None:
    """Put images of the same prompts and seeds below one another in one picture."""
    from ..report.contact_sheet import show as draw
    from ..run import Run, folder_of

    print(draw([Run(folder_of(name)) for name in run], out, columns, scale))


@app.command(rich_help_panel=PANEL)
def play(
    run: Annotated[str, typer.Option(help="Run to play with.")],
    host: Annotated[str, typer.Option(help="Address to answer on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 7860,
    detector: DetectorFile = None,
) -> None:
    """Open a local page: type a prompt and a seed, see both images with what was found in them."""
    from ..models.presets import of_run
    from ..report.play.page import play as serve
    from ..run import Run, folder_of

    found = Run(folder_of(run))
    serve(found, of_run(found, detector=detector), host, port, lambda url: print(url, flush=True))


@app.command(rich_help_panel=PANEL)
def export(
    run: Annotated[str, typer.Option(help="Run to take away.")],
    to: Annotated[str, typer.Option(help="diffusers, comfyui, a1111 or hub-folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="Single-file checkpoint to put it in, for a1111.")
    ] = None,
) -> None:
    """Write the erased encoder in the form that another program reads."""
    from ..models.export import export as write
    from ..models.presets import of_run
    from ..run import Run, folder_of

    found = Run(folder_of(run))
    folder = write(found, of_run(found), to, out, base)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(file)
