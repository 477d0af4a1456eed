"""Help on one screen, and the reference that is made from the same options."""

from pathlib import Path
from runpy import run_path

import pytest

from run_files import run

ROOT = Path(__file__).parents[1]
COMMANDS = ["demo", "purify", "audit", "evaluate", "export", "verify", "sites", "attack"]
GROUPS = [["bench"], [], *(["bench", each] for each in ("run", "status", "report", "list"))]
FIRST = {
    "purify": ["--clean", "--out", "--arch"],
    "audit": ["--clean", "--out", "--purified"],
    "attack": ["--data", "--test", "--out"],
    "evaluate": ["--test", "--triggered", "--json"],
    "export": ["--to", "--out", "--images"],
    "verify": ["--test", "--clean", "--triggered"],
    "bench run": ["--data", "--models", "--out"],
}


@pytest.mark.parametrize("words", [*([each] for each in COMMANDS), *GROUPS], ids=" ".join)
def test_help_fits_one_screen(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = run(capsys, *words, "--help").out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert [line for line in lines if "\N{HORIZONTAL ELLIPSIS}" in line] == []


@pytest.mark.parametrize("command", FIRST)
def test_the_most_used_options_come_first(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = [
        line.split()[0] for line in run(capsys, *command.split(), "--help").out.splitlines() if line.startswith("  --")
    ]
    assert shown[:3] == FIRST[command]


def test_whole_texts_are_a_word_away(capsys: pytest.CaptureFixture[str]) -> None:
    assert "PACKAGE.MODULE:NAME" not in run(capsys, "purify", "--help").out
    assert "PACKAGE.MODULE:NAME" in run(capsys, "purify", "--help-all").out


def test_the_reference_is_made_from_the_options() -> None:
    page = run_path(str(ROOT / ".ci" / "cli_reference.py"))["page"]
    kept = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert kept == page(), "run: python .ci/cli_reference.py docs/reference/cli.md"
