"""Prompt files: one prompt a line, UTF-8; also from the captions of a dataset."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import DataError, SettingError
from ..files import write_text
from .concept import Concept
from .flickr30k import Captioned, Dataset
from .split import PARTS, Part, ranked, split


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, without blank lines and lines that begin with `#`.

    Raises DataError where the file is missing, not UTF-8, or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"--prompts {path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--prompts {path}: not UTF-8 (byte {error.start})") from None
    lines = [line.strip() for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise DataError(f"--prompts {path}: holds no prompt; needs one a line")
    return prompts


def from_data(
    data: Dataset,
    concepts: Sequence[Concept],
    out: Path,
    n: int,
    seed: int,
    fits: Callable[[str], bool],
    retain: bool = False,
    part: Part = "held-out",
) -> dict[Path, int]:
    """Writes at most `n` captions of a part that mention a concept, one an image, all different.

    They are the first that fit the model, in the order of a hash of seed and image; the split is
    unlearning's own. With `retain`, a `retain.txt` beside them gets captions of
    images that mention none. A line that begins with `#` says where they come from. Returns how
    many prompts each file got.

    Raises SettingError for `n` below 1, for a part that there is not, and for a file that is there
    and holds anything else, and DataError where there is no such caption.
    """
    if n < 1:
        raise SettingError(f"--n: needs at least 1, got {n}")
    if part not in PARTS:
        raise SettingError(f"--part {part}: unknown; needs one of {', '.join(PARTS)}")
    sides = split(data.items, concepts)
    wanted = [(out, sides.forget, concepts)]
    if retain:
        wanted.append((out.with_name("retain.txt"), sides.retain, ()))
    if len({path for path, _, _ in wanted}) < len(wanted):
        raise SettingError(f"--out {out}: is where --retain writes; needs another name")
    made: dict[Path, list[str]] = {}
    for path, side, mentioned in wanted:
        made[path] = _choose(ranked(side[part], seed), mentioned, n, fits)
        if not made[path]:
            raise DataError(f"--data {data.folder}: no {part} caption for {path.name} fits")
    source = {
        "folder": data.folder.resolve().name,
        "file": data.source.relative_to(data.folder).as_posix(),
        "digest": data.digest,
        "concepts": [asdict(concept) for concept in concepts],
        "seed": seed,
    }
    texts = {}
    for path, prompts in made.items():
        side_of = "forget" if path == out else "retain"
        header = json.dumps(source | {"part": f"{side_of}, {part}", "count": len(prompts)})
        texts[path] = "\n".join([f"# {header}", *prompts, ""])
        if path.exists() and path.read_bytes() != texts[path].encode():
            raise SettingError(f"--out {path}: is there and holds something else; needs a new name")
    for path, text in texts.items():
        write_text(path, text)
    return {path: len(prompts) for path, prompts in made.items()}


def _choose(
    items: Sequence[Captioned], concepts: Sequence[Concept], n: int, fits: Callable[[str], bool]
) -> list[str]:
    chosen: dict[str, str] = {}
    for item in items:
        for text in item.captions:
            if concepts and not any(concept.in_text(text) for concept in concepts):
                continue
            if text.lower() not in chosen and not text.startswith("#") and fits(text):
                chosen[text.lower()] = text
                break
        if len(chosen) == n:
            break
    return list(chosen.values())


def held_out(text: str) -> bool:
    """Whether a caption that a grammar makes is kept from training: one in ten, by its hash.

    So it can be a prompt whatever grammar made it: no other may use it either.
    """
    return zlib.crc32(text.lower().encode()) % 10 == 0
