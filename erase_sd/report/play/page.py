"""A local page that takes a prompt and a seed and shows both images with their detections.

The page uses Gradio (the extra `play`), which is imported only here. It listens on this machine
only, unless told otherwise, and neither serves nor stores files: the images travel inside the page.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

from ...detection.detector import detector_kept, start_detector
from ...errors import EraseError, SettingError, reason
from ...generation.settings import GenerateSettings
from ...models.presets import Models
from ...run import Run
from .markup import CSS, PLACEHOLDER, header_html, image_pair_html
from .player import SEED_RULE, Player

QUEUE_SIZE = 8  # waiting visitors; any more are told that the queue is full
EXAMPLES_PER_FILE = 3


@detector_kept()
def play(
    run: Run,
    models: Models,
    host: str = "127.0.0.1",
    port: int = 7860,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serves the page until Ctrl-C; `ready` is called with its address. Port 0 takes any free port.

    Raises SettingError if Gradio is not installed or the host or the port cannot be used, and whatever
    `Player` raises.
    """
    try:
        socket.getaddrinfo(host, port)
    except (OSError, TypeError, UnicodeError) as error:
        rule = f"not a name or an address of this machine ({reason(error)})"
        raise SettingError(rule, field="host", value=host) from None
    try:
        with socket.create_server((host, port)) as probe:
            port = probe.getsockname()[1]
    except OSError as error:
        raise SettingError(
            f"cannot listen on {host} ({error.strerror}); choose another port (0: any free one) or host",
            field="port",
            value=port,
        ) from None
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # must be set before the import
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise SettingError(
            "play needs Gradio; run pip install -e '.[play]' in the repository"
        ) from None
    player = Player(run, models)
    start_detector(player.detector, player.words, player.detector_text)
    blocks = play_page(player, _examples(run))
    with _without_proxy():  # Gradio asks its own page whether it is there, on this machine
        _, address, _ = blocks.queue(max_size=QUEUE_SIZE, api_open=False).launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
            footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False,
            mcp_server=False, pwa=False, max_file_size=0, theme=_theme(), css=CSS,
        )  # fmt: skip
    if ready:
        ready(address)
    blocks.block_thread()


@contextlib.contextmanager
def _without_proxy() -> Iterator[None]:
    """Inside, no request goes to a proxy; later ones, such as a detector's download, do as before."""
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = "*"
    try:
        yield
    finally:
        if before is None:
            del os.environ["no_proxy"]
        else:
            os.environ["no_proxy"] = before


def play_page(player: Player, examples: Sequence[tuple[str, str]]) -> Any:
    """The page as Gradio blocks; `examples` are prompts and seeds to choose from."""
    import gradio as gr

    def generate_both(prompt: str, seed: str) -> str:
        try:
            images, answer = player(prompt, _parse_seed(seed))
        except EraseError as error:
            return f'<p class="message" role="alert">{escape(str(error))}</p>'
        return image_pair_html(prompt, images, answer, player.targets)

    concepts = ", ".join(player.targets)
    title = f"erase-sd: {concepts}"
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(header_html(concepts))
        with gr.Row():
            prompt = gr.Textbox(
                label="Prompt", max_lines=1, scale=6, min_width=280, elem_id="prompt"
            )
            seed = gr.Textbox(
                str(GenerateSettings().seed), label="Seed", max_lines=1, min_width=120,
                elem_id="seed",
            )  # fmt: skip
            button = gr.Button("Generate both", variant="primary", scale=1, elem_id="generate")
        result = gr.HTML(PLACEHOLDER, elem_id="result", render=False)
        if examples:
            gr.Examples(
                [list(row) for row in examples], [prompt, seed], result, generate_both,
                run_on_click=True, cache_examples=False, api_visibility="private",
                label="Examples", example_labels=[prompt for prompt, _ in examples],
            )  # fmt: skip
        result.render()
        gr.on(
            [button.click, prompt.submit, seed.submit], generate_both, [prompt, seed], result,
            api_visibility="private",
        )  # fmt: skip
    return blocks


def _theme() -> Any:
    """Gradio's default theme with system fonts, and with text and button dark enough to read."""
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


def _parse_seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingError(SEED_RULE, field="seed", value=repr(text)) from None


def _examples(run: Run) -> list[tuple[str, str]]:
    """The first prompts and seeds of each prompt file of the run; none before `generate`."""
    originals = [image for image in run.images() if image.variant == "original"]
    files = dict.fromkeys(image.prompt_file for image in originals)
    return [
        (image.prompt, str(image.seed))
        for file in files
        for image in [i for i in originals if i.prompt_file == file][:EXAMPLES_PER_FILE]
    ]
