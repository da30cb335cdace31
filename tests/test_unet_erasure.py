"""An erasure of the U-Net, or of both: its folder, its images, its exports, and what refuses it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models import sdxl as sdxl
from test_single_file import checkpoint_of
from test_single_file import own as own
from torch import Tensor

import erase_sd
from erase_sd.data.concept import Concept
from erase_sd.errors import EraseError, ModelError, RunError, SettingError
from erase_sd.evaluation.stage import evaluate
from erase_sd.files import write_text
from erase_sd.generation import batch
from erase_sd.generation.settings import GenerateSettings
from erase_sd.generation.stage import generate
from erase_sd.models import erased, pipeline
from erase_sd.models.export import export
from erase_sd.models.model_card import card
from erase_sd.models.presets import Models
from erase_sd.models.unet import load_unet, single_file_unet
from erase_sd.report import write
from erase_sd.run import Run
from erase_sd.run.records import Origin
from erase_sd.scoring.stage import score
from erase_sd.unlearning.settings import UnlearnSettings
from erase_sd.unlearning.stage import unlearn

APPLE = Concept("apple")
CONV = "conv_in.weight"
UCE = UnlearnSettings(
    concepts=(APPLE,), method="uce", hyperparameters={"forget_captions": 8, "retain_captions": 8}
)


def changed_unet(folder: Path) -> dict[str, Tensor]:
    """A U-Net's tensors, one of them changed."""
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return tensors | {CONV: 2 * tensors[CONV]}


def erase(models: Models, name: str = "apple", *, both: bool = False, weights: Any = None) -> Run:
    """A run whose U-Net, and with `both` also its text encoder, differs from the original's."""
    run = Run(Path("runs") / name)
    origin = Origin(model=models.fingerprint(), clip=("0",), data="0")
    modules = {"unet": weights or changed_unet(models.folder)}
    if both:
        files = sorted(models.folder.glob("text_encoder*/model.safetensors"))
        modules = {
            file.parent.name: {n: 1.5 * t for n, t in load_file(file).items()} for file in files
        } | modules
    entry = {"concepts": [dataclasses.asdict(APPLE)], "origin": dataclasses.asdict(origin)}
    with run.stage("unlearn", {"method": "uce"}, **entry):
        run.update(models=models.overrides)
        erased.save(
            run.erased, modules, models, concepts=[APPLE], settings={"method": "uce"},
            origin=origin, held_out={},
        )  # fmt: skip
    return run


def images_of(models: Models, run: Run) -> dict[str, list[str]]:
    """Hashes of the images that each variant generates of one prompt."""
    write_text(Path("apple.txt"), "an apple\n")
    records = generate([Path("apple.txt")], GenerateSettings(steps=2), models, run)
    return {
        variant: [record.sha256 for record in records if record.variant == variant]
        for variant in ("original", "erased")
    }


@pytest.mark.parametrize("both", [False, True])
def test_the_folder_holds_what_changed_and_loads_to_it(tiny: Models, both: bool) -> None:
    run = erase(tiny, both=both)
    names = ["text_encoder", "unet"] if both else ["unet"]
    assert sorted(path.name for path in run.erased.iterdir()) == sorted([*names, "erase.json"])
    assert list(erased.check(run.erased).weights_sha256) == names
    loaded: Any = erase_sd.load("apple", "unet")
    assert torch.equal(loaded.state_dict()[CONV], changed_unet(tiny.folder)[CONV])
    assert list(erased.load_all(run.folder)) == names
    if not both:
        with pytest.raises(RunError, match="has no text_encoder; it has unet"):
            erase_sd.load("apple")


def test_a_damaged_unet_is_one_line(tiny: Models) -> None:
    file = erase(tiny).erased / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match="damaged, not the weights that were saved"):
        erase_sd.load("apple", "unet")


def test_weights_of_a_unet_of_another_shape_are_refused_and_nothing_is_written(
    tiny: Models,
) -> None:
    for weights, message in (
        (
            {CONV: torch.zeros(8, 4, 3, 3)},
            r"unet: conv_in.weight is \(8, 4, 3, 3\), .* own is \(16",
        ),
        ({"conv_up.weight": torch.zeros(1)}, "unet: the pipeline's own has no conv_up.weight"),
    ):
        with pytest.raises(ModelError, match=message):
            erase(tiny, weights=weights)
        assert not Run(Path("runs/apple")).erased.exists()


def test_another_unet_is_not_swapped_in(tiny: Models, own: Any) -> None:
    pipe = pipeline.open_pipeline(tiny.folder, "fp32")
    before = pipe.unet
    with pytest.raises(ModelError, match=r"unet: .* the pipeline's own"):
        pipeline.swap(pipe, {"unet": own.unet})
    with pytest.raises(ModelError, match="unet: "):
        erase(tiny)
        erase_sd.apply(own, "apple")
    assert pipe.unet is before


def test_images_are_those_of_the_erased_unet_and_the_originals_are_shared_with_other_runs(
    tiny: Models, erased_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_encoder = images_of(tiny, erased_run)
    generated: list[int] = []
    real = batch.generate_batch
    monkeypatch.setattr(batch, "generate_batch", lambda *a: generated.append(len(a[1])) or real(*a))
    by_unet = images_of(tiny, erase(tiny, "other"))
    assert generated == [1]  # the erased model's
    assert by_unet["original"] == by_encoder["original"]
    assert by_unet["erased"] not in (by_unet["original"], by_encoder["erased"])


@pytest.mark.parametrize("both", [False, True])
def test_erased_modules_are_applied_without_a_warning(
    tiny: Models, both: bool, caplog: pytest.LogCaptureFixture
) -> None:
    from diffusers import StableDiffusionPipeline

    run = erase(tiny, both=both)
    pipe = StableDiffusionPipeline.from_pretrained(tiny.model)
    erase_sd.apply(pipe, "apple")
    for name, module in erased.load_all(run.folder).items():
        ours, theirs = module.state_dict(), getattr(pipe, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not [record for record in caplog.records if record.name == "erase_sd"]


def test_a_unet_with_an_ip_adapter_takes_the_erased_weights(tiny: Models) -> None:
    run = erase(tiny)
    unet: Any = load_unet(tiny.folder / "unet")
    width = unet.config.cross_attention_dim
    layers = [name for name in unet.attn_processors if "attn2" in name]
    sizes = {n: unet.get_submodule(n.removesuffix(".processor")).inner_dim for n in layers}
    adapter = {
        "image_proj": {
            "proj.weight": torch.ones(4 * width, 8), "proj.bias": torch.ones(4 * width),
            "norm.weight": torch.ones(width), "norm.bias": torch.ones(width),
        },
        "ip_adapter": {
            f"{2 * n + 1}.{which}.weight": torch.ones(sizes[layer], width)
            for n, layer in enumerate(layers)
            for which in ("to_k_ip", "to_v_ip")
        },
    }  # fmt: skip
    unet._load_ip_adapter_weights([adapter])
    erase_sd.apply(SimpleNamespace(unet=unet), "apple")
    changed = erased.load_all(run.folder)["unet"].state_dict()
    own = unet.state_dict()
    assert len(own) > len(changed) and all(torch.equal(own[n], changed[n]) for n in changed)


@pytest.mark.parametrize(
    ("deeper", "message"),
    [
        (
            {"transformer_layers_per_block": 2},
            r"no down_blocks.1.attentions.0.transformer_blocks.1.",
        ),
        ({"transformer_layers_per_block": [1, 2]}, r"no down_blocks.1.attentions.0.transformer_bl"),
        ({"mid_block_type": None}, r"the pipeline's UNet2DConditionModel has no mid_block."),
    ],
)
def test_a_unet_of_another_depth_stays_as_it_was(
    tiny: Models, deeper: dict[str, Any], message: str
) -> None:
    from diffusers import UNet2DConditionModel

    erase(tiny)
    config = load_unet(tiny.folder / "unet").config
    unet: Any = UNet2DConditionModel.from_config(config, **deeper)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with pytest.raises(ModelError, match=rf"^unet: .*{message}"):
        erase_sd.apply(SimpleNamespace(unet=unet), "apple")
    assert all(torch.equal(before[n], t) for n, t in unet.state_dict().items())


def test_uce_is_unlearned_generated_scored_evaluated_and_reported(tiny: Models) -> None:
    run = Run(Path("runs/apple"))
    unlearn(UCE, tiny, run)
    assert run.unlearned().encoders["unet"].stopped == "solved"
    [record] = run.training("unet")
    assert record.residual_concept_similarity < 1
    before = load_unet(tiny.folder / "unet").state_dict()
    after = load_unet(run.erased / "unet").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for n in changed)
    images_of(tiny, run)
    score(run, tiny)
    evaluation = evaluate(run, tiny)
    drifts = [row.value for row in evaluation.measurements if row.measure.startswith("drift")]
    assert drifts and max(drifts) < 1e-6  # the text encoder is the original's
    assert "train_unet.jsonl" in write(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("both", [False, True])
def test_the_model_card_says_what_changed_and_loads_it(tiny: Models, both: bool) -> None:
    text = card(erase(tiny, both=both).erasure(), tiny, "")
    assert f"# {'Text encoder and U-Net' if both else 'U-Net'} without apple" in text
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")
    assert 'pipe("apple")' in code
    assert "from diffusers import StableDiffusionPipeline, UNet2DConditionModel" in code
    assert 'pipe.unet = UNet2DConditionModel.from_pretrained(".", subfolder="unet")' in code


def test_a_format_of_text_encoders_refuses_a_unet(tiny: Models) -> None:
    run = erase(tiny, both=True)
    with pytest.raises(SettingError, match="this run changed the U-Net; needs lora, dif") as caught:
        export(run, tiny, "comfyui")
    assert "\n" not in str(caught.value) and not (run.folder / "export" / "comfyui").exists()


def test_the_export_loads_in_plain_diffusers(tiny: Models) -> None:
    out = export(erase(tiny), tiny, "diffusers")
    code = (
        "import sys, torch\n"
        "from diffusers import StableDiffusionPipeline, UNet2DConditionModel\n"
        "unet = UNet2DConditionModel.from_pretrained(sys.argv[1], subfolder='unet')\n"
        "def image(**parts):\n"
        "    pipe = StableDiffusionPipeline.from_pretrained(sys.argv[2], **parts)\n"
        "    g = torch.Generator().manual_seed(0)\n"
        "    return pipe('an apple', num_inference_steps=2, generator=g, output_type='np').images[0]\n"
        "a, b = image(unet=unet), image()\n"
        "assert a.shape == b.shape and abs(a - b).max() > 0\n"
        "assert not any(name.startswith('erase_sd') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(out), str(tiny.model)], check=True)
    assert "_name_or_path" not in (out / "unet" / "config.json").read_text()
    half = export(erase(tiny), tiny, "diffusers", Path("half"), dtype="fp16")
    assert "dtype" not in (half / "unet" / "config.json").read_text()  # diffusers would warn
    tensors = load_file(half / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_a_single_file_holds_all_that_was_erased_and_its_unet_loads_in_plain_diffusers(
    tiny: Models, own: Any, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    own.save_pretrained(tmp_path / "sd")
    again = {"model_ema.decay": torch.ones(1), "model_ema.diffusion_modelout0weight": torch.ones(1)}
    save_file(checkpoint_of(own) | again, tmp_path / "base.safetensors")
    models = dataclasses.replace(tiny, model=tmp_path / "sd")
    run = erase(models, both=True)
    out = export(run, models, "a1111", base=tmp_path / "base.safetensors")
    pipe = StableDiffusionPipeline.from_single_file(
        str(out / "base-without-apple.safetensors"), config=str(tmp_path / "sd"),
        local_files_only=True, safety_checker=None,
    )  # fmt: skip
    wanted = changed_unet(tmp_path / "sd")
    assert all(torch.equal(wanted[name], t) for name, t in pipe.unet.state_dict().items())
    before, after = (load_file(path) for path in (
        tmp_path / "base.safetensors", out / "base-without-apple.safetensors"))  # fmt: skip
    factors = {"model.diffusion_model.input_blocks.0.0.weight": 2.0}
    for name in before:
        if name.startswith(("cond_stage_model.", "conditioner.")) and "text_projection" not in name:
            factors[name] = 1.5
    assert len(factors) > 25 and before.keys() == after.keys() | again.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, factors.get(name, 1.0) * before[name]), name


def test_a_single_file_of_another_unet_is_one_line(tiny: Models, own: Any, tmp_path: Path) -> None:
    save_file(checkpoint_of(own), tmp_path / "base.safetensors")
    run = erase(tiny)
    with pytest.raises(EraseError, match="base") as caught:
        export(run, tiny, "a1111", base=tmp_path / "base.safetensors")
    assert "\n" not in str(caught.value) and not (run.folder / "export" / "a1111").exists()


@pytest.mark.parametrize(
    "config",
    [{"addition_embed_type": "text_time"}, {"layers_per_block": [1, 2]}],
    ids=["XL", "uneven"],
)
def test_a_single_file_that_diffusers_cannot_convert_is_one_line(config: dict[str, Any]) -> None:
    names = [f"model.diffusion_model.input_blocks.{n}.0.in_layers.0.weight" for n in range(4)]
    config = {"layers_per_block": 2} | config
    with pytest.raises(ModelError, match="base x: has no unet of this kind of model"):
        single_file_unet(names, {CONV: torch.ones(1)}, config, Path("x"))


def test_the_image_tower_is_not_trained_with_a_unet() -> None:
    with pytest.raises(SettingError, match="uce unlearns the U-Net and neither tower"):
        dataclasses.replace(UCE, towers="both")


@pytest.mark.parametrize(
    ("method", "hyperparameters"),
    [
        ("rece", {"forget_captions": 8, "retain_captions": 8}),
        ("esd", {"captions": 4, "rows": 2, "sampling_steps": 2}),
        ("forget-me-not", {"images": 2, "rows": 2}),
    ],
)
def test_a_unet_that_reads_two_text_encoders_is_unlearned_as_well(
    sdxl: Models, method: Any, hyperparameters: dict[str, Any]
) -> None:
    steps = {} if method == "rece" else {"steps": 2, "validate_every": 2}
    settings = UnlearnSettings(
        concepts=(APPLE,), method=method, hyperparameters=hyperparameters, forget_batch=4,
        retain_batch=4, **steps,
    )  # fmt: skip
    run = Run(Path("runs/apple"))
    unlearn(settings, sdxl, run)
    assert list(run.erasure().weights_sha256) == ["unet"]
    by_variant = images_of(sdxl, run)
    assert by_variant["original"] != by_variant["erased"]


@pytest.mark.parametrize("method", ["few-shot", "advunlearn"])
def test_methods_that_train_one_text_encoder_by_the_unet_refuse_two(
    sdxl: Models, method: Any
) -> None:
    run = Run(Path("runs/apple"))
    settings = UnlearnSettings(concepts=(APPLE,), method=method)
    with pytest.raises(ModelError, match="reads two text encoders; this method needs one") as error:
        unlearn(settings, sdxl, run)
    assert "\n" not in str(error.value) and not run.erased.exists() and not run.exists


def test_figures_of_text_encoders_refuse_an_erasure_of_the_unet_alone(
    tiny: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    from erase_sd.evaluation.explain import stage

    monkeypatch.setattr(stage, "concept_sets_of", lambda *_: (None, None))
    with pytest.raises(RunError, match="changed the U-Net alone; the figures show text encoders"):
        stage.explain(erase(tiny), tiny)
