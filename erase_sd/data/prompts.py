"""Prompt files: one prompt per line, UTF-8; read, found by concept, or written from a dataset."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import DataError, SettingError
from ..files import digest, write_text
from ..runtime import log
from .concept import Concept, slug
from .dataset import CaptionedImage, Dataset
from .kinds import CONCEPT_KINDS, kind_files_beside, names_concept, parse_prompt_file_name
from .pair import CaptionPair, ConceptSet, Split
from .split import hash_order, split_by_concept

PROMPTS_FOLDER = Path("prompts")
"""Where prompt files are written and found, in the working directory."""
STANDARD_INPUT = (Path("-"), Path("/dev/stdin"))
MAX_PROMPT_BYTES = 16_000_000
_PACKAGE = Path(__file__).parents[1]


def find_prompts(concept: str) -> Path:
    """The prompt file of a concept: the working directory's, else the one that comes with erase-sd.

    Raises DataError if there is neither.
    """
    own = PROMPTS_FOLDER / f"{slug(concept)}.txt"
    if (path := locate_prompts(own)).is_file():
        return path
    raise DataError(
        "no such file; write it, one prompt per line, or name another", field="prompts", value=own
    )


def locate_prompts(path: Path) -> Path:
    """`path`, or the file that comes with erase-sd if `prompts/<name>` is not in the working directory."""
    if path.parent == PROMPTS_FOLDER:
        for folder in (Path(), _PACKAGE, _PACKAGE.parent):  # the last one in a checkout
            if (folder / path).is_file():
                return folder / path
    return path


def with_files_beside(files: Sequence[Path], kinds: bool) -> list[Path]:
    """Prompt files, then the `retain.txt` beside the first and, with `kinds`, the kind files beside
    each, unless they are among the files. SettingError if there is no kind file."""
    retain = files[0].with_name("retain.txt")
    beside = [retain] if files[0] not in STANDARD_INPUT and retain.is_file() else []
    beside += kind_files_beside(files) if kinds else []
    named = {file.resolve() for file in files}
    return [*files, *(file for file in beside if file.resolve() not in named)]


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file, read once, and the hash of the bytes that were read."""

    path: Path
    sha256: str
    texts: tuple[str, ...]

    @property
    def stem(self) -> str:
        """The file's name without `.txt`; `stdin` for standard input."""
        return prompts_name(self.path)

    def pairs(self, concepts: Sequence[Concept]) -> list[CaptionPair]:
        """The prompts with what they mention; kind and concept are in the file's name."""
        return [_pair(text, self.stem, concepts) for text in self.texts]


def prompts_name(path: Path) -> str:
    """Name of a prompt file without `.txt`; `stdin` for standard input."""
    return "stdin" if path in STANDARD_INPUT else path.stem


def read_prompt_file(path: Path) -> PromptFile:
    """The prompts of a file, or of standard input, without blank lines and lines that begin with `#`.

    Raises DataError if the file is missing, not a regular file, not UTF-8, or holds no prompts or too
    many.
    """

    def error(rule: str) -> DataError:
        return DataError(rule, field="prompts", value=path)

    if path in STANDARD_INPUT:
        data = _standard_input()
    elif not path.exists() or path.is_dir():
        raise error("no such file")
    elif not path.is_file():
        raise error("not a regular file; - reads standard input")
    else:
        with path.open("rb") as file:
            data = file.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise error(f"holds more than {MAX_PROMPT_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise error(f"not UTF-8 (byte {failure.start})") from None
    # `splitlines` would also split a prompt at U+2028 or a form feed.
    lines = [line.strip() for line in re.split(r"\r\n?|\n", text)]
    texts = tuple(line for line in lines if line and not line.startswith("#"))
    if not texts:
        raise error("holds no prompt; needs at least one, each on its own line")
    if "\0" in text:
        raise error("holds a NUL character")
    return PromptFile(path, digest(data), texts)


@functools.cache
def _standard_input() -> bytes:
    """Everything on standard input, which can be read only once; a byte too many if it is too long."""
    return sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1) if sys.stdin else b""


def warn_of_names(files: Sequence[PromptFile], concepts: Sequence[Concept]) -> None:
    """Logs how many prompts of a name-free file name its concept: it would be rated as a description."""
    for file in files:
        file_concept, kind = parse_prompt_file_name(file.stem)
        name = next((c.name for c in concepts if names_concept(file_concept, c.name)), None)
        if kind == "name-free" and name and (n := sum(map(Concept(name).in_text, file.texts))):
            log.warning(
                "%s: %d of %d prompts name %s; name-free prompts only describe it",
                file.path, n, len(file.texts), name,
            )  # fmt: skip


def _pair(prompt: str, stem: str, concepts: Sequence[Concept]) -> CaptionPair:
    file_concept, kind = parse_prompt_file_name(stem)
    mentions = tuple(c.name for c in concepts if c.in_text(prompt))
    of = (c.name for c in concepts if names_concept(file_concept, c.name))
    shows_concept = kind in CONCEPT_KINDS or (kind == "plain" and bool(mentions))
    return CaptionPair(
        caption=prompt,
        image=None,
        mentions=mentions,
        set="forget" if shows_concept else "retain",
        split="held-out",
        kind=kind,
        concept=None if kind == "plain" else next(of, file_concept),
    )


def write_prompts(
    data: Dataset,
    concepts: Sequence[Concept],
    out: Path,
    n: int,
    seed: int,
    fits: Callable[[str], bool],
    retain: bool = False,
    split: Split = "held-out",
) -> dict[Path, int]:
    """Writes up to `n` captions of one split that mention a concept; returns the number per file.

    At most one caption per image, no two alike, each within the context length (`fits`), images in
    the order of a hash of seed and name. With `retain`, a `retain.txt` beside `out` gets captions of
    images without a concept. The first line, a comment, records the source.

    Raises SettingError for an existing file with other content, DataError if no caption qualifies.
    """
    retain_file = out.with_name("retain.txt")
    if n < 1:
        raise SettingError(f"needs at least 1, got {n}", field="n")
    if retain and retain_file == out:
        raise SettingError("is for the retain prompts; needs another name", field="out", value=out)
    sets = split_by_concept(data.items, concepts)
    wanted: dict[Path, tuple[ConceptSet, Sequence[Concept]]] = {out: ("forget", concepts)}
    if retain:
        wanted[retain_file] = ("retain", ())
    chosen: dict[Path, list[str]] = {}
    texts: dict[Path, str] = {}
    for path, (concept_set, mentioned) in wanted.items():
        images = hash_order(sets.images(concept_set, split), seed)
        chosen[path] = _choose(images, mentioned, n, fits)
        if not chosen[path]:
            rule = f"no {split} caption for {path.name} is within the context length"
            raise DataError(rule, field="data", value=data.folder)
        source = _source(data, concepts) | {"seed": seed, "set": concept_set, "split": split}
        header = json.dumps(source | {"count": len(chosen[path])})
        texts[path] = "\n".join([f"# {header}", *chosen[path], ""])
    _write_new(texts)
    return {path: len(prompts) for path, prompts in chosen.items()}


def _source(data: Dataset, concepts: Sequence[Concept]) -> dict[str, object]:
    """Where captions come from; no absolute path, so that the file can be shared."""
    return {
        "folder": data.folder.resolve().name,
        "file": data.source.relative_to(data.folder).as_posix(),
        "digest": data.digest,
        "concepts": [asdict(concept) for concept in concepts],
    }


def _choose(
    images: Sequence[CaptionedImage],
    concepts: Sequence[Concept],
    n: int,
    fits: Callable[[str], bool],
) -> list[str]:
    """The first suitable caption of each image, up to `n`; it mentions a concept if there are any."""
    chosen: dict[str, str] = {}
    for item in images:
        for text in item.captions:
            if concepts and not any(concept.in_text(text) for concept in concepts):
                continue
            if text.lower() not in chosen and not text.startswith("#") and fits(text):
                chosen[text.lower()] = text
                break
        if len(chosen) == n:
            break
    return list(chosen.values())


def _write_new(texts: dict[Path, str]) -> None:
    """Writes all files, or none if one exists with other content."""
    for path, text in texts.items():
        if path.exists() and (not path.is_file() or path.read_bytes() != text.encode()):
            rule = "exists with other content; needs a new name"
            raise SettingError(rule, field="out", value=path)
    for path, text in texts.items():
        write_text(path, text)
