"""The benchmark's pages in a real browser, at work; skipped without Chromium, Node and playwright-core.

To run it: ``apt-get install chromium``, and ``npm install`` in this folder.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))  # the samples are those of the report's other tests

from bench_samples import HOSTILE, hostile_suite, main_suite, swept_suite, time_suite

from neural_polarizer.report.bench.site import render_site

HERE = Path(__file__).parent
CHROMIUM, NODE = shutil.which("chromium"), shutil.which("node")
SCREENSHOTS = os.environ.get("POLARIZER_SCREENSHOTS")

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
    pytest.mark.skipif(NODE is None, reason="no node: apt-get install nodejs"),
    pytest.mark.skipif(
        not (HERE / "node_modules" / "playwright-core").is_dir(),
        reason="no playwright-core: npm install in tests/browser",
    ),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser saw on its way through the pages; it is sent there once."""
    site = tmp_path_factory.mktemp("site")
    screenshots = Path(SCREENSHOTS) if SCREENSHOTS else tmp_path_factory.mktemp("screenshots")
    layers = [f"layer{stage}.{block}.conv{conv}" for stage in (1, 2, 3, 4) for block in (0, 1) for conv in (1, 2)]
    suites = [
        main_suite(),
        time_suite(),
        swept_suite("n_clean", [500, 250, 50]),
        swept_suite("site", layers, defenses=("none", "npd")),
        hostile_suite(),
    ]
    for name, content in render_site(suites).items():
        (site / name).write_text(content, encoding="utf-8")
    done = subprocess.run(
        [str(NODE), str(HERE / "visit_site.js"), str(site), str(screenshots), str(CHROMIUM)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_browser_has_nothing_to_complain_about(seen: dict[str, Any]) -> None:
    assert seen["console"] == []
    assert seen["alerts"] == []


def test_nothing_is_fetched_but_the_pages(seen: dict[str, Any]) -> None:
    assert seen["requests"]
    assert [url for url in seen["requests"] if not url.startswith(("file:///", "data:,"))] == []


def test_a_column_sorts_up_down_and_back_by_keyboard(seen: dict[str, Any]) -> None:
    start, up, down, back = seen["sorting"]["found"]
    assert start["rows"] == ["BadNets", "Blended-A2A", "WaNet"]
    assert (up["order"], up["rows"]) == ("ascending", ["BadNets", "Blended-A2A", "WaNet"])
    assert (down["order"], down["rows"]) == ("descending", ["WaNet", "Blended-A2A", "BadNets"])
    assert (back["order"], back["rows"]) == ("none", start["rows"])
    assert [up["others"], down["others"], back["others"]] == [1, 1, 0]


def test_gaps_come_last_whichever_way_a_column_is_sorted(seen: dict[str, Any]) -> None:
    assert seen["sorting"]["gapsUp"][0] == seen["sorting"]["gapsDown"][0] == "BadNets"


def test_row_heads_sort_by_name(seen: dict[str, Any]) -> None:
    assert seen["sorting"]["namesDown"] == ["WaNet", "Blended-A2A", "BadNets"]


def test_words_find_rows_and_columns(seen: dict[str, Any]) -> None:
    both = seen["filtering"]["both"]
    assert both["rows"] == ["BadNets"]
    assert (both["columns"], both["widths"], both["values"]) == (["i-BAU"], [3], 3)
    assert both["shown"] == "1 of 3 rows and 1 of 4 columns are shown."
    assert seen["filtering"]["nothing"]["rows"] == []


def test_selects_filter_rows_and_columns_and_give_them_back(seen: dict[str, Any]) -> None:
    found = seen["filtering"]
    assert (found["selected"]["rows"], found["selected"]["columns"]) == (["WaNet"], ["NPD"])
    assert found["back"] == found["all"]
    assert found["all"]["widths"] == [3, 3, 3, 3]


def test_a_head_above_several_columns_spans_those_that_are_left(seen: dict[str, Any]) -> None:
    assert seen["narrowing"] == {"before": [12, 12, 12], "after": [3, 3, 3]}


def test_the_numbers_of_the_paper_can_be_hidden(seen: dict[str, Any]) -> None:
    assert seen["switches"]["before"] > 0
    assert seen["switches"]["after"] == 0


def test_a_number_opens_the_records_behind_it(seen: dict[str, Any]) -> None:
    found = seen["provenance"]
    assert found["name"] == "WaNet, i-BAU"
    assert len(found["ids"]) == 3
    for wanted in (
        "seed 2: failed",
        "RuntimeError: no layer",
        '"device": "cpu"',
        '"acc": 0.881',
        "2026-11-25T07:00:00",
    ):
        assert wanted in found["text"]
    assert found["focusInside"]
    assert found["openAfterEscape"] == 0
    assert found["focusBack"]


@pytest.mark.parametrize(("name", "charts"), [("table01", 4), ("table09", 1), ("sweep-n_clean", 6), ("sweep-site", 3)])
def test_plots_are_drawn_within_their_frames(seen: dict[str, Any], name: str, charts: int) -> None:
    drawn = seen["drawings"][f"{name}.html"]
    assert len(drawn) == charts
    for chart in drawn:
        assert chart["width"] > 250
        assert chart["height"] > 100
        assert chart["shapes"] > 1
        assert chart["escaping"] == []


def test_colours_follow_the_system_until_they_are_chosen(seen: dict[str, Any]) -> None:
    found = seen["colours"]
    assert found["light"] != found["dark"]
    assert found["toggled"] == found["reloaded"] == found["dark"]


def test_row_heads_stay_in_sight(seen: dict[str, Any]) -> None:
    assert seen["sticking"]["moved"] == 300
    assert abs(seen["sticking"]["shift"]) < 1


def test_no_page_is_wider_than_a_phone(seen: dict[str, Any]) -> None:
    assert set(seen["phone"].values()) == {0}


def test_without_script_records_still_open_and_dead_controls_are_hidden(seen: dict[str, Any]) -> None:
    assert seen["withoutScript"] == {"dialogs": 1, "controls": 0}


def test_a_hostile_name_is_shown_as_text(seen: dict[str, Any]) -> None:
    assert seen["hostile"]["images"] == 0
    assert HOSTILE in seen["hostile"]["text"]
