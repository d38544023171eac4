from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sample import sample_report

from danlu.evaluate.compare import Answer
from danlu.evaluate.drawing import bar, line_chart, nice_ticks, smooth, spread_rows
from danlu.evaluate.report import catalogue, render_report, write_report

pytest.importorskip("jieba")
pytest.importorskip("sacrebleu")

VOID = {"meta", "link", "input", "br", "path", "rect", "line"}


class Reader(HTMLParser):
    """Collects tags and text, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def report():
    return sample_report()


@pytest.fixture(scope="module")
def page(report):
    return render_report(report)


def test_the_page_is_well_formed_and_needs_nothing_else(page):
    reader = read(page)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert {value["href"] for tag, value in reader.tags if tag == "link"} == {"data:,"}
    assert "Content-Security-Policy" in page


def test_both_languages_are_on_the_page_and_one_is_chosen(report, page):
    for language, chosen, title in (
        ("zh", "language-zh", "SmolLM2 学会了丹炉的词 · danlu"),
        ("en", "language-en", "SmolLM2 learned danlu's words · danlu"),
    ):
        reader = read(render_report(report, language=language))
        assert [value["id"] for tag, value in reader.tags if tag == "input" and "checked" in value] == [chosen]
        assert title in reader.words
    counts = [
        sum(value.get("lang") == code and value.get("class") == "t" for _, value in read(page).tags)
        for code in ("zh-CN", "en")
    ]
    assert counts[0] == counts[1] > 30


def test_every_number_of_the_table_is_there(report, page):
    text = " ".join(read(page).words)
    for change in report.comparison.changes:
        assert change.name in text
        assert f"{change.before.value:.2f}" in text
        assert f"{change.after.value:.2f}" in text
        assert change.before.protocol in text
    assert "< 0.001" in text
    assert "McNemar" in text
    for value in report.facts.values():
        assert value in text


def test_what_models_say_cannot_become_markup(report):
    bad = '<script>alert(1)</script><img src=x onerror=y>{{ 7*7 }} & "quoted"'
    comparison = replace(report.comparison, answers=(Answer(bad, bad, bad, bad),))
    page = render_report(replace(report, comparison=comparison, title=bad, facts={"command": bad, bad: bad}))
    reader = read(page)
    assert not {"script", "img"} & {tag for tag, _ in reader.tags}
    assert "".join(reader.words).count("<script>alert(1)</script>") >= 7


def test_ten_answers_with_reference_before_and_after(page):
    reader = read(page)
    assert sum(tag == "h3" for tag, _ in reader.tags) == 10
    boxes = [value.get("class") for tag, value in reader.tags if tag == "div"]
    assert boxes.count("reference") == boxes.count("before") == boxes.count("after") == 10
    assert "（空）" in "".join(reader.words)


def test_only_long_answers_are_stops_for_the_tab_key(report, page):
    long = Answer("q", "短", "长" * 400, "短")
    comparison = replace(report.comparison, answers=(long,))
    stops = [
        value for _, value in read(render_report(replace(report, comparison=comparison))).tags if "tabindex" in value
    ]
    assert [value["class"] for value in stops] == ["text long"]
    assert not [value for _, value in read(page).tags if "tabindex" in value]


def test_the_curve_has_axis_title_description_and_a_table_beside_it(report, page):
    reader = read(page)
    names = [value.get("id") for _, value in reader.tags]
    assert "loss-title" in names
    assert "loss-desc" in names
    text = "".join(reader.words)
    assert f"{report.losses[0][1]:.4f}" in text
    assert f"{report.losses[-1][1]:.4f}" in text


def test_a_report_without_losses_or_answers_says_so(report):
    bare = replace(report, losses=(), eval_losses=(), comparison=replace(report.comparison, answers=()), facts=None)
    text = "".join(read(render_report(bare)).words)
    assert "没有记录到损失曲线" in text
    assert "答案对照" not in text


def test_an_unknown_headline_is_an_error(report):
    with pytest.raises(KeyError, match="no metric 'loss'"):
        render_report(replace(report, headline="loss"))


def test_the_file_is_written_whole(report, tmp_path):
    write_report(tmp_path / "new" / "report.html", report, language="en")
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == render_report(report, language="en")


def test_the_catalogue_has_the_same_keys_and_gaps_in_both_languages():
    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", frozenset(re.findall(r"\{(\w+)\}", value))

    words = catalogue()
    assert dict(flat(words["zh"])) == dict(flat(words["en"]))
    assert all(value.strip() for value in flat(words["en"]) for value in value[:1])


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 10))
def test_ticks_enclose_and_are_round(low, span, count):
    ticks = nice_ticks(low, low + span, count)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= low + span - 1e-6 * step
    assert 2 <= len(ticks) <= count + 3
    if step > 1e-9:
        leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(leading - nice) for nice in (1, 2, 2.5, 5, 10)) < 1e-3


def test_ticks_by_hand():
    assert nice_ticks(0, 3, 5) == [0, 1, 2, 3]
    assert nice_ticks(0.1, 0.9, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_line_chart_places_points_in_percent():
    chart = line_chart([(0, 4.0), (5, 2.0), (10, 0.0)], [(10, 1.0)])
    assert chart is not None
    assert chart.raw == "M0.0 0.0 L50.0 50.0 L100.0 100.0"
    assert chart.smooth == ""
    assert chart.dots == ((100.0, 75.0),)
    assert [tick.label for tick in chart.y_ticks] == ["0", "1", "2", "3", "4"]
    assert [tick.place for tick in chart.x_ticks] == [0, 20, 40, 60, 80, 100]


def test_line_chart_survives_bad_values():
    assert line_chart([]) is None
    assert line_chart([(1, 2.0)]) is None
    assert line_chart([(1, math.nan), (2, math.inf), (3, 1.0)]) is None
    flat = line_chart([(1, 2.0), (2, 2.0)])
    assert flat is not None
    assert "nan" not in flat.raw


def test_smoothing_keeps_constants_and_does_not_lag():
    assert [value for _, value in smooth([(step, 2.5) for step in range(40)])] == pytest.approx([2.5] * 40)
    line = smooth([(step, float(step)) for step in range(60)])
    assert line[30][1] == pytest.approx(30.0)


@given(st.floats(allow_nan=True), st.floats(), st.floats())
def test_bars_stay_inside_the_plot(value, low, high):
    found = bar(value, low, high, 100.0)
    assert all(0 <= number <= 100 for number in (found.length, found.low, found.high))
    assert bar(0.25, 0.0, 0.5, 1.0).length == 25.0


def test_a_table_beside_the_curve_is_short():
    points = [(step, 1.0) for step in range(100)]
    rows = spread_rows(points, 8)
    assert len(rows) == 8
    assert (rows[0], rows[-1]) == (points[0], points[-1])
    assert spread_rows(points[:3], 8) == points[:3]
