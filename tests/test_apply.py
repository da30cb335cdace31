"""An erasure in an open pipeline: any precision, class and device, beside LoRAs and added tokens."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_models import sdxl as sdxl
from test_unet_erasure import erase
from torch import Tensor

import erase_sd
from erase_sd.errors import ModelError
from erase_sd.models.presets import Models
from erase_sd.run import Run

IDS = torch.tensor([[1, 2, 3, 4, 5]])


def open_tiny(models: Models, dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(models.model, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def hidden_states(encoder: Any) -> Tensor:
    with torch.no_grad():
        states: Tensor = encoder(IDS.to(encoder.device)).last_hidden_state
    return states.float()


def with_lora(encoder: Any) -> None:
    """Adds a LoRA whose update is not zero."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "fc1"]), encoder)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_pipeline_keeps_its_precision_and_generates_with_the_erased_encoder(
    tiny: Models, erased_run: Run, dtype: torch.dtype
) -> None:
    pipe = open_tiny(tiny, dtype)
    before = hidden_states(pipe.text_encoder)
    assert erase_sd.apply(pipe, "apple") is pipe
    assert pipe.text_encoder.dtype == dtype
    erased = hidden_states(erase_sd.load("apple", dtype=dtype))
    assert torch.equal(hidden_states(pipe.text_encoder), erased)
    assert not torch.allclose(before, erased, atol=0.1)
    images = pipe("an apple", num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 16 * pipe.vae_scale_factor, 16 * pipe.vae_scale_factor, 3)


def test_a_half_precision_pipeline_that_cannot_hold_the_weights_stays_as_it_was(
    tiny: Models, huge_run: Run
) -> None:
    pipe = open_tiny(tiny, torch.float16)
    before = hidden_states(pipe.text_encoder)
    with pytest.raises(ModelError, match=r"text_encoder: .*norm.bias is not finite in float16"):
        erase_sd.apply(pipe, "apple")
    assert torch.equal(hidden_states(pipe.text_encoder), before)
    erase_sd.apply(open_tiny(tiny, torch.bfloat16), "apple")


def test_an_encoder_loaded_in_half_precision_fits_a_half_precision_pipeline(
    tiny: Models, erased_run: Run
) -> None:
    pipe = open_tiny(tiny, torch.float16)
    pipe.text_encoder = erase_sd.load("apple", dtype=torch.float16, device="cpu")
    assert len(pipe("an apple", num_inference_steps=1, output_type="np").images) == 1


def test_a_lora_may_be_loaded_before_or_after_the_erasure(tiny: Models, erased_run: Run) -> None:
    first, second = open_tiny(tiny), open_tiny(tiny)
    with_lora(first.text_encoder)
    erase_sd.apply(first, "apple")
    erase_sd.apply(second, "apple")
    without = hidden_states(second.text_encoder)
    with_lora(second.text_encoder)
    for (name, a), (other, b) in zip(
        first.text_encoder.named_parameters(), second.text_encoder.named_parameters(), strict=True
    ):
        if "lora_A" in name:  # initialized at random
            with torch.no_grad():
                b.copy_(a)
        assert name == other
    assert torch.equal(hidden_states(first.text_encoder), hidden_states(second.text_encoder))
    assert not torch.equal(hidden_states(first.text_encoder), without)


def test_a_fused_lora_is_unfused_before_the_erasure(tiny: Models, erased_run: Run) -> None:
    pipe = open_tiny(tiny)
    with_lora(pipe.text_encoder)
    layers = [layer for layer in pipe.text_encoder.modules() if hasattr(layer, "merged")]
    assert layers
    for layer in layers:  # as `pipe.fuse_lora()` does
        layer.merge()
    fused = hidden_states(pipe.text_encoder)
    with pytest.raises(ModelError, match="text_encoder: a LoRA is fused into it; unfuse it, apply"):
        erase_sd.apply(pipe, "apple")
    assert torch.equal(hidden_states(pipe.text_encoder), fused)
    for layer in layers:
        layer.unmerge()
    erase_sd.apply(pipe, "apple")
    later = open_tiny(tiny)
    erase_sd.apply(later, "apple")
    with_lora(later.text_encoder)
    assert torch.allclose(
        hidden_states(pipe.text_encoder), hidden_states(later.text_encoder), atol=1e-5
    )


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "one layer"])
def test_a_compiled_encoder_takes_the_erasure(tiny: Models, erased_run: Run, whole: bool) -> None:
    pipe = open_tiny(tiny)
    if whole:
        pipe.text_encoder = torch.compile(pipe.text_encoder, backend="eager")
    else:
        layers = layers_of(pipe)
        layers[0] = torch.compile(layers[0], backend="eager")
    before = hidden_states(pipe.text_encoder)
    erase_sd.apply(pipe, "apple")
    assert not torch.allclose(hidden_states(pipe.text_encoder), before, atol=0.1)
    erased = hidden_states(erase_sd.load("apple"))
    assert torch.allclose(hidden_states(pipe.text_encoder), erased, atol=1e-5)


def test_an_adapter_of_another_kind_is_no_further_layer(tiny: Models, erased_run: Run) -> None:
    from peft import LoHaConfig, inject_adapter_in_model

    pipe = open_tiny(tiny)
    inject_adapter_in_model(LoHaConfig(r=2, target_modules=["q_proj"]), pipe.text_encoder)
    erase_sd.apply(pipe, "apple")  # the adapter's update is zero at first
    assert torch.equal(hidden_states(pipe.text_encoder), hidden_states(erase_sd.load("apple")))


@pytest.mark.parametrize("erased_first", [True, False])
def test_a_textual_inversion_keeps_its_rows_in_both_orders(
    tiny: Models, erased_run: Run, erased_first: bool
) -> None:
    pipe = open_tiny(tiny)
    vector = torch.arange(32.0)
    if erased_first:
        erase_sd.apply(pipe, "apple")
    pipe.load_textual_inversion({"<toy>": vector[None]})
    if not erased_first:
        erase_sd.apply(pipe, "apple")
    number = pipe.tokenizer.convert_tokens_to_ids("<toy>")
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[number], vector)
    assert torch.equal(hidden_states(pipe.text_encoder), hidden_states(erase_sd.load("apple")))


def test_an_encoder_that_the_run_did_not_erase_is_named(
    tiny: Models, erased_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = open_tiny(tiny)
    pipe.text_encoder_2 = pipe.text_encoder_3 = pipe.text_encoder
    with caplog.at_level(logging.WARNING, "erase_sd"):
        erase_sd.apply(pipe, "apple")
    ours = [r.getMessage() for r in caplog.records if r.name == "erase_sd"]
    assert ours == [
        f"text_encoder_{n} (CLIPTextModel) is not erased: it still knows the concept"
        for n in (2, 3)
    ]


def test_a_second_erasure_says_that_it_undoes_the_first(
    tiny: Models, erased_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(erased_run.folder, erased_run.folder.with_name("chair"))
    record = erased_run.folder.with_name("chair") / "erased" / "erase.json"
    record.write_text(record.read_text().replace('"name": "apple"', '"name": "chair"'))
    pipe = open_tiny(tiny)
    with caplog.at_level(logging.WARNING, "erase_sd"):
        for run in ("apple", "apple", "chair"):
            erase_sd.apply(pipe, run)
    ours = [r.getMessage() for r in caplog.records if r.name == "erase_sd"]
    assert ours == [
        "text_encoder knows apple again, because another run overwrites its erasure; erase all "
        "concepts in one run"
    ]


def test_an_encoder_without_the_projection_of_the_erased_one_takes_the_rest(sdxl: Models) -> None:
    from transformers import CLIPTextModel

    erase(sdxl, both=True)
    erased: Any = erase_sd.load("apple", "text_encoder_2")
    pipe = SimpleNamespace(
        text_encoder=erase_sd.load("apple"), unet=erase_sd.load("apple", "unet"),
        text_encoder_2=CLIPTextModel.from_pretrained(sdxl.folder / "text_encoder_2"),
    )  # fmt: skip
    assert not torch.allclose(hidden_states(pipe.text_encoder_2), hidden_states(erased), atol=0.1)
    erase_sd.apply(pipe, "apple")
    assert torch.equal(hidden_states(pipe.text_encoder_2), hidden_states(erased))


LAYERS, FC1 = "text_model.encoder.layers", "text_model.encoder.layers.0.mlp.fc1.weight"
POSITIONS = "text_model.embeddings.position_embedding.weight"


def replaced(name: str, weight: Tensor) -> Callable[[Any], None]:
    """Puts another weight, named as on the hub, into a pipeline's text encoder."""

    def change(pipe: Any) -> None:
        own = pipe.text_encoder
        path = name if hasattr(own, "text_model") else name.removeprefix("text_model.")
        module, _, last = path.rpartition(".")
        setattr(own.get_submodule(module), last, torch.nn.Parameter(weight, requires_grad=False))

    return change


def layers_of(pipe: Any) -> Any:
    return getattr(pipe.text_encoder, "text_model", pipe.text_encoder).encoder.layers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pipe: setattr(pipe, "text_encoder", None), "has no text_encoder, which the run"),
        (lambda pipe: pipe.text_encoder.to("meta"), "quantized or offloaded layer by layer"),
        (replaced(FC1, torch.ones(64, 32).char()), "quantized or offloaded layer by layer"),
        (replaced(FC1, torch.ones(64, 16)), r"fc1.weight is \(64, 16\), the erased one has"),
        (replaced(POSITIONS, torch.ones(40, 32)), r"position_embedding.weight is \(40, 32\), the"),
        (
            replaced(POSITIONS.replace("position", "token"), torch.ones(9, 32)),
            r"token_embedding.weight is \(9, 32\), the erased one has",
        ),
        (
            lambda pipe: layers_of(pipe).__delitem__(1),
            rf"the pipeline's CLIPTextModel has no {LAYERS}.1.layer_norm1.bias",
        ),
        (
            lambda pipe: layers_of(pipe).append(copy.deepcopy(layers_of(pipe)[0])),
            rf"text_encoder: the erased one has no {LAYERS}.2.layer_norm1.bias",
        ),
    ],
    ids=[
        "missing",
        "meta",
        "quantized",
        "another width",
        "longer",
        "smaller vocabulary",
        "shallower",
        "deeper",
    ],
)
def test_a_pipeline_that_cannot_take_the_weights_is_one_line_and_stays_as_it_was(
    tiny: Models, erased_run: Run, change: Any, message: str
) -> None:
    pipe = open_tiny(tiny)
    change(pipe)
    with pytest.raises(ModelError, match=message) as caught:
        erase_sd.apply(pipe, "apple")
    assert "\n" not in str(caught.value)
