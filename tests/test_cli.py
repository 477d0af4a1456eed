import html
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from neural_polarizer import __version__, cache
from neural_polarizer.attacks import ATTACKS
from neural_polarizer.cli import attack as attack_command
from neural_polarizer.data.parquet import write_images
from neural_polarizer.errors import BadInputError
from neural_polarizer.models.build import build
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.progress import Progress
from neural_polarizer.runs.attack import deliver_attack, load_attack
from run_files import attack_words, coloured, make_runs, purify_words, run, write_data

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory)


def config_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())["config"]


@pytest.mark.long
def test_the_three_commands_from_end_to_end(tmp_path: Path, capsys: Capsys) -> None:
    write_data(tmp_path)
    attacked = run(capsys, *attack_words(tmp_path, tmp_path / "attack"))
    assert (attacked.code, attacked.err) == (0, "")
    assert "badnets (all-to-one)" in attacked.out
    assert f"written to {tmp_path / 'attack'}" in attacked.out.replace("\n", "")
    purified = run(capsys, *purify_words(tmp_path / "attack", tmp_path, tmp_path / "purified"))
    assert (purified.code, purified.err) == (0, "")
    assert "ASR" in purified.out
    assert f"report: {tmp_path / 'purified' / 'report.html'}" in purified.out.replace("\n", "")
    triggered = tmp_path / "attack" / "triggered.parquet"
    words = ("--test", tmp_path / "test.parquet", "--triggered", triggered, "--json", tmp_path / "figures.json")
    evaluated = run(capsys, "evaluate", tmp_path / "purified", *words, "--device", "cpu")
    assert (evaluated.code, evaluated.err) == (0, "")
    figures = json.loads((tmp_path / "figures.json").read_text())
    after = json.loads((tmp_path / "purified" / "run.json").read_text())["after"]
    assert {name: figures[name] for name in after} == after
    assert f"{100 * after['acc']:.2f} %" in evaluated.out


@pytest.mark.long
def test_evaluate_finds_the_triggered_set_of_an_attack(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    words = ("--test", runs / "test.parquet", "--device", "cpu", "--json", tmp_path / "a.json")
    assert run(capsys, "evaluate", runs / "attack", *words).code == 0
    assert json.loads((tmp_path / "a.json").read_text())["n_triggered"] == 14
    shown = run(capsys, "evaluate", runs / "attack" / "model.safetensors", *words)
    assert json.loads((tmp_path / "a.json").read_text())["asr"] is None
    assert " - " in shown.out


@pytest.mark.long
def test_quiet_prints_nothing(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    for words in (
        attack_words(runs, tmp_path / "attack"),
        purify_words(tmp_path / "attack", runs, tmp_path / "purified"),
        ("evaluate", tmp_path / "purified", "--test", runs / "test.parquet", "--device", "cpu"),
    ):
        done = run(capsys, *words, "--quiet")
        assert (done.code, done.out, done.err) == (0, "", "")


OPTIONS: dict[str, tuple[tuple[object, ...], dict[str, Any]]] = {
    "radius": (("--radius", 0.5, "--radius", 2), {"radii": [0.5, 2.0], "epochs": 2}),
    "batch size": (("--batch-size", 5), {"batch_size": 5}),
    "site": (("--site", "before:layer3"), {"site": "before:layer3"}),
    "automatic site": (("--preset", "paper", "--site", "auto"), {"site": "before:layer4.1", "init": "default"}),
    "precision": (("--precision", "bf16"), {"precision": "bf16"}),
    "paper": (
        ("--preset", "paper"),
        {"site": "before:layer4.1.conv1", "init": "default", "loss_form": "stable", "asr_weight": 0.4},
    ),
    "reference": (
        ("--preset", "reference", "--profile", "gtsrb"),
        {"site": "before:layer4.1.conv1", "loss_form": "clamped", "radii": [5.0], "early_stop": 0.6},
    ),
    "tp": (("--method", "npd-tp", "--target", 0), {"perturbation": "sample", "target": 0}),
    "tu": (("--method", "npd-tu", "--target", "next"), {"perturbation": "universal", "target": "next"}),
    "uu": (("--method", "npd-uu"), {"perturbation": "universal", "goal": "untargeted", "target": None}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_reaches_the_defense(runs: Path, tmp_path: Path, capsys: Capsys, name: str) -> None:
    words, expected = OPTIONS[name]
    done = run(capsys, *purify_words(runs / "attack", runs, tmp_path, *words))
    assert (done.code, done.err) == (0, "")
    config = config_of(tmp_path)
    assert {key: config[key] for key in expected} == expected


def test_sites_are_listed_with_the_one_that_purify_takes(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    done = run(capsys, "sites", runs / "attack", "--json", tmp_path / "sites.json")
    assert (done.code, done.err) == (0, "")
    (marked,) = [line for line in done.out.splitlines() if "auto" in line]
    assert "before:layer4.1 " in marked
    listed = json.loads((tmp_path / "sites.json").read_text())
    record = json.loads((runs / "purified" / "run.json").read_text())
    assert (listed["recommended"], listed["reason"]) == (record["site"], record["site_reason"])
    assert listed["reason"] in done.out.replace("\n", "")
    assert listed["reason"] in html.unescape((runs / "purified" / "report.html").read_text())
    by_site = {each["site"]: each for each in listed["sites"]}
    assert (by_site["before:layer4.1"]["channels"], by_site["before:layer4.1"]["features"]["layout"]) == (16, "NCHW")
    assert "before:layer4.1.conv1" not in by_site  # bypassed
    every = run(capsys, "sites", runs / "attack", "--all", "--json", tmp_path / "all.json")
    assert "bypassed" in every.out
    bypassed = {each["site"]: each["bypassed"] for each in json.loads((tmp_path / "all.json").read_text())["sites"]}
    assert bypassed["before:layer4.1.conv1"]
    assert by_site.keys() == {site for site, around in bypassed.items() if not around}


@pytest.mark.long
@pytest.mark.parametrize("command", ["sites", "evaluate"])
def test_a_file_for_figures_replaces_nothing_but_json(runs: Path, tmp_path: Path, capsys: Capsys, command: str) -> None:
    words = (command, runs / "attack", *(("--test", runs / "test.parquet") if command == "evaluate" else ()))
    model = tmp_path / "model.pt"
    model.write_bytes(b"PK, as a model begins")
    (tmp_path / "config.json").write_text('{"model_sha256": "", "acc": 1}')
    for there in (model, tmp_path, tmp_path / "config.json"):
        done = run(capsys, *words, "--json", there)
        message = f"error: --json {there}: is there already, with other content; choose another name\n"
        assert (done.code, done.err) == (2, message)
    assert model.read_bytes() == b"PK, as a model begins"
    for _ in range(2):
        assert run(capsys, *words, "--json", tmp_path / "a.json").code == 0
    lost = run(capsys, *words, "--json", tmp_path / "gone" / "a.json")
    assert (lost.code, "gone/a.json: its folder is not there; make it first" in lost.err) == (3, True)


@pytest.mark.parametrize("option", ["--out", "--triggered"])
def test_a_path_that_no_system_takes_is_one_line(runs: Path, capsys: Capsys, option: str) -> None:
    command = ("audit", "--clean") if option == "--out" else ("evaluate", "--test")
    done = run(capsys, command[0], runs / "attack", command[1], runs / "test.parquet", option, runs / ("x" * 300))
    assert (done.code, done.err.count("\n"), "ile name too long" in done.err) == (3, 1, True)


@pytest.mark.long
def test_sites_of_a_foreign_file_need_the_size_of_its_images(tmp_path: Path, capsys: Capsys) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(PreActResNet18(3, 2).state_dict(), path)
    done = run(capsys, "sites", path, "--arch", "preactresnet18")
    assert done.code == 3
    assert done.err == f"error: {path}: does not say how large its images are; give --size\n"
    assert "before:layer4.1" in run(capsys, "sites", path, "--arch", "preactresnet18", "--size", 16).out
    save_file(build("vgg19_bn", 3, width=2).state_dict(), path)
    tiny = run(capsys, "sites", path, "--arch", "vgg19_bn", "--size", 8)
    assert (tiny.code, "cannot take images of 8x8 pixels" in tiny.err) == (3, True)


@pytest.mark.long
def test_n_clean_seed_and_method_reach_the_record(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    words = ("--n-clean", 7, "--seed", 3, "--method", "npd-up", "--epochs", 1)
    assert run(capsys, *purify_words(runs / "attack", runs, tmp_path, *words)).code == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["n_clean"], record["seed"], record["method"]) == (7, 3, "npd-up")
    assert record["data"]["clean"] == str(runs / "train.parquet")
    assert record["data"]["triggered"] == str(runs / "attack" / "triggered.parquet")


@pytest.mark.long
def test_an_all_to_all_attack_is_purified_with_the_next_class(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    words = attack_words(runs, tmp_path / "attack", "--label-rule", "all-to-all", "--epochs", 1)
    assert "all-to-all" in run(capsys, *words).out
    assert json.loads((tmp_path / "attack" / "attack.json").read_text())["n_triggered"] == 21
    more = ("--method", "npd-tp", "--target", "next")
    assert run(capsys, *purify_words(tmp_path / "attack", runs, tmp_path / "purified", *more)).code == 0
    assert config_of(tmp_path / "purified")["target"] == "next"


def test_a_finished_attack_is_shown_again_and_another_seed_refused(runs: Path, capsys: Capsys) -> None:
    again = run(capsys, *attack_words(runs, runs / "attack"))
    assert again.code == 0
    assert "badnets (all-to-one)" in again.out
    other = run(capsys, *attack_words(runs, runs / "attack", "--seed", 1))
    assert (other.code, other.out.strip()) == (3, "")
    assert "holds another attack (it differs in seed); choose another --out" in other.err


def test_an_attack_takes_blended_options_and_a_common_size(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    write_images(tmp_path / "large.parquet", coloured(21, 1, (20, 24)))
    words = attack_words(runs, tmp_path / "a", "--epochs", 1, "--test", tmp_path / "large.parquet", "--size", "8x12")
    assert run(capsys, *words[:1], "blended", *words[2:], "--set", "alpha=0.3", "--limit", 32).code == 0
    record = json.loads((tmp_path / "a" / "attack.json").read_text())
    assert (record["attack"], record["settings"]["alpha"], record["n_poisoned"]) == ("blended", 0.3, 6)
    assert record["schedule"]["policy"] == "one-cycle"
    assert record["schedule"]["lr"] == 0.1


def test_the_attack_of_the_docs_runs_from_a_file_of_ones_own(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "research" / "attacks.md").read_text()
    *_, code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "ghost.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = attack_words(runs, tmp_path / "a", "--attack", "my_lab.ghost:Ghost", "--set", "strength=60")
    assert run(capsys, words[0], *words[2:]).code == 0
    record = json.loads((tmp_path / "a" / "attack.json").read_text())
    assert (record["attack"], record["settings"]["strength"]) == ("my_lab.ghost:Ghost", 60)
    attack, state = load_attack(tmp_path / "a", own=import_module("my_lab.ghost").Ghost)
    black = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert attack.stamp(black, state)[0, 0, :, 0].tolist() == [60, 0, 60, 0]
    assert all((tmp_path / "a" / name).exists() for name in ("trigger.png", "triggered.parquet"))


def test_all_attacks_are_listed(capsys: Capsys) -> None:
    shown = run(capsys, "attack", "--list")
    assert shown.code == 0
    assert all(name in shown.out for name in ATTACKS)


def test_a_setting_that_an_attack_does_not_have_is_refused(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    refused = run(capsys, *attack_words(runs, tmp_path / "a", "--set", "alpha=0.1"))
    assert (refused.code, refused.out) == (3, "")
    assert (
        "--set alpha=0.1: expected NAME=VALUE with a NAME of target, label_rule, poison_rate, source, " in refused.err
    )


def test_the_scales_and_the_adaptive_attacker_reach_the_record(runs: Path, tmp_path: Path, capsys: Capsys) -> None:
    words = attack_words(
        runs, tmp_path / "a", "--scale", "laptop", "--adversarial-training", "--eps", 4, "--spare-triggered"
    )
    assert run(capsys, *words).code == 0
    schedule = json.loads((tmp_path / "a" / "attack.json").read_text())["schedule"]
    assert schedule["adversarial"] == {"eps": 4 / 255, "steps": 2, "clean_weight": 0.0, "spare_triggered": True}
    assert (schedule["policy"], schedule["lr"], schedule["crop_padding"]) == ("one-cycle", 0.1, 2)


USAGE: dict[str, tuple[object, ...]] = {
    "unknown option": ("evaluate", "m", "--test", "t", "--colour", "red"),
    "unknown command": ("cleanse", "m"),
    "missing option": ("purify", "m", "--clean", "c"),
    "not a number": ("purify", "m", "--clean", "c", "--out", "o", "--epochs", "many"),
    "zero epochs": ("purify", "m", "--clean", "c", "--out", "o", "--epochs", 0),
    "unknown method": ("purify", "m", "--clean", "c", "--out", "o", "--method", "npd-xx"),
    "unknown preset": ("purify", "m", "--clean", "c", "--out", "o", "--preset", "mine"),
    "unknown profile": ("evaluate", "m", "--test", "t", "--profile", "mnist"),
    "target that is neither": ("purify", "m", "--clean", "c", "--out", "o", "--method", "npd-tp", "--target", "cat"),
    "negative target": ("attack", "badnets", "--data", "d", "--test", "t", "--out", "o", "--target", -1),
    "no attack": ("attack", "--data", "d", "--test", "t", "--out", "o"),
    "no data": ("attack", "badnets", "--out", "o"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage_exits_with_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(capsys, *USAGE[name])
    assert (done.code, done.out) == (2, "")
    assert "Usage: " in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    out, home = tmp_path / "out", str(tmp_path / "home")
    monkeypatch.setenv(cache.VARIABLE, home)
    finished = deliver_attack

    def interrupted(*args: Any, **options: Any) -> None:
        inner: Progress = options.pop("progress")

        def progress(phase: str, done: int, total: int) -> None:
            inner(phase, done, total)
            if done == 4:
                raise KeyboardInterrupt

        finished(*args, **options, progress=progress)

    monkeypatch.setattr(attack_command, "deliver_attack", interrupted)
    stopped = run(capsys, *attack_words(runs, out), "--quiet")
    assert (stopped.code, stopped.err) == (130, "error: interrupted; start the same command again to go on\n")
    assert not out.exists()  # all that goes on lies in the cache
    monkeypatch.undo()
    monkeypatch.setenv(cache.VARIABLE, home)
    assert run(capsys, *attack_words(runs, out)).code == 0
    here, there = (json.loads((folder / "attack.json").read_text()) for folder in (out, runs / "attack"))
    assert here["model_sha256"] == there["model_sha256"]


def test_out_of_memory_exits_with_4(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(attack_command, "deliver_attack", full)
    done = run(capsys, *attack_words(runs, tmp_path))
    assert done.code == 4
    assert done.err == "error: out of memory; try a smaller --batch-size or fewer images\n"


def test_a_message_of_several_lines_is_shown_as_it_is_on_one(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise BadInputError("[red]two\n  lines[/] :cat: " + "x" * 300)

    monkeypatch.setattr(attack_command, "deliver_attack", fail)
    done = run(capsys, *attack_words(runs, tmp_path))
    assert (done.code, done.err) == (3, f"error: [red]two lines[/] :cat: {'x' * 300}\n")


def test_version_and_help(capsys: Capsys) -> None:
    assert run(capsys, "--version").out == f"neural-polarizer {__version__}\n"
    for command in ("attack", "purify", "evaluate"):
        shown = run(capsys, command, "--help")
        assert shown.code == 0
        assert "--quiet" in shown.out
