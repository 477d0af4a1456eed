"""README and site: their blocks run, their links lead somewhere, and they keep to the rules of user pages."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from docs_blocks import Step, difference, run_steps, steps_of
from neural_polarizer.cli.main import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
USER = sorted(
    [ROOT / "README.md", DOCS / "index.md"]
    + [path for part in ("tutorials", "how-to", "reference", "explanation") for path in (DOCS / part).glob("*.md")]
)
RUN = [page for page in USER if steps_of(page)]
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
FORBIDDEN = {
    "today": r"\btoday\b",
    "by hand": r"\bby hand\b",
    "a time without a date": r"\b(then|formerly|used to be)\b",
    "'alone' for 'only'": r"\balone\b",
    "the layer's input": r"\bwhat enters\b",
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    """The cells of a Jupyter notebook."""
    cells: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return cells


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_every_block_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARIZER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    run_steps(steps_of(page), tmp_path)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_notebooks_are_kept_without_output(notebook: Path) -> None:
    cells = cells_of(notebook)
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert len({cell["id"] for cell in cells}) == len(cells)
    targets = re.findall(r"\]\(([^)\s]+)\)", "".join("".join(cell["source"]) for cell in cells))
    assert [each for each in targets if not (notebook.parent / each).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_the_code_of_notebooks_runs_from_top_to_bottom(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARIZER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    code = ["".join(cell["source"]) for cell in cells_of(notebook) if cell["cell_type"] == "code"]
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_blocks_are_found_and_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ a --b\nACC 97.1%\n...\nend\n$ c\n```\n```python\nimport x\n```\n```sh\nd\n```\n")
    assert steps_of(page) == [
        Step("shell", "a --b", "ACC 97.1%\n...\nend\n"),
        Step("shell", "c"),
        Step("python", "import x\n"),
    ]
    assert difference("ACC 97.1%\n...\nend", "ACC 96%\nx\ny\nend") is None
    assert difference("ACC 97.1%\nend", "ACC 96%\nx\nend") is not None
    assert difference("RA 1", "ACC 1") is not None
    assert difference("a b\nc\n", "a\nb c\n") is None


def test_user_pages_are_short_enough() -> None:
    words = {page: len(re.findall(r"\S*\w\S*", page.read_text(encoding="utf-8"))) for page in USER}
    assert sum(words.values()) < 14_000
    assert max(count for page, count in words.items() if page.name != "cli.md") < 1_500


@pytest.mark.parametrize("page", USER, ids=name_of)
def test_user_pages_hold_no_history_and_call_things_by_their_names(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [name for name, pattern in FORBIDDEN.items() if re.search(pattern, text, re.IGNORECASE)] == []


@pytest.mark.parametrize("page", [*USER, *sorted((DOCS / "research").glob("*.md"))], ids=name_of)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [each.partition("#")[0] for each in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [each for each in targets if each and not each.startswith(("http://", "https://", "mailto:"))]
    assert [each for each in local if not (page.parent / each).exists()] == []


@pytest.mark.parametrize("page", USER, ids=name_of)
def test_commands_on_the_pages_exist_and_have_these_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:\$ )?polarizer (.+)$", text, re.MULTILINE):
        command: Any = typer.main.get_command(app)
        words = shlex.split(line, comments=True)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands"), line
        known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


def test_the_ten_questions_of_contributors_lead_to_what_they_ask_for() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Where is what")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+\?) \| \[(.+)\]\((.+)\) \| [^`|]*`(.+?)`", section, re.MULTILINE)
    assert len(rows) == len(section.strip().split("\n|")) - 2 == 10
    for question, shown, path, name in rows:
        assert path.removeprefix("src/neural_polarizer/") == shown
        assert (ROOT / path).is_file(), question
        assert name in (ROOT / path).read_text(encoding="utf-8"), question
