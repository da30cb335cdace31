"""A page to try an erasure on: a prompt, a seed, and both images with what was found in them.

The page is Gradio's (the extra `play`), imported only where one is opened. It answers on the own
machine unless told otherwise, and neither reads nor keeps a file for a visitor: the images travel
inside the page.
"""

from __future__ import annotations

import base64
import io
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ...errors import EraseError, SettingError
from ...files import read_rows
from ...generation.stage import Settings
from ...models.presets import Models
from ...run import Run
from ...scoring.rates import THRESHOLD
from .player import ARMS, SEEDS, Player

if TYPE_CHECKING:
    from PIL.Image import Image

WAITING = 8  # visitors in the queue; the next one is told that it is full


def play(
    run: Run,
    models: Models,
    host: str = "127.0.0.1",
    port: int = 7860,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serves the page of a run until Ctrl-C; `ready` gets its address. Port 0: any that is free.

    Raises SettingError where Gradio is not installed or the port cannot be had; else as Player.
    """
    try:
        with socket.create_server((host, port)) as probe:
            port = probe.getsockname()[1]
    except OSError as error:
        raise SettingError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror})"
        ) from None
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, and for its threads
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise SettingError("play: needs Gradio; pip install -e '.[play]' in the clone") from None
    player = Player(run, models)
    blocks = page(player, _examples(run))
    _, address, _ = blocks.queue(max_size=WAITING, api_open=False).launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
        footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False,
        mcp_server=False, pwa=False, max_file_size=0, theme=_theme(), css=CSS,
    )  # fmt: skip
    if ready:
        ready(address)
    blocks.block_thread()


def page(player: Player, examples: Sequence[tuple[str, str]]) -> Any:
    """The page as Gradio blocks; `examples` are prompts and seeds to click on."""
    import gradio as gr

    def draw(prompt: str, seed: str) -> str:
        try:
            return pair(prompt, *player(prompt, _whole(seed)), player.targets)
        except EraseError as error:
            return f'<p class="message" role="alert">{escape(str(error))}</p>'

    words = ", ".join(player.targets)
    with gr.Blocks(title=f"erase-sd: {words}", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(HEADER.format(words=escape(words)))
        with gr.Row():
            prompt = gr.Textbox(
                label="Prompt", max_lines=1, scale=6, min_width=280, elem_id="prompt"
            )
            seed = gr.Textbox(
                str(Settings().seed), label="Seed", max_lines=1, min_width=120, elem_id="seed"
            )
            button = gr.Button("Draw both", variant="primary", scale=1, elem_id="draw")
        result = gr.HTML(EMPTY, elem_id="result", render=False)
        if examples:
            gr.Examples(
                [list(row) for row in examples], [prompt, seed], result, draw, run_on_click=True,
                cache_examples=False, api_visibility="private", label="Or one of these",
                example_labels=[prompt for prompt, _ in examples],
            )  # fmt: skip
        result.render()
        gr.on(
            [button.click, prompt.submit, seed.submit], draw, [prompt, seed], result,
            api_visibility="private",
        )  # fmt: skip
    return blocks


def _theme() -> Any:
    """Gradio's own with the system's fonts, and with text and button dark enough to be read."""
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )  # fmt: skip
    return theme.set(
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )  # fmt: skip


def _whole(seed: str) -> int:
    try:
        return int(seed)
    except ValueError:
        raise SettingError(f"seed: {SEEDS}, got {seed!r}") from None


def _examples(run: Run) -> list[tuple[str, str]]:
    """Prompts and seeds of the run's own images, three of each prompt file; none before generate."""
    rows = [row for row in read_rows(run.folder / "images.jsonl") if row["arm"] == "original"]
    files = dict.fromkeys(row["prompts"] for row in rows)
    firsts = [[row for row in rows if row["prompts"] == file][:3] for file in files]
    return [(row["prompt"], str(row["seed"])) for first in firsts for row in first]


def pair(
    prompt: str, original: Image, erased: Image, found: dict[str, Any], targets: Mapping[str, str]
) -> str:
    """Both images side by side with their boxes, and a sentence for each concept, as HTML.

    `found` is what `detect` answers for the two; `targets` are its words for the concepts.
    """
    boxes = [[box for box in row if box["probability"] >= THRESHOLD] for row in found["rows"]]
    seen = [{box["class"] for box in row} for row in boxes]
    sentences = [
        VERDICTS[tuple(target in classes for classes in seen)].format(escape(concept))
        if target in found["names"]
        else f"The detector has no class <b>{escape(target)}</b>; look for yourself."
        for concept, target in targets.items()
    ]
    figures = [
        _figure(arm, prompt, image, row, targets)
        for arm, image, row in zip(ARMS, (original, erased), boxes, strict=True)
    ]
    return (
        f'<p class="verdict" role="status">{" ".join(sentences)}</p>'
        f'<div class="pair">{"".join(figures)}</div>'
    )


def _figure(
    arm: str, prompt: str, image: Image, boxes: list[dict[str, Any]], targets: Mapping[str, str]
) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    words = ", ".join(f"{box['class']} {box['probability']:.0%}" for box in boxes) or "nothing"
    return (
        f'<figure><h2>{arm}</h2><div class="frame"><img src="data:image/png;base64,{data}" '
        f'alt="{escape(f"{arm} image of: {prompt}; found: {words}")}">'
        + "".join(_box(box, image.size, box["class"] in targets.values()) for box in boxes)
        + f"</div><figcaption>found: {escape(words)}</figcaption></figure>"
    )


def _box(box: dict[str, Any], size: tuple[int, int], concept: bool) -> str:
    """A frame over the image, in percent of its `size`; its label stays inside the image."""
    left, top, right, bottom = (100 * v / size[i % 2] for i, v in enumerate(box["box"]))
    label = "low" * (top < 8) + " right" * (left > 60)
    return (
        f'<div class="box{" concept" * concept}" aria-hidden="true" style="left:{left:.1f}%;'
        f'top:{top:.1f}%;width:{right - left:.1f}%;height:{bottom - top:.1f}%">'
        f'<span class="{label}">{escape(box["class"])} {box["probability"]:.0%}</span></div>'
    )


VERDICTS: dict[tuple[bool, ...], str] = {
    (True, False): "<b>{}</b>: in the original, gone from the erased image.",
    (True, True): "<b>{}</b>: still in the erased image.",
    (False, False): "<b>{}</b>: found in neither image.",
    (False, True): "<b>{}</b>: only in the erased image.",
}
HEADER = """<header><h1>Stable Diffusion, without <b>{words}</b></h1>
<p>The same prompt and the same noise, drawn once with the original text encoder and once with the
erased one. The frames are what the detector finds.</p></header>"""
EMPTY = """<div class="pair empty"><figure><h2>original</h2><div class="frame"></div></figure>
<figure><h2>erased</h2><div class="frame"></div></figure></div>"""
CSS = """
.gradio-container { max-width: 64rem !important; margin: 0 auto !important; }
.html-container { padding: 0 !important; }
header h1 { font-size: 1.8rem; font-weight: 600; margin: .5rem 0 .3rem; }
header h1 b { text-decoration: line-through #e8590c .12em; }
header p { margin: 0; color: var(--body-text-color-subdued); }
#draw { align-self: end; min-height: 2.7rem; }
.pair { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.pair figure { margin: 0; }
.pair h2 { margin: 0 0 .3rem; font-size: 1rem; font-weight: 600; }
.pair figcaption { margin-top: .3rem; color: var(--body-text-color-subdued); }
.frame { position: relative; overflow: hidden; border-radius: .6rem; }
.frame img { display: block; width: 100%; }
.empty .frame { aspect-ratio: 1; border: 2px dashed var(--border-color-primary); }
.box { position: absolute; border: 2px solid #0b7285; border-radius: 3px; }
.box span { z-index: 1; position: absolute; bottom: 100%; left: -2px; padding: 0 .4em; white-space: nowrap;
  font: 600 .8rem/1.5 system-ui, sans-serif; color: #fff; background: #0b7285; }
.box.concept { border-color: #c92a2a; }
.box.concept span { background: #c92a2a; }
.box span.low { bottom: auto; top: 0; }
.box span.right { left: auto; right: -2px; }
.verdict { margin: .2rem 0 .8rem; font-size: 1.15rem; }
.message { padding: .8rem 1rem; border-left: 4px solid #e03131; overflow-wrap: anywhere; }
"""
