import re
from html.parser import HTMLParser
from typing import Any

import pytest
from report_samples import nothing_measured, sample_picture, sample_record

from neural_polarizer.defenses import DEFENSES
from neural_polarizer.defenses.npd.presets import AIMS
from neural_polarizer.errors import BadInputError
from neural_polarizer.report.html import Picture
from neural_polarizer.report.run.page import render_run

HOSTILE = """<script>alert(1)</script>"><img src=https://evil.test/x onerror='alert(2)'>"""
BASELINES = [name for name, kind in DEFENSES.items() if not hasattr(kind, "site")]
FAMILY = [name for name in DEFENSES if name not in BASELINES]
VOID = {"meta", "img", "link", "br", "hr", "path", "circle", "rect", "polyline"}


class Page(HTMLParser):
    """The tags, attributes and visible text of a page; closing tags must match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def page(record: dict[str, Any] | None = None, *pictures: Picture) -> Page:
    parsed = Page(render_run(sample_record() if record is None else record, pictures))
    assert parsed.open == []
    return parsed


def test_everything_that_was_recorded_is_on_the_page() -> None:
    text = page(None, sample_picture()).text
    for wanted in (
        "Backdoor removed",
        "98.4% of the triggered images",
        "(\N{MINUS SIGN}0.7 points)",
        "Clean accuracy ACC",
        "Attack success rate ASR",
        "Recovered accuracy RA",
        "Defense effectiveness rating DER",
        "12,630 clean test images and 12,570 images with the trigger",
        "of radius 3 were aimed at the suspected class, or at a wrong one. They mislead the original model on 91.0%",
        "What should I do now? Use purified.safetensors in place of the original model.",
        "inserted after layer4",
        "for 5 epochs, on 1,935 clean images",
        "What this report cannot tell",
        "tries to run posix.system when loaded",
        "no images of class 12",
        "as the defender has them",
        "[0.5, 1.0, 3.0]",
        "41.2 s",
        "2.10.0",
        "ab" * 32,
        "polarizer purify 'models/badnets gtsrb.pt' --test gtsrb:test",
    ):
        assert wanted in text


def test_warnings_come_before_the_verdict() -> None:
    text = page().text
    places = [
        text.index(each)
        for each in (
            "no images of class 12",
            "tries to run",
            "Backdoor removed On",
            "How the model file was read",
            "Before and",
        )
    ]
    assert places == sorted(places)
    harmless = page(sample_record(warnings=[], threats=[], findings=["the names begin with module."])).text
    assert "How the model file was read the names begin with module. Before and after" in harmless
    assert "Read this first" not in harmless
    assert "How the model file was read" not in page(sample_record(warnings=[], threats=[], findings=[])).text


def test_the_dial_of_the_guard_is_drawn() -> None:
    points = [
        {"dial": each, "acc": 0.9, "drop": 0.01 * each, "stand_ins": 1 - each, "suspect": 0.0}
        for each in (0.0, 0.5, 1.0)
    ]
    guarded = {"points": points, "chosen": 0.5, "judges": 100, "budget": 0.01}
    text = page(sample_record(guarded=guarded)).text
    assert "Held-out stand-ins that still work" in text
    assert "most suspicious class is 0.0%; for all classes, by the evidence is 50.0% where it was chosen" in text
    assert "Learning curves" not in text  # rounds of several weights are no epochs


def test_the_page_is_a_pure_function_and_leaves_the_record_alone() -> None:
    record = sample_record()
    assert render_run(record, []) == render_run(record, [])
    assert record == sample_record()


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    parsed = page(None, sample_picture())
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    assert all(value.startswith("data:image/png;base64,") for value in parsed.values("src"))
    assert all(value.startswith("#") for value in parsed.values("href"))
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    html = render_run(sample_record(), [sample_picture()])
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))


def test_the_security_policy_comes_before_anything_it_must_govern() -> None:
    html = render_run(sample_record(), [])
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert policy in html
    assert html.index(policy) < html.index("<title>") < html.index("<style>")


def hostile_everywhere(value: Any) -> Any:
    """The same structure with every text, keys of free tables included, replaced by an attack."""
    if isinstance(value, dict):
        return {key: hostile_everywhere(item) for key, item in value.items()} | {HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [hostile_everywhere(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("method", ["npd", HOSTILE])
def test_hostile_text_stays_text_wherever_it_appears(method: str) -> None:
    record = hostile_everywhere(sample_record()) | {"method": method}
    parsed = page(record, sample_picture(title=HOSTILE, caption=HOSTILE, group=HOSTILE))
    assert "script" not in parsed.tags
    assert parsed.tags.count("img") == 1
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in parsed.text


def test_a_hostile_class_name_is_listed_as_text() -> None:
    model = sample_record()["model"] | {"classes": ["<script>alert(1)</script>"]}
    parsed = page(sample_record(model=model))
    assert "script" not in parsed.tags
    assert "0 <script>alert(1)</script>" in parsed.text


def test_hidden_characters_are_spelled_out() -> None:
    findings = ["runs \u202egpj.exe\x00\udc80 when loaded"]
    html = render_run(sample_record(findings=findings), [])
    assert html.encode()
    assert r"runs \u202egpj.exe\u0000\udc80 when loaded" in html


def test_without_test_images_the_page_says_what_is_not_known_and_how_to_supply_it() -> None:
    nothing = {"acc": None, "asr": None, "ra": None, "n_test": 0, "n_triggered": 0}
    text = page(sample_record(before=nothing, after=nothing, der=None)).text
    assert "Not known whether a backdoor is left" in text
    assert "Not known: add clean test images with --test ." in text
    assert "Not known: add images with the trigger with --triggered ." in text
    assert "mislead the purified model on 14.0% of the clean images, and the original on 91.0%" in text
    assert "Measured on" not in text


def test_what_was_not_measured_still_gives_a_page() -> None:
    text = page(nothing_measured()).text
    assert "No pictures were made." in text
    assert "not recorded (started from Python)" in text
    assert "Indirect evidence" not in text


def test_another_schema_is_refused() -> None:
    with pytest.raises(BadInputError, match="has schema 2 but this version reads schema 1"):
        render_run(sample_record(schema=2), [])


def test_what_is_not_a_png_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"picture 'a\.svg' is not a PNG; make it with contact_sheet"):
        Picture("a.svg", "", b"<svg onload='alert(1)'/>", "x")


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"epoch": 1, "loss": 0.5, "clean_accuracy": 1.0}],
        [{"epoch": 1, "loss": float("nan")}, {"epoch": 2, "loss": float("inf")}, {"epoch": 3, "loss": 1.0}],
        [{"epoch": 1, "loss": 10**400}, {"epoch": 2, "loss": 1e300}, {"loss": "oops"}],
        [{"epoch": epoch, "loss": 0.0, "surrogate_success": None} for epoch in range(300)],
    ],
    ids=["empty", "one-epoch", "not-finite", "too-large", "all-zero"],
)
def test_drawings_hold_only_finite_numbers(history: list[dict[str, Any]]) -> None:
    parsed = page(sample_record(history=history))
    drawn = " ".join(value for name, value in parsed.attributes if name in {"d", "points", "cx", "cy", "x", "y"})
    assert not re.search(r"nan|inf|none|e[+-]?\d", drawn, re.IGNORECASE)


def test_pictures_are_grouped_in_the_order_they_came() -> None:
    html = render_run(
        sample_record(),
        [
            sample_picture(title="one", group="Trigger"),
            sample_picture(title="two", group="Clean"),
            sample_picture(title="three", group="Trigger"),
        ],
    )
    places = [html.index(text) for text in ("<h3>Trigger", ">one<", ">three<", "<h3>Clean", ">two<")]
    assert places == sorted(places)
    assert html.count("<h3>Trigger") == 1


@pytest.mark.parametrize(
    ("site", "order"),
    [
        ("after:layer4", ["Earlier layers", "layer4", "Polarizer", "Later layers"]),
        ("before:fc", ["Earlier layers", "Polarizer", "fc", "Later layers"]),
    ],
)
def test_the_drawing_shows_the_new_layer_at_its_site(site: str, order: list[str]) -> None:
    html = render_run(sample_record(site=site), [])
    drawing = html[html.index('<svg class="network') :]
    places = [drawing.index(f">{title}</text>") for title in order]
    assert places == sorted(places)


def test_a_layer_of_another_structure_is_told_as_what_it_is() -> None:
    usual = sample_record()
    assert "a linear map of the feature channels" in page(usual).text
    text = page(sample_record(config={**usual["config"], "structure": "mlp"})).text
    assert "one of the structure mlp" in text
    assert "a linear map" not in text


def test_another_method_is_not_described_as_a_polarizer() -> None:
    text = page(sample_record(method="fine_tuning")).text
    assert "The defense fine_tuning was applied" in text
    assert "polarizer, was inserted" not in text


def baseline_record(method: str, **changes: Any) -> dict[str, Any]:
    """The record of a method that inserts nothing and learns nothing by epochs."""
    config = {"schedule": {"epochs": 20, "batch_size": 64}}
    return sample_record(method=method, site=None, history=[], config=config, **changes)


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_has_a_page_without_anything_of_a_polarizer(method: str) -> None:
    parsed = page(baseline_record(method))
    told, record = parsed.text.split("The full record")
    assert not re.search("polarizer(?! audit)|new layer|inserted|learning curves", told.lower())
    assert "site of the new layer" not in record
    assert "network" not in parsed.values("class")
    assert "It saw 1,935 clean images from the defender; no image with the real trigger was used." in parsed.text
    assert "Backdoor removed" in parsed.text
    assert "Suspiciously small: 1 (stop)." in parsed.text


@pytest.mark.parametrize("method", FAMILY)
def test_every_member_of_the_family_shows_its_layer(method: str) -> None:
    text = page(sample_record(method=method)).text
    assert "inserted after layer4" in text
    own = {"npd-ls": "mostly towards {}, and used in its place", "cnpd": "the network choose that class, used in place"}
    words = own.get(method, "choose {}, and used them")
    assert words.format(AIMS.get(method, "the classes that the evidence points to")) in text


def test_what_was_found_is_shown_class_by_class() -> None:
    text = page(sample_record(suspect=1)).text
    assert "class mask size flagged anomaly index" in text
    assert "0 (speed limit 20) 71.2 no 0.5" in text
    assert "1 (stop) 4.5 yes -" in text
    assert "suspected class 1 (stop)" in text
    audit: Any
    for audit in (None, {"by_class": {}, "summary": "x"}):
        assert "class by class" not in page(sample_record(audit=audit)).text


def test_poisoned_training_images_are_told() -> None:
    data = sample_record()["data"] | {"mixture": "poisoned.parquet"}
    text = page(baseline_record("ep", mixture={"n": 2500, "sha256": "00"}, data=data)).text
    assert "It saw 2,500 images of the poisoned training set." in text
    assert "poisoned, for training poisoned.parquet" in text
    assert "no image with the real trigger was used" not in text


@pytest.mark.parametrize("method", ["npd", "nc"])
def test_what_was_found_is_told_in_words(method: str) -> None:
    text = page(sample_record(method=method, audit={"summary": "Class 7 stands out.", "by_class": {}})).text
    assert "Class 7 stands out." in text


@pytest.mark.parametrize(("count", "folded"), [(12, False), (13, True)])
def test_a_table_of_many_classes_is_folded_away(count: int, folded: bool) -> None:
    text = page(sample_record(audit={"summary": "x", "by_class": {"margin": [1.5] * count}})).text
    assert (f"All {count} classes" in text) == folded
