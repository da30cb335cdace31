"""The command line: its help, its errors in one line on stderr, and nothing half-written."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from commands import Answer, call, start
from typer.core import TyperOption
from typer.models import OptionInfo
from typer.testing import CliRunner

from erase_sd import runtime
from erase_sd.cli import app, main
from erase_sd.cli.app import COMMANDS, StderrLines, option_of
from erase_sd.models.presets import Models

PROGRAM: Any = typer.main.get_command(app)


def exit_status(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """`erase-sd WORDS` in this process."""
    monkeypatch.setattr(sys, "argv", ["erase-sd", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def options_of(models: Models, *names: str) -> list[str]:
    """`--model ... --clip ...` of the tiny models."""
    own = {"model": models.model, "clip": models.clips[0], "data": models.data}
    own["detector"] = models.detector
    return [word for name in names for word in (f"--{name}", str(own[name]))]


def unlearn_words(models: Models, *more: str) -> list[str]:
    words = ["unlearn", "--concept", "apple", "--steps", "2", "--max-residual", "1e9"]
    words += ["--no-mentions"]
    return [*words, *options_of(models, "model", "clip", "data"), *more]


def assert_fails(answer: Answer, message: str) -> None:
    assert answer.returncode == 1, answer.stderr
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1 and answer.stderr.startswith("erase-sd: ")


def limit_file_sizes() -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom erase_sd.cli import app\n"
        "result = CliRunner().invoke(app, ['-h'])\n"
        "assert result.exit_code == 0 and 'unlearn' in result.output, result.output\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'ultralytics', 'numpy', 'PIL', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version_is_the_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"erase-sd {runtime.version_of_package()}\n"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nonsense",),
        ("unlearn",),
        ("score", "--run"),
        ("unlearn", "--concept", "apple", "--method", "magic"),
        ("unlearn", "--concept", "apple", "--preset", "sd0"),
        ("unlearn", "--concept", "apple", "--towers", "left"),
        ("unlearn", "--concept", "apple", "--dtype", "fp16"),
        ("generate", "--dtype", "fp64"),
        ("prompts", "--concept", "apple", "--split", "test"),
        ("export", "--run", "apple", "--to", "gif"),
        ("methods", "magic"),
    ],
)
def test_usage_errors_exit_2(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_status(monkeypatch, *words) == 2


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        ("export --to ", {"diffusers", "comfyui", "a1111", "lora", "hub-folder"}),
        ("unlearn --towers ", {"text", "both"}),
        ("unlearn --method cliperase", {"cliperase", "cliperase-anchored", "cliperase-hardened"}),
        ("generate --dtype ", {"auto", "fp32", "bf16", "fp16"}),
        ("prompts --split ", {"train", "validation", "held-out"}),
    ],
)
def test_help_and_completion_list_the_choices(words: str, choices: set[str]) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", "from erase_sd.cli import app; app(prog_name='erase-sd')"],
        env=os.environ | {"_ERASE_SD_COMPLETE": "complete_bash", "COMP_CWORD": "3",
                          "COMP_WORDS": f"erase-sd {words}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert set(completed.stdout.split()) == choices
    help_text = CliRunner().invoke(app, [words.split()[0], "--help"], env={"COLUMNS": "300"}).stdout
    assert all(choice in help_text for choice in choices)


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_no_option_no_default_and_no_word_of_its_help_is_cut_off(columns: int) -> None:
    for name, command in PROGRAM.commands.items():
        settings: dict[str, Any] = {"env": {"COLUMNS": str(columns)}, "terminal_width": columns}
        page = CliRunner().invoke(app, [name, "--help"], **settings).stdout
        lines = page.splitlines()
        assert max(map(len, lines)) <= columns, name
        shown = re.sub(r"- (?=\w)", "-", " ".join(page.split()))  # a line may end after a hyphen
        for parameter in command.params:
            options = (*parameter.opts, *parameter.secondary_opts)
            assert all(option in shown for option in options if option.startswith("--"))
            default = parameter.show_default if isinstance(parameter.show_default, str) else ""
            words = f"{parameter.help} {default}".split()
            assert all(word.strip("`") in shown for word in words), parameter.name
        for paragraph in command.help.split("\n\n"):
            whole = [line.strip() for line in lines if line.strip() and line.strip() in paragraph]
            assert all(len(line) > columns / 2 for line in whole[:-1]), name


def test_a_plain_help_page_escapes_no_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Typer 0.20 does."""
    record_of = TyperOption.get_help_record

    def escaped(option: TyperOption, context: Any) -> tuple[str, str] | None:
        record = record_of(option, context)
        return record and (record[0], record[1].replace("[", r"\["))

    monkeypatch.setattr(TyperOption, "get_help_record", escaped)
    page = CliRunner().invoke(app, ["unlearn", "--help"], env={"COLUMNS": "80"}).stdout
    assert "[required]" in page and "\\" not in page


def test_the_help_names_the_methods_that_mine_mentions() -> None:
    from erase_sd.methods.registry import METHODS

    [option] = [p for p in PROGRAM.commands["unlearn"].params if p.name == "mine_mentions"]
    mining = [name for name, method in METHODS.items() if method.erases_mentions]
    assert [name for name in METHODS if f"{name} " in option.help.split(";")[1]] == mining


def test_every_setting_is_an_option_and_its_default_is_in_the_help() -> None:
    from erase_sd.generation.settings import GenerateSettings
    from erase_sd.unlearning.settings import UnlearnSettings

    for name, settings in (("unlearn", UnlearnSettings), ("generate", GenerateSettings)):
        options = {parameter.name: parameter for parameter in PROGRAM.commands[name].params}
        for field in fields(settings):
            option = options[field.name]
            if field.name not in ("concepts", "hyperparameters") and field.default is not None:
                shown = option.show_default
                value = shown if isinstance(shown, str) else str(option.default)
                assert value == str(field.default), field.name


def test_an_option_is_named_after_its_parameter_in_every_release_of_typer() -> None:
    # Typer 0.27 names an option `--MODEL` whose metavar is its parameter's name in capitals.
    explicit = 0
    for command in app.registered_commands:
        assert command.callback
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            for option in getattr(hint, "__metadata__", ()):
                if (option.metavar or "").lower() == name and isinstance(option, OptionInfo):
                    names = (
                        option.default,
                        *(option.param_decls or ()),
                    )  # in that order, if annotated
                    assert f"--{name}" in names, f"{command.callback.__name__} --{name}"
                    explicit += 1
    assert explicit > 10


def test_every_command_and_option_has_a_help_sentence() -> None:
    assert {f.__name__ for panel in COMMANDS.values() for f in panel} == set(PROGRAM.commands)
    for name, command in PROGRAM.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help and parameter.help[0].isupper(), (name, parameter.name)


@pytest.mark.parametrize(
    ("command", "field", "option"),
    [
        ("unlearn", "learning_rate", "--learning-rate"),
        ("unlearn", "concept", "--concept"),
        ("compare", "concept", "--concepts"),
        ("unlearn", "keep_senses", "--keep-sense"),
        ("unlearn", "hyperparameters", "--set"),
        ("score", "detector_class", "--detector-class"),
        ("evaluate", "templates", "--template"),
        ("score", "retain_floor", "retain floor"),
        ("score", None, None),
    ],
)
def test_a_field_of_the_library_is_printed_as_the_commands_option(
    command: str, field: str | None, option: str | None
) -> None:
    assert option_of(PROGRAM.commands[command], field) == option


def test_log_records_are_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.makeLogRecord({"msg": "%s: not\nthere", "args": ("data",)})
    StderrLines().emit(record)
    assert capsys.readouterr().err == "erase-sd: data: not there\n"


def test_the_three_commands_in_order_end_in_a_table_and_in_json(tiny: Models) -> None:
    Path("prompts").mkdir()
    Path("prompts/apple.txt").write_text("an apple and a dog\n")
    Path("prompts/retain.txt").write_text("a couch\n")
    unlearned = call(*unlearn_words(tiny))
    assert (unlearned.returncode, unlearned.stderr) == (0, "")
    generated = call(
        "generate", "--prompts", "prompts/apple.txt", "--steps", "2", *options_of(tiny, "model")
    )
    assert (generated.returncode, generated.stderr) == (0, "")
    table = call("score", *options_of(tiny, "detector"))
    assert (table.returncode, table.stderr) == (0, "") and "Detection rates" in table.stdout
    rates = json.loads(call("score", "--json", *options_of(tiny, "detector")).stdout)["rates"]
    assert [(rate["run"], rate["group"]) for rate in rates] == [
        ("apple", group) for group in ("target", "retained_same", "retained_other")
    ]
    assert all({"value", "n", "low", "high"} <= rate["erased"].keys() for rate in rates)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("unlearn --concept zeppelin", "--concept zeppelin: in no caption of the data"),
        ("unlearn --concept apple --concept apple", "--concept"),
        ("unlearn --concept -", "--concept '-': needs a word"),
        ("unlearn --concept apple --set x", "--set x: needs name=value"),
        ("unlearn --concept apple --set none=1", "--set none"),
        ("unlearn --concept apple --learning-rate 0", "--learning-rate"),
        ("unlearn --concept apple --steps 0", "--steps"),
        ("unlearn --concept apple --forget-batch 0", "--forget-batch"),
        ("unlearn --concept apple --retain-batch 1", "--retain-batch"),
        ("unlearn --concept apple --validate-every 0", "--validate-every"),
        ("unlearn --concept apple --forget-threshold 2", "--forget-threshold"),
        ("unlearn --concept apple --retain-floor -1", "--retain-floor"),
        ("unlearn --concept apple --data nowhere", "--data nowhere: no such folder"),
        ("unlearn --concept apple --clip nowhere", "nowhere: no such folder"),
        ("generate", "--prompts: needs a file"),
        ("generate --prompts apple.txt", "runs/apple"),
        ("generate --prompts apple.txt --guidance 0", "--guidance: needs 1 to 100"),
        ("generate --prompts apple.txt --images-per-prompt 0", "--images-per-prompt: needs"),
        ("run --concept zeppelin", "--prompts prompts/zeppelin.txt: no such file"),
        ("score", "no run with images in runs/"),
        ("score --run apple", "runs/apple"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tiny: Models,
    words: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = words.split()
    if parts[0] == "unlearn" and "--data" not in parts:
        parts += options_of(tiny, "data")
    assert exit_status(monkeypatch, *parts) == 1
    line = capsys.readouterr().err
    assert line.startswith("erase-sd: ") and message in line and line.count("\n") == 1
    assert not Path("runs").exists()


def test_run_finds_the_packages_prompts_from_any_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets past the prompts, and fails at the first thing that it checks after them."""
    words = ("run", "--concept", "apple", "--detector", "nowhere.pt")
    assert exit_status(monkeypatch, *words) == 1
    assert capsys.readouterr().err == "erase-sd: --detector nowhere.pt: no such file\n"


def test_run_knows_that_the_presets_detector_lacks_a_class_before_it_unlearns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts").mkdir()
    Path("prompts/ball.txt").write_text("a ball in a park\n")
    assert exit_status(monkeypatch, "run", "--concept", "ball") == 1
    line = capsys.readouterr().err
    assert line.startswith("erase-sd: --detector-class ball: the detector has no such class; sim")
    assert line.endswith("; name the class that shows the concept, or a detector that has one\n")
    assert line.count("\n") == 1 and not Path("runs").exists()


def test_run_knows_that_a_prompt_of_any_file_is_too_long_before_it_unlearns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts").mkdir()
    Path("prompts/apple.txt").write_text("an apple in a park\n")
    Path("prompts/retain.txt").write_text("dog " * 100)
    assert exit_status(monkeypatch, "run", "--concept", "apple") == 1
    line = capsys.readouterr().err
    assert line.startswith("erase-sd: retain: 102 tokens, at most ") and line.count("\n") == 1
    assert not Path("runs").exists()


def test_a_concept_in_every_caption_leaves_nothing_to_retain(tiny: Models) -> None:
    Path("data").mkdir()
    Path("data/results_20130124.token").write_text(
        "".join(f"{i}.jpg#0\tan apple\n" for i in range(9))
    )
    words = ["unlearn", "--concept", "apple", "--data", "data", *options_of(tiny, "model", "clip")]
    assert_fails(call(*words), "--concept apple: ")


def test_an_unlearning_that_leaves_the_concept_is_one_line_and_keeps_its_files(
    tiny: Models,
) -> None:
    words = unlearn_words(tiny, "--retain-floor", "1", "--max-residual", "0.5")
    answer = call(*words)  # every validation is rolled back, and nothing changes
    assert answer.returncode == 1
    warning, error = answer.stderr.splitlines()
    assert "every validation was rolled back" in warning
    assert (
        "runs/apple: apple not erased from text_encoder: residual concept similarity 1.00" in error
    )
    assert Path("runs/apple/erased/model.safetensors").is_file()
    assert_fails(call(*words), "residual concept similarity 1.00")  # again, from the finished run


def test_a_folder_that_cannot_be_written_is_named(tiny: Models) -> None:
    Path("file").write_text("")
    assert_fails(call(*unlearn_words(tiny, "--run", "file/apple")), "file/apple: cannot be written")


def test_a_full_disk_is_one_line_and_leaves_no_partial_file(tiny: Models) -> None:
    """A limit on file sizes simulates the full disk: the erased weights do not fit."""
    answer = call(*unlearn_words(tiny), before=limit_file_sizes)
    assert answer.returncode == 1, answer.stderr
    assert answer.stderr.startswith("erase-sd: ") and answer.stderr.count("\n") == 1
    assert "too large" in answer.stderr
    files = {path.name for path in Path("runs/apple").iterdir()}
    assert files <= {"run.json", "train.jsonl", ".lock"}


def test_a_second_process_on_the_same_run_folder_stops(tiny: Models) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "from pathlib import Path; from erase_sd.run import Run; import time\n"
         "with Run(Path('runs/apple')).lock(): print('held', flush=True); time.sleep(600)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert_fails(call(*unlearn_words(tiny)), f"runs/apple: in use by process {holder.pid}")
    finally:
        holder.kill()
        holder.communicate()
    assert call(*unlearn_words(tiny)).returncode == 0


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_unlearning_resumes_to_the_same_weights(
    tiny: Models, signal_number: signal.Signals
) -> None:
    words = unlearn_words(tiny, "--steps", "40")
    child = start(*words)
    checkpoint = Path("runs/apple/checkpoint.safetensors")
    while child.is_alive() and not checkpoint.exists():
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal_number)
    child.join()
    assert child.exitcode != 0
    assert checkpoint.exists() and not Path("runs/apple/erased").exists()
    assert call(*words).returncode == 0
    assert call(*words, "--run", "whole").returncode == 0
    weights = [
        Path("runs", run, "erased/model.safetensors").read_bytes() for run in ("apple", "whole")
    ]
    assert weights[0] == weights[1]
