"""The benchmark's web pages: complete, well-formed, self-contained, and safe with hostile names."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from bench_samples import FAILURE, HOSTILE, hostile_suite, main_suite, swept_suite, time_suite
from report_samples import sample_picture

from neural_polarizer.report.bench.results import Entry, Label, Layout, SuiteResult
from neural_polarizer.report.bench.site import render_site
from neural_polarizer.report.bench.tabulate import make_table

VOID = {"meta", "img", "link", "br", "hr", "input"}
SUITES = [
    main_suite(),
    time_suite(),
    swept_suite("n_clean", [500, 50]),
    swept_suite("site", ["layer1.0.conv1", "layer2.0.conv1"], defenses=("none", "npd")),
    main_suite(name="empty", entries=(), paper=()),
]


class Page(HTMLParser):
    """The elements, with their attributes, and the visible text of a page; closing tags must match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def page(suite: SuiteResult) -> Page:
    files = render_site([suite])
    (name,) = [name for name in files if name.endswith(".html") and name != "index.html"]
    return Page(files[name])


def test_each_suite_has_a_page_and_its_table_in_three_formats() -> None:
    assert set(render_site([main_suite(), time_suite()])) == {
        "index.html",
        *(f"{name}.{ending}" for name in ("table01", "table09") for ending in ("html", "csv", "md", "tex")),
    }


def test_names_of_files_are_safe_and_used_once() -> None:
    names = ["../../etc/passwd", HOSTILE, "index", "Table01", "table01", "..."]
    files = render_site([main_suite(name=name) for name in names])
    assert len(files) == 1 + 4 * len(names)
    assert all(re.fullmatch(r"[a-z0-9_][a-z0-9_-]*\.\w+", name) for name in files)


def test_the_overview_counts_what_is_done_failed_and_missing() -> None:
    index = Page(render_site([main_suite(), time_suite()])["index.html"])
    assert "23 of 30 runs done 4 failed 3 not run" in index.text
    assert "4 of 4 runs done" in index.text
    assert "Best mean DER: NPD with 96.00% (paper 96.41%)." in index.text
    assert {"table01.html", "table09.html"} <= set(index.values("href"))


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_mean_on_the_page_is_one_of_the_table_and_none_is_missing(suite: SuiteResult) -> None:
    shown = sorted(float(value) for value in page(suite).values("data-value"))
    figures = [figure for cell in make_table(suite).cells.values() for figure in cell.figures.values()]
    assert shown == sorted(figure.mean for figure in figures if figure.mean is not None)


def test_mean_spread_runs_paper_and_difference_are_readable() -> None:
    text = page(main_suite()).text
    assert "91.00 second best ± 0.10 (3) paper 88.93 +2.07" in text
    assert "1.00 best ± 0.20 (3) paper 1.26 \N{MINUS SIGN}0.26" in text
    assert "not run paper 90.65" in text
    assert "failed" in text
    assert "(2 of 3)" in text
    assert f"WaNet, i-BAU, victim seed 0, seed 2: {FAILURE}" in text


def test_a_difference_is_good_or_bad_by_what_is_better() -> None:
    html = render_site([main_suite()])["table01.html"]
    assert 'class="delta good">+2.07<' in html  # ACC
    assert 'class="delta good">\N{MINUS SIGN}0.26<' in html  # ASR
    assert 'class="delta good">+1.18<' in html  # ACC of the undefended model
    assert 'class="delta bad">+1.21<' in html  # its ASR


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_record_is_a_click_away(suite: SuiteResult) -> None:
    parsed = page(suite)
    targets = set(parsed.values("popovertarget"))
    dialogs = [attributes["id"] for tag, attributes in parsed.elements if tag == "dialog"]
    assert targets == set(dialogs)
    assert len(dialogs) == len(make_table(suite).measured)
    for entry in suite.entries:
        if entry.record is not None:
            assert f"Record {entry.record['id']}" in parsed.text
            assert json.dumps(entry.record["provenance"]["started"]) in parsed.text


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_ids_are_used_once_and_references_lead_somewhere(suite: SuiteResult) -> None:
    parsed = page(suite)
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert {name for value in parsed.values("aria-labelledby") for name in value.split()} <= set(ids)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_the_filters_offer_the_labels_that_the_rows_and_columns_have(suite: SuiteResult) -> None:
    parsed = page(suite)
    offered = {text for tag, attributes in parsed.elements if tag == "option" and (text := attributes["value"])}
    had = {text for value in parsed.values("data-labels") for text in json.loads(value).values()}
    assert offered <= had
    table = make_table(suite)
    varied = [axis for axis in table.axes if len({cell.labels[axis] for cell in table.measured}) > 1]
    assert parsed.values("data-axis") == varied


def test_the_page_loads_nothing_and_runs_only_its_own_script() -> None:
    for name, content in render_site(SUITES).items():
        if not name.endswith(".html"):
            continue
        parsed = Page(content)
        assert not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in parsed.elements}
        assert not [
            key for _, attributes in parsed.elements for key in attributes if key.startswith("on") or key == "style"
        ]
        assert all(re.fullmatch(r"data:,|[a-z0-9_-]+\.(html|csv|md|tex)", value) for value in parsed.values("href"))
        assert parsed.values("src") == []
        assert not re.search(r"https?:|@import|url\(", content)


def test_the_policy_lets_exactly_the_script_and_the_style_of_the_page_through() -> None:
    html = render_site([main_suite()])["table01.html"]
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (inlined,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inlined.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert html.index("Content-Security-Policy") < html.index("<style>")


@pytest.mark.long
@pytest.mark.parametrize("text", [HOSTILE, """"><script>alert(1)</script>""", "'\" onclick=alert(1) x='", "{{ 7*7 }}"])
def test_hostile_text_stays_text_wherever_it_appears(text: str) -> None:
    files = render_site([hostile_suite(text)], {text: [sample_picture(title=text, caption=text, group=text)]})
    harmless = render_site([hostile_suite("x")], {"x": [sample_picture()]})
    pages = {name: Page(content) for name, content in files.items() if name.endswith(".html")}
    expected = {name: Page(content) for name, content in harmless.items() if name.endswith(".html")}
    for parsed, plain in zip(pages.values(), expected.values(), strict=True):
        assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in plain.elements]
        assert [list(attributes) for _, attributes in parsed.elements] == [list(each) for _, each in plain.elements]
        assert " ".join(text.split()) in parsed.text


def test_hidden_characters_are_spelled_out() -> None:
    for content in render_site([hostile_suite("a\u202eb\udc80")]).values():
        assert content.encode()
        assert "\u202e" not in content


def test_plots_are_drawn_with_finite_numbers_and_described() -> None:
    for suite in SUITES[:-1]:
        parsed = page(suite)
        drawn = " ".join(
            value for name in ("d", "points", "x", "y", "width", "transform") for value in parsed.values(name)
        )
        assert not re.search(r"nan|inf|none|e[+-]?\d", drawn, re.IGNORECASE)
        charts = [attributes for tag, attributes in parsed.elements if attributes.get("role") == "img"]
        assert charts
        assert sum(tag == "desc" for tag, _ in parsed.elements) == len(charts)


def test_a_record_that_stands_in_several_cells_is_computed_once() -> None:
    (entry, *_) = swept_suite("n_clean", [500]).entries
    again = Entry({**entry.labels, "n_clean": 50}, entry.record)
    assert "computed for 55.1 s" in page(main_suite(entries=(entry, again))).text


def test_the_overview_says_how_far_the_rates_are_from_the_paper() -> None:
    text = Page(render_site([main_suite(), time_suite()])["index.html"]).text
    # ACC: 93.00 against 91.82 and 91.00 against 88.93; ASR: 95.00 against 93.79 and 1.00 against 1.26
    assert (
        "Mean distance to the paper: ACC 1.63 points (2 cells), ASR 0.73 points (2 cells), DER 1.18 points (1 cell)."
        in text
    )
    assert "Time" not in text


def test_a_suite_of_another_kind_has_a_page_as_well() -> None:
    own: dict[str, Label] = {"defense": "none", "seed": 0}
    layout = Layout(("attack",), ("defense",), ("covariance_after",))
    found = {**(main_suite().entries[0].record or {}), "result": {"covariance_after": 1.25e-9}}
    text = page(main_suite(entries=(Entry(own, found),), layout=layout, paper=())).text
    assert "covariance after" in text
    assert "1.25e-09 (1)" in text


def test_pictures_stand_on_the_page_of_their_suite() -> None:
    files = render_site([main_suite(), time_suite()], {"table09": [sample_picture(title="A saliency map")]})
    assert "A saliency map" in files["table09.html"]
    assert "A saliency map" not in files["table01.html"]


def test_the_site_is_a_pure_function() -> None:
    assert render_site(SUITES) == render_site(SUITES)
