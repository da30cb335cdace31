"""How many tokens captions have, by the tokenizer of a CLIP; no weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ModelError, reason
from .presets import Models, fetch

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


@dataclass(frozen=True)
class Ruler:
    """A tokenizer, and how many tokens its CLIP has room for, start and end included."""

    tokenizer: CLIPTokenizer
    limit: int

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, start and end included."""
        return [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]

    def fits(self, text: str) -> bool:
        """Whether the model has room for all of `text`."""
        return self.lengths([text])[0] <= self.limit


def ruler_of(models: Models) -> Ruler:
    """The ruler of the first CLIP of `models`; from the hub, its small files alone are fetched.

    Raises ModelError where there is no CLIP with a tokenizer.
    """
    from transformers import CLIPConfig, CLIPTokenizer

    from .text_encoder import check_config

    folder = fetch("--clip", models.clips[0], ("*.json", "*.txt"), None)
    check_config(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError(f"--clip {folder}: has no tokenizer (tokenizer.json or vocab.json)")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        config = CLIPConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what a damaged file raises differs from release to release
        raise ModelError(f"--clip {folder}: tokenizer cannot be loaded ({reason(error)})") from None
    return Ruler(tokenizer, int(config.text_config.max_position_embeddings))
