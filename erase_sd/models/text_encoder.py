"""Text encoders on disk: loading them into CLIP, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checked import hash_folder
from ..errors import ModelError, reason
from ..files import hash_file
from ..reading import read_json
from .clip import Clip
from .pipeline_kinds import TextEncoder
from .source import check_config, fingerprint, foreign_files, variant_of
from .tensors import read_tensors

if TYPE_CHECKING:
    from transformers import CLIPTextModel

TOKEN_EMBEDDING = "text_model.embeddings.token_embedding.weight"  # noqa: S105


def load_weights(kind: Any, folder: Path) -> Any:
    """`kind.from_pretrained(folder)` from safetensors only, as float32.

    Raises ModelError for damaged or foreign weights: missing keys, a wrong shape, NaN.
    """
    check_config(folder)
    try:
        model, info = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True,
            variant=variant_of(folder),
        )  # fmt: skip
    except Exception as error:  # a damaged file raises different errors in different releases
        raise ModelError(f"{folder}: weights cannot be loaded ({reason(error)})") from None
    wrong = [*info["missing_keys"], *info.get("mismatched_keys", ())]
    if wrong:
        raise ModelError(f"{folder}: weights do not fit, e.g. {next(iter(wrong))}")
    model = model.float().eval()
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{folder}: weights are damaged, {name} is not finite")
    return model


def load_clip(folder: Path, encoder: TextEncoder | None = None) -> Clip:
    """A CLIP folder: `CLIPModel`, tokenizer, image processor; frozen and in evaluation mode.

    With a pipeline's `encoder`, the text tower has its weights, tokenizer and taps, so that what is
    unlearned is what the pipeline runs. Raises ModelError if their architectures differ.
    """
    from transformers import CLIPModel, CLIPTokenizer

    if encoder:
        check_fit(folder, encoder.folder)
    model = load_weights(CLIPModel, folder)
    model.requires_grad_(False)
    if encoder:
        weights = _text_weights(encoder.folder)
        _add_tokens(model, len(weights[TOKEN_EMBEDDING]))
        model.load_state_dict(weights, strict=False)
    words = encoder.tokenizer if encoder else folder
    with foreign_files(words):
        tokenizer = CLIPTokenizer.from_pretrained(words, local_files_only=True)
    return Clip(
        model=model,
        tokenizer=tokenizer,
        folder=folder,
        digest=fingerprint(folder),
        taps=encoder.taps if encoder else (),
    )


def _add_tokens(model: Any, vocabulary: int) -> None:
    """Rows for the tokens that textual inversion added to the pipeline's encoder."""
    config, old = model.config.text_config, model.text_model.get_input_embeddings()
    if vocabulary > config.vocab_size:
        model.text_model.set_input_embeddings(nn.Embedding(vocabulary, old.embedding_dim))
        model.requires_grad_(False)
        config.vocab_size = vocabulary


def check_fit(clip: Path, encoder: Path) -> None:
    """Raises ModelError unless `encoder` is CLIP's text tower, or the lower layers of it.

    It may have more tokens than CLIP, as after textual inversion.
    """
    check_config(clip)
    tower_config = read_json(clip / "config.json").get("text_config") or {}
    encoder_config = read_json(encoder / "config.json")
    if encoder_config.get("model_type") != "clip_text_model":
        raise ModelError(
            f"{encoder}: is a {encoder_config.get('model_type')}; needs a clip_text_model"
        )
    from transformers import CLIPTextConfig

    with foreign_files(clip):
        theirs = CLIPTextConfig(**tower_config)
    with foreign_files(encoder):
        ours = CLIPTextConfig(**encoder_config)
    for field in ("hidden_size", "intermediate_size", "num_attention_heads",
                  "max_position_embeddings", "vocab_size", "hidden_act"):  # fmt: skip
        added = field == "vocab_size" and ours.vocab_size > theirs.vocab_size
        if getattr(theirs, field) != getattr(ours, field) and not added:
            raise ModelError(
                f"not the CLIP of {encoder}, whose {field} is {getattr(ours, field)}, CLIP has "
                f"{getattr(theirs, field)}",
                field="clip", value=clip,
            )  # fmt: skip
    if ours.num_hidden_layers > theirs.num_hidden_layers:
        raise ModelError(
            f"not the CLIP of {encoder}, which has {ours.num_hidden_layers} layers, CLIP has "
            f"{theirs.num_hidden_layers}",
            field="clip", value=clip,
        )  # fmt: skip


def load_text_encoder(folder: Path) -> CLIPTextModel:
    """A pipeline's text encoder; SDXL's second one is a `CLIPTextModelWithProjection`."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    check_config(folder)
    kinds = {kind.__name__: kind for kind in (CLIPTextModel, CLIPTextModelWithProjection)}
    with foreign_files(folder):
        architectures = read_json(folder / "config.json").get("architectures") or ["CLIPTextModel"]
        if (architecture := str(architectures[0])) not in kinds:
            raise ModelError(f"{folder}: is a {architecture}; needs one of {', '.join(kinds)}")
    return load_weights(kinds[architecture], folder)


def _text_weights(folder: Path) -> dict[str, Tensor]:
    """A text encoder's weights without its projection, named as in `CLIPModel`."""
    parameters = load_text_encoder(folder).named_parameters()
    tower = {f"text_model.{n.removeprefix('text_model.')}": p.detach() for n, p in parameters}
    return {n: p for n, p in tower.items() if not n.startswith("text_model.text_projection")}


def with_weights(clip: Clip, encoder: Path, image_tower: Path | None = None) -> Clip:
    """A copy of `clip` with the text tower of the folder `encoder`, and with the image tower of a
    safetensors file, named as in `CLIPModel`; an image tower that stays is shared, not copied.

    Raises ModelError for weights that are damaged or do not fit.
    """
    tensors = _text_weights(encoder) | (read_tensors(image_tower) if image_tower else {})
    sha256 = [
        hash_folder(encoder, "*.safetensors"),
        hash_file(image_tower) if image_tower else None,
    ]
    return clip.with_weights(tensors, image_tower is not None, image_tower or encoder, sha256)


def text_encoder_with(weights: Mapping[str, Tensor], base: Path) -> CLIPTextModel:
    """The pipeline's text encoder in the folder `base`, with the text tower's `weights`.

    `weights` are named as in `CLIPModel`; layers above the encoder's last are ignored. Raises
    ModelError if the shapes differ.
    """
    encoder = load_text_encoder(base)
    own = encoder.state_dict()
    prefix = "text_model." if any(n.startswith("text_model.") for n in own) else ""
    tower = {}
    for clip_name, tensor in weights.items():
        part = clip_name.removeprefix("text_model.")
        layer = re.match(r"encoder\.layers\.(\d+)\.", part)
        if part == clip_name or (layer and int(layer[1]) >= encoder.config.num_hidden_layers):
            continue
        name = prefix + part
        if name not in own or own[name].shape != tensor.shape:
            shape = tuple(own[name].shape) if name in own else "missing"
            raise ModelError(
                f"{base}: not the text encoder of this CLIP: {name} is {shape}, CLIP has "
                f"{tuple(tensor.shape)}"
            )
        tower[name] = tensor.cpu()
    encoder.load_state_dict(tower, strict=False)
    return encoder
