"""Presets, overrides and hub ids: what a run's models are, and one line if they cannot be used."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from erase_sd.errors import DataError, EraseError, ModelError, SettingError
from erase_sd.models import presets
from erase_sd.models.presets import Models, resolve
from erase_sd.models.recorded import models_of_run
from erase_sd.models.source import SD_FILES, check_config, fetch
from erase_sd.models.tokens import token_limit_of
from erase_sd.run import Run


def test_each_hub_preset_names_one_clip_per_text_encoder_and_a_licence() -> None:
    assert {name: (len(m.clips), m.licence) for name, m in presets.HUB.items()} == {
        "sd14": (1, "creativeml-openrail-m"),
        "sd15": (1, "creativeml-openrail-m"),
        "sd21": (1, "openrail++"),
        "sdxl": (2, "openrail++"),
        "sd35": (2, "other"),
        "flux1": (1, "apache-2.0"),
    }
    assert list(presets.PRESETS) == ["mini", *presets.HUB]


def test_overrides_replace_the_presets_own_and_resolve_to_the_same_models_again() -> None:
    models = resolve("sdxl", clip=["a/b", "c/d"], data="pairs", revision="v1")
    assert (models.clips, models.data, models.revision) == (("a/b", "c/d"), Path("pairs"), "v1")
    assert models.hub_id == "stabilityai/stable-diffusion-xl-base-1.0"
    assert resolve(**models.overrides) == models


def test_another_model_loses_the_presets_title_licence_and_data(tmp_path: Path) -> None:
    mini, other = resolve(), resolve(model=str(tmp_path))
    assert (mini.title, mini.licence) == ("the miniature world of erase-sd", "agpl-3.0")
    assert (other.title, other.licence, other.own_data) == (None, "other", None)
    with pytest.raises(SettingError, match=r"data: .* needs a folder, or synth"):
        other.pairs()


def test_the_presets_own_pairs_are_used_if_no_data_is_named(tiny: Models) -> None:
    assert tiny.data is not None
    own = dataclasses.replace(tiny, data=None, own_data=lambda: Path(str(tiny.data)))
    assert own.pairs() == tiny.pairs() == tiny.data


@pytest.mark.parametrize(
    ("arguments", "use", "error", "message"),
    [
        ({"preset": "sd3"}, "pairs", SettingError, "preset sd3: unknown; needs one of mini, sd14"),
        ({"revision": "v1"}, "pairs", SettingError, "revision v1: needs a model on the hub"),
        ({"data": "nowhere"}, "pairs", DataError, "data nowhere: no such folder"),
        ({"data": "synth"}, "pairs", SettingError, "data synth: .* needs a folder here"),
        ({"preset": "sd15"}, "pairs", SettingError, "data: stable-diff.* needs a folder, or synth"),
        ({"preset": "sd15"}, "detector_file", SettingError, "detector: .* needs a YOLOv5 file"),
        ({"detector": "no.pt"}, "detector_file", ModelError, "detector no.pt: no such file"),
        ({"model": "."}, "fingerprint", ModelError, "model .: not a diffusers folder"),
        ({"model": "no folder"}, "fingerprint", ModelError, "model no folder: no such folder, and"),
        ({"model": "nobody/nothing"}, "fingerprint", ModelError, "model nobody/nothing: no such"),
    ],
)
def test_models_that_cannot_be_used_are_one_line_about_the_field(
    arguments: dict[str, Any], use: str, error: type[EraseError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        getattr(resolve(**arguments), use)()
    assert "\n" not in str(caught.value)


def test_the_hub_is_only_contacted_with_notice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "erase_sd"), pytest.raises(ModelError):
        fetch("clip", "nobody/nothing", ("*.json",))
    assert caplog.messages == ["nobody/nothing: checking the model hub"]
    caplog.clear()
    assert fetch("clip", ".", ()) == Path()
    assert not caplog.messages


def test_later_stages_use_the_models_that_the_run_recorded(tiny: Models) -> None:
    run = Run(Path("runs/apple"))
    assert models_of_run(run) == resolve()
    run.update(models=resolve(model=tiny.model, clip=tiny.clips, data=tiny.data).overrides)
    recorded = models_of_run(run)
    assert (recorded.folder, recorded.pairs()) == (tiny.model, tiny.data)
    assert models_of_run(run, detector=tiny.detector).detector_file() == tiny.detector
    assert models_of_run(run, preset="sd15").model == presets.HUB["sd15"].model


def test_relative_paths_of_a_run_are_found_from_any_folder(
    tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {"model": "model", "data": "pairs", "detector": "detector.pt", "clip": ["clip"]}
    for name, path in zip(paths, (tiny.folder, tiny.pairs(), tiny.detector_file()), strict=False):
        (tmp_path / str(paths[name])).symlink_to(path)
    (tmp_path / "clip").symlink_to(tiny.clip_folder(0))
    for name in ("mini", "main", "synth"):  # never taken for the preset, the revision or the data
        (tmp_path / name).mkdir()
    (tmp_path / "other").mkdir()
    run = Run(tmp_path / "runs" / "apple")
    run.update(models={"preset": "mini", "revision": "main", **paths})
    monkeypatch.chdir(tmp_path / "other")
    models = models_of_run(run)
    assert (models.folder, models.pairs()) == (tmp_path / "model", tmp_path / "pairs")
    assert models.detector_file() == tmp_path / "detector.pt"
    assert (models.clip_folder(0), models.revision) == (tmp_path / "clip", "main")
    run.update(models={"preset": "mini", "data": "synth"})
    assert models_of_run(run).data == "synth"
    run.update(
        models={"preset": "mini", "data": "x" * 300}
    )  # as `stat` of a private folder, an error
    assert models_of_run(run).data == Path("x" * 300)
    monkeypatch.chdir(tmp_path)
    assert models_of_run(run, model="model").folder == Path("model")


def test_a_config_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a model folder \(no config.json\)"):
        check_config(tmp_path)
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}')
    with pytest.raises(ModelError, match="would run code of its own; refused"):
        check_config(tmp_path)


def test_a_text_fits_up_to_the_context_length_start_and_end_included(tiny: Models) -> None:
    limit = token_limit_of(tiny)
    fits, too_long = "dog " * 30, "dog " * 31
    assert limit.limit == 32
    assert limit.counts(["a dog", fits, too_long]) == [4, 32, 33]
    assert (
        limit.fitting([fits, too_long]) == [limit.fits(fits), limit.fits(too_long)] == [True, False]
    )


def test_the_first_text_that_does_not_fit_is_named_with_its_place(tiny: Models) -> None:
    token_limit_of(tiny).check(["a dog"], "apple.txt")
    with pytest.raises(DataError, match=r"^apple.txt: 42 tokens, at most 32 fit: 'dog dog "):
        token_limit_of(tiny).check(["a dog", "dog " * 40, "dog " * 50], "apple.txt")


def test_a_clip_without_a_tokenizer_is_one_line(tiny: Models, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny.clip_folder(0) / "config.json").read_text())
    with pytest.raises(ModelError, match=r"clip .*: no tokenizer"):
        token_limit_of(dataclasses.replace(tiny, clips=(tmp_path,)))


def test_a_repository_in_half_precision_only_is_fetched_with_its_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import fnmatch

    import huggingface_hub

    repository = ("model_index.json", "unet/config.json", "unet/model.fp16.safetensors",
                  "vae/config.json", "vae/model.safetensors", "vae/model.fp16.safetensors",
                  "text_encoder/config.json", "text_encoder/model.fp16-00001-of-00001.safetensors",
                  "text_encoder/model.safetensors.index.fp16.json",
                  "text_encoder_3/config.json", "text_encoder_3/model.safetensors.index.json",
                  "text_encoder_3/model-00001-of-00001.safetensors",
                  "text_encoder_3/model.safetensors.index.fp16.json",
                  "text_encoder_3/model.fp16-00001-of-00001.safetensors")  # fmt: skip

    def download(source: str, *, allow_patterns: list[str], **options: Any) -> str:
        for name in repository:
            unwanted = options.get("ignore_patterns", [])
            if any(fnmatch.fnmatch(name, p) for p in allow_patterns) and not any(
                fnmatch.fnmatch(name, p) for p in unwanted
            ):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = fetch("model", "someone/half", SD_FILES)
    assert (folder / "unet" / "model.fp16.safetensors").is_file()
    assert [path.name for path in (folder / "vae").glob("*.safetensors")] == ["model.safetensors"]
    shards = {
        encoder: sorted(path.name for path in (folder / encoder).glob("*.safetensors*"))
        for encoder in ("text_encoder", "text_encoder_3")
    }
    assert shards == {
        "text_encoder": [
            "model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json",
        ],
        "text_encoder_3": ["model-00001-of-00001.safetensors", "model.safetensors.index.json"],
    }  # fmt: skip
