"""Exports and foreign model files: numbers that a precision cannot hold, and files built to exhaust."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from blip_model import make_blip
from faulty import Faults
from safetensors.torch import load_file, save_file
from test_faults_caches import at_once
from test_faults_records import SHAPES, one_line
from test_open_vocabulary import unit, write
from test_unet_erasure import changed_unet
from test_unet_erasure import erase as erase_unet

from erase_sd.data.concept import Concept
from erase_sd.data.pickles import Inert
from erase_sd.detection.yolov5 import read_detector
from erase_sd.errors import EraseError, ModelError
from erase_sd.models import erased, lora_export, unpickle
from erase_sd.models.blip import load_blip
from erase_sd.models.checkpoint_keys import encoder_tensors
from erase_sd.models.export import export
from erase_sd.models.presets import Models
from erase_sd.models.tensors import in_precision
from erase_sd.run import Run
from erase_sd.run.records import Origin

pytestmark = pytest.mark.faults
FC1 = "text_model.encoder.layers.0.mlp.fc1.weight"
PREFIX = "cond_stage_model.transformer."


def erase(models: Models, concepts: list[Concept], factor: float) -> Run:
    """A run whose text encoder has one weight changed by about `factor`."""
    run, origin = Run(Path("runs/apple")), Origin(model=models.fingerprint(), clip=("0",), data="0")
    encoder = load_file(models.folder / "text_encoder" / "model.safetensors")
    weights = {
        n if n.startswith("text_model.") else f"text_model.{n}": t for n, t in encoder.items()
    }
    change = torch.randn(weights[FC1].shape, generator=torch.manual_seed(0))
    weights[FC1] = weights[FC1] + factor * change
    entry = {
        "concepts": [dataclasses.asdict(c) for c in concepts],
        "origin": dataclasses.asdict(origin),
    }
    with run.stage("unlearn", {"method": "ga"}, **entry):
        run.update(models=models.overrides)
        erased.save(
            run.erased, {"text_encoder": weights}, models, concepts=concepts,
            settings={"method": "ga"}, origin=origin, held_out={},
        )  # fmt: skip
    return run


def base_of(run: Run, path: Path, **others: torch.Tensor) -> Path:
    """A single-file checkpoint in half precision."""
    tensors = {
        PREFIX + n: torch.zeros_like(t).half() for n, t in encoder_tensors(run.erased).items()
    }
    save_file(tensors | others, path)
    return path


def test_weights_beyond_half_precision_are_refused_in_every_format(
    tiny: Models, faults: Faults
) -> None:
    run = erase(tiny, [Concept("apple")], 1e6)
    base = base_of(run, Path("base.safetensors"))
    for to, options in (
        ("diffusers", {"dtype": "fp16"}), ("comfyui", {}), ("a1111", {"base": base}),
    ):  # fmt: skip
        with faults("silent wrong results", f"export to {to}: 1e6 in half precision"):
            with pytest.raises(ModelError, match="not finite in float16"):
                export(run, tiny, to, **options)  # type: ignore[arg-type]
            assert not (run.folder / "export" / to).exists()
    shutil.rmtree(run.folder)
    weights = changed_unet(tiny.folder)
    weights["conv_in.weight"] = weights["conv_in.weight"] * 1e8
    unet = erase_unet(tiny, weights=weights)
    with faults("silent wrong results", "export to diffusers: a U-Net in half precision"):
        with pytest.raises(ModelError, match="not finite in float16"):
            export(unet, tiny, "diffusers", dtype="fp16")


def test_a_lora_beyond_half_precision_is_refused(
    tiny: Models, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = erase(tiny, [Concept("apple")], 0.1)
    change = lora_export._change

    def huge(*arguments: Any) -> Any:
        own, quality = change(*arguments)
        factors = {n: (1e6 * down, 1e6 * up) for n, (down, up) in own.factors.items()}
        return dataclasses.replace(own, factors=factors), quality

    export(run, tiny, "lora", dtype="fp16")
    monkeypatch.setattr(lora_export, "_change", huge)
    with faults("silent wrong results", "export to lora: 1e6 in half precision"):
        with pytest.raises(ModelError, match=r"fc1.weight, down is not finite in float16"):
            export(run, tiny, "lora", dtype="fp16")


@pytest.mark.parametrize("factor", [1e15, 1e25, 1e36])
def test_a_lora_of_states_that_are_not_finite_is_no_good_one(
    tiny: Models, factor: float, faults: Faults
) -> None:
    run = erase(tiny, [Concept("apple")], factor)
    with faults("silent wrong results", f"export to lora: weights of {factor:g}"):
        try:
            out = export(run, tiny, "lora")
        except EraseError as error:
            assert len(str(error).splitlines()) == 1
        else:
            quality = json.loads((out / "lora.json").read_text())["text_encoder"]
            assert quality["output_residual"] <= 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_that_is_not_finite_is_no_base(
    tiny: Models, value: float, faults: Faults
) -> None:
    run = erase(tiny, [Concept("apple")], 0.01)
    base = base_of(run, Path("base.safetensors"), other=torch.tensor([1.0, value]))
    with faults("silent wrong results", f"export to a1111: {value} in the base"):
        with pytest.raises(ModelError, match="other is not finite"):
            export(run, tiny, "a1111", base=base)


def test_float8_is_judged_too(faults: Faults) -> None:
    good = {"x": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), "n": torch.arange(3)}
    with faults("silent wrong results", "float8: finite"):
        assert in_precision(good, None, Path("x"))["x"].dtype == torch.float8_e4m3fn
    with faults("silent wrong results", "float8: NaN"), pytest.raises(ModelError):
        in_precision({"x": torch.tensor([math.nan]).to(torch.float8_e4m3fn)}, None, Path("x"))


@pytest.mark.skipif(os.name == "nt", reason="needs pipes of POSIX")
def test_a_base_that_is_a_pipe_is_not_waited_for(tiny: Models, faults: Faults) -> None:
    run = erase(tiny, [Concept("apple")], 0.01)
    os.mkfifo("base.safetensors")
    with (
        faults("not regular files", "export: a base that is a pipe"),
        at_once(Path("base.safetensors")),
    ):
        with pytest.raises(ModelError, match="not a regular file"):
            export(run, tiny, "a1111", base=Path("base.safetensors"))


@pytest.mark.parametrize("to", ["a1111", "lora"])
def test_files_are_named_after_many_concepts(tiny: Models, to: str, faults: Faults) -> None:
    run = erase(tiny, [Concept(f"{'very ' * 9}red apple {n}") for n in range(40)], 0.01)
    base = base_of(run, Path("base.safetensors")) if to == "a1111" else None
    with faults("odd names", f"export to {to}: forty long concepts"):
        out = export(run, tiny, to, base=base)  # type: ignore[arg-type]
        assert any("40-concepts" in path.name for path in out.iterdir())


def shared(levels: int, width: int) -> Inert:
    """A module each of whose levels holds the next several times: width ** levels modules in all."""
    module = record({})
    for _ in range(levels):
        module = record({str(n): module for n in range(width)})
    return module


def record(children: dict[str, Inert], tensors: dict[str, Inert] | None = None) -> Inert:
    module = Inert()
    module.state = {"_modules": children, "_parameters": tensors or {}, "_buffers": {}}
    return module


def test_modules_that_share_their_children_are_not_walked_for_ever(faults: Faults) -> None:
    with faults("malicious files", "detector: 2 to the 50 modules"):
        with pytest.raises(ValueError, match="modules"):
            unpickle.tensors(shared(50, 2))
    loop = record({})
    loop.state["_modules"]["own"] = loop
    with faults("malicious files", "detector: a module within itself"):
        with pytest.raises(ValueError, match="modules"):
            unpickle.tensors(loop)


def test_tensors_that_share_a_storage_do_not_fill_the_memory(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpickle, "MAX_NUMBERS", 10_000)
    kind = type("Inert", (Inert,), {"__slots__": (), "name": "torch._utils._rebuild_tensor_v2"})
    stored = kind(Inert(torch.float32, bytes(4000)), 0, (1000,), (1,))
    with faults("malicious files", "detector: a thousand tensors in one storage"):
        with pytest.raises(ValueError, match="numbers"):
            unpickle.tensors(record({}, {str(n): stored for n in range(1000)}))
    few = unpickle.tensors(record({}, {str(n): stored for n in range(9)}))
    assert len(few) == 9


def test_a_detector_within_itself_is_one_line(tmp_path: Path, faults: Faults) -> None:
    module = torch.nn.Module()
    child: Any = torch.nn.Module()
    for _ in range(40):
        outer = torch.nn.Module()
        outer.a, outer.b, child = child, child, outer
    module.a = child
    module.names = ["apple"]
    torch.save({"model": module, "ema": None}, tmp_path / "x.pt")
    with faults("malicious files", "detector: a .pt of 2 to the 40 modules"):
        with pytest.raises(ModelError, match="detector"):
            read_detector(tmp_path / "x.pt")


EMBEDDINGS: dict[str, Any] = {
    "text": "x", "a list": [1.0], "a number": 3, "NaN": unit(2) * math.nan,
    "integers": torch.ones(1, 2, 512, dtype=torch.int64), "one dimension": torch.ones(2),
    "no rows": torch.ones(1, 0, 512), "another width": torch.nn.functional.normalize(
        torch.ones(1, 2, 9), dim=-1), "a module": collections.OrderedDict(a=1),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", EMBEDDINGS)
def test_embeddings_of_an_open_vocabulary_that_are_none(
    what: str, tmp_path: Path, faults: Faults
) -> None:
    from erase_sd.detection.worker import Detector

    write(tmp_path / "x.pt", "yolov8n-world.yaml", txt_feats=EMBEDDINGS[what])
    with faults("malicious files", f"open vocabulary: {what}"):
        with pytest.raises(EraseError) as caught:
            Detector(tmp_path / "x.pt", ["apple"])
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_every_reader_of_a_blip_survives_every_shape(
    name: str, tmp_path: Path, faults: Faults
) -> None:
    folder = make_blip(tmp_path)
    valid = (folder / name).read_bytes()
    for text in SHAPES:
        (folder / name).write_bytes(text.encode())

        def load() -> None:
            blip = load_blip(folder)
            blip.encode_texts(blip.tokens(["an apple"]))

        with faults("JSON of the wrong shape: models", f"BLIP {name}: {text[:30]!r}"):
            one_line(load)
    (folder / name).write_bytes(valid)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_blip_that_is_not_finite_is_refused(value: float, tmp_path: Path, faults: Faults) -> None:
    folder = make_blip(tmp_path)
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    next(t for n, t in tensors.items() if n.endswith("weight")).view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with faults("silent wrong results", f"{value} in a BLIP"):
        with pytest.raises(ModelError, match="not finite"):
            load_blip(folder)
