"""What commands print: links where the terminal takes them, and paths where it does not."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from neural_polarizer.cli import output


def printed(monkeypatch: pytest.MonkeyPatch, path: Path, *, terminal: bool) -> str:
    file = io.StringIO()
    monkeypatch.setattr(output, "console", Console(file=file, force_terminal=terminal, color_system="standard"))
    output.show_report(path)
    return file.getvalue()


def test_a_report_is_a_link_in_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a report.html"
    text = printed(monkeypatch, path, terminal=True)
    assert f";{path.as_uri()}\x1b\\{path}\x1b]8;;\x1b\\" in text


def test_a_report_is_a_path_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / ("long" * 40) / "report.html"
    assert printed(monkeypatch, path, terminal=False) == f"report: {path}\n"
