"""Every page of the built documentation in a real browser: both themes, a desktop and a phone.

Skipped without Chromium, Node, playwright-core (see test_site_in_browser.py) and a built site (``make docs``).
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SITE = HERE.parents[1] / "runs" / "site-docs"
CHROMIUM, NODE = shutil.which("chromium"), shutil.which("node")
SCREENSHOTS = os.environ.get("POLARIZER_SCREENSHOTS")

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None or NODE is None, reason="no browser or no node"),
    pytest.mark.skipif(not (HERE / "node_modules" / "playwright-core").is_dir(), reason="no playwright-core"),
    pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="no built site: make docs"),
]


def test_every_page_opens_offline_and_fits(tmp_path: Path) -> None:
    place = Path(SCREENSHOTS) if SCREENSHOTS else tmp_path
    command = [str(NODE), str(HERE / "visit_docs.js"), str(SITE), str(place), str(CHROMIUM)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["pages"] >= 4 * 40
    assert seen["requests"] == []
    assert seen["console"] == []
    assert seen["wide"] == []
