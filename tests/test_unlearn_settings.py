"""Settings of an unlearning run: ranges, the method's own defaults, concepts by name."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from unlearn_runs import APPLE, short

from erase_sd import runtime
from erase_sd.errors import SettingError
from erase_sd.methods.cliperase_anchored import AnchoredCLIPErase
from erase_sd.methods.emmn import EMMN
from erase_sd.methods.lipschitz import Lipschitz
from erase_sd.methods.registry import MethodName
from erase_sd.unlearning.settings import UnlearnSettings, parse_concepts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method magic: unknown; needs one of cliperase, "),
        ({"method": "clipperase"}, "method clipperase: .*; did you mean cliperase"),
        ({"steps": 0}, "steps: needs 1 to 1,000,000, got 0"),
        ({"forget_batch": 0}, "forget_batch: needs 1 to 100,000, got 0"),
        ({"retain_batch": 1}, "retain_batch: needs 2 to 100,000, got 1"),
        ({"validate_every": 0}, "validate_every: needs 1 to 1,000,000, got 0"),
        (
            {"learning_rate": float("nan")},
            "learning_rate: needs a number above 0 and up to 10, got nan",
        ),
        ({"learning_rate": -1.0}, "learning_rate: needs a number above 0 and up to 10, got -1.0"),
        ({"retain_floor": 1.5}, "retain_floor: needs a number from 0 to 1, got 1.5"),
        ({"max_residual": -1.0}, "max_residual: needs at least 0, got -1.0"),
        ({"max_residual": float("nan")}, "max_residual: needs at least 0, got nan"),
        ({"towers": "image"}, "towers image: unlearning needs one of text, both"),
        ({"dtype": "fp16"}, "dtype fp16: unlearning needs one of auto, fp32, bf16"),
        ({"concepts": ()}, "concept: needs at least one word"),
        ({"steps": 10.7}, "steps: needs a whole number, got 10.7"),
        ({"steps": True}, "steps: needs a whole number, got True"),
        ({"seed": None}, "seed: needs a whole number, got None"),
        ({"learning_rate": "1e-4"}, "learning_rate: needs a number, got '1e-4'"),
        ({"mine_mentions": "no"}, "mine_mentions: needs True or False, got 'no'"),
    ],
)
def test_a_setting_outside_its_range_names_field_value_and_rule(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        short(**changes)


@pytest.mark.parametrize(
    ("method", "name", "value", "rule"),
    [
        ("cliperase", "forget_wait", 1.0, "cliperase has no such hyperparameter; did you mean forget_weight?"),
        ("ga", "zzz", 1.0, "ga has no such hyperparameter; it has forget_weight"),
        ("cliperase", "forget_weight", "much", "needs a finite number, got much"),
        ("lipschitz", "copies", 0.0, "needs at least 1, got 0.0"),
        ("lipschitz", "copies", 1.5, "needs a whole number, got 1.5"),
        ("npo", "temperature", 0.0, "needs a number above 0, got 0.0"),
        ("cliperase", "consistency", "both", "needs similarity or embedding, got both"),
    ],
)  # fmt: skip
def test_a_hyperparameter_outside_its_range_is_named(
    method: str, name: str, value: object, rule: str
) -> None:
    with pytest.raises(SettingError) as caught:
        short(method=method, hyperparameters={name: value})
    assert str(caught.value) == f"hyperparameters {name}: {rule}"


def test_hyperparameters_are_converted_to_the_type_of_their_field() -> None:
    method = short(method="emmn", hyperparameters={"images": 8.0, "noise_decay": 1}).build()
    assert isinstance(method, EMMN)
    assert (method.images, method.noise_decay) == (8, 1.0)
    assert isinstance(method.images, int) and isinstance(method.noise_decay, float)


def test_settings_left_out_are_the_methods_own() -> None:
    settings = UnlearnSettings(concepts=APPLE)
    assert settings.learning_rate == AnchoredCLIPErase.learning_rate
    assert settings.forget_threshold == AnchoredCLIPErase.forget_threshold
    assert settings.retain_floor == AnchoredCLIPErase.retain_floor
    assert UnlearnSettings(concepts=APPLE, method="lipschitz").steps == Lipschitz.steps


def test_the_residual_that_counts_as_failed_depends_on_what_is_unlearned() -> None:
    assert UnlearnSettings(concepts=APPLE).max_residual == 0.5
    assert UnlearnSettings(concepts=APPLE, method="uce").max_residual == 0.75
    assert UnlearnSettings(concepts=APPLE, method="uce", max_residual=0.1).max_residual == 0.1


def test_synonyms_belong_to_their_concept() -> None:
    assert parse_concepts(["bicycle"], ["bike"])[0].synonyms == ("bike",)
    two = parse_concepts(["bicycle", "couch"], ["couch=sofa"])
    assert [concept.synonyms for concept in two] == [(), ("sofa",)]
    with pytest.raises(SettingError, match="synonym sofa: needs concept=synonym"):
        parse_concepts(["bicycle", "couch"], ["sofa"])


def test_a_concept_given_twice_is_refused() -> None:
    with pytest.raises(SettingError, match=r"concept: each must be different, .* got apple, apple"):
        parse_concepts(["apple", "apple"])


def test_concepts_whose_files_would_have_the_same_name_are_refused() -> None:
    """The images of attacks, prompt files and pictures of model cards are named after concepts."""
    with pytest.raises(SettingError, match="more than case and punctuation, got hot dog, Hot-dog"):
        parse_concepts(["hot dog", "Hot-dog"])
    assert len(parse_concepts(["dog", "hot dog"])) == 2


def test_settings_and_the_list_of_methods_import_no_torch() -> None:
    code = (
        "import sys, erase_sd.unlearning.settings; from erase_sd.methods.registry import METHODS; "
        "assert 'ga' in METHODS and len(list(METHODS)) == 19; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("device", "method", "precision"),
    [
        ("cuda", "esd", "bf16"),
        ("cuda", "cliperase", "bf16"),
        ("cpu", "esd", "fp32"),
        ("cpu", "cliperase", "bf16"),
    ],
)
def test_auto_trains_a_unet_in_bf16_on_cuda_only(
    device: str, method: MethodName, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "device", lambda: torch.device(device))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert short(method=method).precision == precision
    assert short(method=method, dtype="fp32").precision == "fp32"
