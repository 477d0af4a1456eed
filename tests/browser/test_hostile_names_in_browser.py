"""Names, texts and files that attack the reader, in a real browser: they are shown, and nothing runs.

Skipped where test_site_in_browser.py is.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))  # the samples are those of the report's other tests

from bench_samples import hostile_suite
from report_samples import sample_picture, sample_record

from neural_polarizer.report.bench.site import render_site
from neural_polarizer.report.run.audit_page import render_audit
from neural_polarizer.report.run.page import render_run

HERE = Path(__file__).parent
CHROMIUM, NODE = shutil.which("chromium"), shutil.which("node")
ATTACKS = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(2)</script>',
    "javascript:alert(3)",
    "' onmouseover='alert(4)",
    "</title></style><script>alert(5)</script>",
    "<a href=javascript:alert(6)>here</a>",
    "<svg onload=alert(7)>",
    "photo\u202egnp.exe\u2066",
)
ON_THE_SITE = (1, 2, 7)  # of these; the first is in test_site_in_browser.py
SHOWN = tuple(text.replace("\u202e", r"\u202e").replace("\u2066", r"\u2066") for text in ATTACKS)

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
    pytest.mark.skipif(NODE is None, reason="no node: apt-get install nodejs"),
    pytest.mark.skipif(
        not (HERE / "node_modules" / "playwright-core").is_dir(),
        reason="no playwright-core: npm install in tests/browser",
    ),
]


def everywhere(value: Any, text: str) -> Any:
    """The same structure with ``text`` for every text, and as one more name in every table."""
    if isinstance(value, dict):
        return {key: everywhere(item, text) for key, item in value.items()} | {text: text}
    if isinstance(value, list):
        return [everywhere(item, text) for item in value]
    return text if isinstance(value, str) else value


def report(text: str) -> str:
    """The report about a run in which everything is called ``text``."""
    record = everywhere(sample_record(), text)
    record["audit"]["by_class"] |= {text: [0.5, 1.0, 2.0]}
    record |= {"method": "npd", "suspect": 1}  # the class that is named in the story
    return render_run(record, [sample_picture(title=text, caption=text, group=text)])


def audit(text: str) -> str:
    """The page of an audit in which everything is called ``text``."""
    values = {"norm_dense": [1.0, 2.0, 3.0]}
    part = {"by_class": values, "p_value": 0.01, "level": 0.05, "suspect": 1, "likeliest": 1, "verdict": "backdoor"}
    part |= {"posterior": 0.9, "prior": 0.5, "accuracy": 0.9, "reason": None, "makes_sense": True, "nameable": {}}
    named = {"path": text, "architecture": text, "classes": [text] * 3}
    shown: dict[str, Any] = {
        "threats": [text],
        "findings": [text],
        "data": {"clean": text},
        "versions": {text: text},
        "model_sha256": text,
    }
    shown |= {"clean_sha256": text, "n_clean": 9, "seed": 0}
    purified = {**part, "path": text, "model_sha256": text, "spectrum": None}
    record = {**part, **shown, "model": named, "purified": purified}
    return render_audit(record, [sample_picture(title=text, caption=text, group=text)])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser saw on all pages; it is sent there once."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, text in enumerate(ATTACKS):
        (folder / f"report-{number}.html").write_text(report(text), encoding="utf-8")
        (folder / f"audit-{number}.html").write_text(audit(text), encoding="utf-8")
    for name, content in render_site([hostile_suite(ATTACKS[number]) for number in ON_THE_SITE]).items():
        (folder / name).write_text(content, encoding="utf-8")
    done = subprocess.run(
        [str(NODE), str(HERE / "visit_hostile.js"), str(folder), str(CHROMIUM)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_runs_and_nothing_is_fetched(seen: dict[str, Any]) -> None:
    assert (seen["alerts"], seen["console"]) == ([], [])
    assert [url for url in seen["requests"] if not url.startswith(("file:///", "data:"))] == []
    assert sum(url.startswith("file:///") for url in seen["requests"]) == len(seen["pages"])


@pytest.mark.parametrize(("page", "times"), [("report", 20), ("audit", 14)])
@pytest.mark.parametrize("number", range(len(ATTACKS)))
def test_a_report_shows_the_text_and_has_no_parts_made_of_it(
    seen: dict[str, Any], number: int, page: str, times: int
) -> None:
    found = seen["pages"][f"{page}-{number}.html"]
    assert found["text"].count(SHOWN[number]) > times
    assert found["scripts"] == 0
    assert found["pictures"] == ["data:image/png;base64,"]
    assert all(link.startswith("#") for link in found["links"])
    assert found["handlers"] == []
    assert SHOWN[number].rpartition("/")[2] in found["title"]


def test_the_pages_of_the_benchmark_show_the_texts(seen: dict[str, Any]) -> None:
    pages = {name: page for name, page in seen["pages"].items() if not name.startswith(("report-", "audit-"))}
    assert len(pages) == len(ON_THE_SITE) + 1
    for text in (SHOWN[number] for number in ON_THE_SITE):
        assert text in pages["index.html"]["text"]
        assert sum(page["text"].count(text) > 5 for page in pages.values()) == 1
    for page in pages.values():
        assert (page["scripts"], page["handlers"]) == (1, [])
        assert not [link for link in page["links"] if link.lower().lstrip().startswith("javascript:")]
        assert set(page["pictures"]) <= {"data:image/png;base64,"}
