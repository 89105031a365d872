"""The report: it holds what it shows, says what it assumes, and asks nothing of the network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lab_tape import OPEN, bar, script, tape, trade
from tapelab.errors import NoData
from tapelab.lab import Result, backtest, compare, rules, strategies
from tapelab.market.clock import DAY, HOUR, SECOND
from tapelab.picture import charts, report, words
from tapelab.picture.run import Run
from test_lab_result import IN_AND_OUT, TICKS, Small

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<script>alert('1')</script>&\"<b>"


class _Page(HTMLParser):
    """What a page refers to, and the text that it shows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside.append(tag if not dict(attrs).get("type") else str(dict(attrs)["type"]))
        names = ("src", "href", "action", "data", "poster", "srcset")
        self.addresses += [value or "" for name, value in attrs if name in names]

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside[:-1]

    def handle_data(self, data: str) -> None:
        within = self.inside[-1] if self.inside else ""
        if within == "application/json":
            self.figures.append(json.loads(data))
        elif within not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def result() -> Result:
    data = Small(TICKS, simulated=True, quote_size_unit="lots")
    return backtest(IN_AND_OUT, data, fees=rules.PerShare(0.01))


@pytest.fixture(scope="module")
def three() -> str:
    entrants = [IN_AND_OUT, strategies.MarketMaker(timer=1.0), strategies.MovingAverageCross]
    results = compare(entrants, Small(TICKS)).results
    return report.html([each.as_run() for each in results])


def test_a_report_says_what_when_where_and_what_it_assumes(result: Result) -> None:
    page = _Page(report.html([result.as_run()]))
    assert "Script on small" in page.text
    assert "Wed 9 Oct 2013, 09:30:00 to 09:30:50" in page.text
    assert "New York" in page.text
    assert "5 quotes, 1 trades" in page.text
    assert "127.0.0.1-9000" in page.text
    assert "+$25.80" in page.text
    for assumption in result.assumptions:
        assert " ".join(assumption.text.split()) in page.text
        assert assumption.name in page.text
    assert "connection lost" in page.text
    assert "Needs daily returns of at least 20 sessions" in page.text
    assert '"class": "Script"' in page.text
    assert len(page.figures) == 2


def test_a_simulated_market_is_told_by_a_banner_and_in_every_chart(result: Result, three: str) -> None:
    page = _Page(report.html([result.as_run()]))
    assert "Simulated These prices were made up" in page.text
    assert all("SIMULATED" in json.dumps(figure) for figure in page.figures)
    real = _Page(three)
    assert "made up" not in real.text
    assert not any("SIMULATED" in json.dumps(figure) for figure in real.figures)


def test_several_runs_stand_over_each_other_and_side_by_side(three: str) -> None:
    page = _Page(three)
    assert len(page.figures) == 4  # one of equity, one of prices for each
    names = [trace["name"] for trace in page.figures[0]["data"][:6:2]]
    assert names == ["Script", "MarketMaker", "MovingAverageCross"]
    assert "Side by side" in page.text
    assert page.text.count("TakerAtTouch, version 1") == 1  # what all share is said once
    assert "built from the prints" in page.text.lower()


def test_several_datasets_follow_each_other_below_a_table_of_all() -> None:
    places = [Small(TICKS, "calm"), Small(TICKS, "wild", simulated=True)]
    page = _Page(
        report.html([r.as_run() for r in compare([IN_AND_OUT, strategies.MarketMaker], places).results])
    )
    assert "All together" in page.text
    assert "The prices of wild were made up" in page.text
    assert len(page.figures) == 6


def test_a_strategy_that_runs_twice_is_told_apart_by_its_parameters() -> None:
    makers = [strategies.MarketMaker(size=100.0), strategies.MarketMaker(size=200.0)]
    page = _Page(report.html([r.as_run() for r in compare(makers, Small(TICKS)).results]))
    assert "MarketMaker (size 100)" in page.text
    assert "MarketMaker (size 200)" in page.text


def test_the_library_is_inside_once_and_nothing_points_outside(three: str) -> None:
    page = _Page(three)
    assert page.addresses == ["data:,"]
    assert not {"link", "img", "iframe", "object", "embed"} & set(page.tags) - {"link"}
    assert three.count("plotly.js v") == 1
    assert "@import" not in three.split("</style>")[0]
    assert not re.search(r"url\((?!data:)", three.split("</style>")[0])


def test_names_cannot_smuggle_anything_into_a_report() -> None:
    data = Small(TICKS, name=HOSTILE, tape=HOSTILE, quote_size_unit=HOSTILE)
    run = backtest(IN_AND_OUT, data).as_run()
    gap = {"start": OPEN, "end": OPEN + 1, "cause": HOSTILE, "channels": []}
    hostile = Run(
        HOSTILE,
        {HOSTILE: HOSTILE},
        run.dataset
        | {
            "symbols": [HOSTILE],
            "gaps": [gap],
        },
        run.metrics,
        {HOSTILE: HOSTILE},
        [*run.assumptions, (HOSTILE, HOSTILE, HOSTILE)],
        {"x": HOSTILE},
        run.tables,
    )
    html = report.html([hostile])
    assert "<script>alert" not in html
    page = _Page(html)
    assert page.tags.count("script") == 4  # two figures, the library, the page's own
    assert "b" not in page.tags
    assert HOSTILE in page.text


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(NoData, match="no result to report"):
        report.html([])


def test_a_run_without_a_fill_has_a_report() -> None:
    page = _Page(report.html([backtest(script(), TICKS).as_run()]))
    assert "Nothing went from flat to flat" in page.text


def test_a_report_is_written_whole(result: Result, tmp_path: Path) -> None:
    path = result.to_html(tmp_path / "new" / "report.html")
    assert path.read_text("utf-8").startswith("<!doctype html>")
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    assert compare(IN_AND_OUT, Small(TICKS)).to_html(tmp_path / "all.html").stat().st_size > 10**6


def test_nights_are_left_out_of_the_axis() -> None:
    day = 24 * 60
    bars = [bar(d * day + m, 10, 11, 9, 10 + m % 2) for d in range(3) for m in range(30)]
    figure = charts.equity([backtest(script(at_1=lambda s: s.buy("AAA", 1)), tape(*bars)).as_run()])
    breaks = figure.layout.xaxis.rangebreaks
    # From the end of the last minute of a day to the start of the next, on New York's clock.
    assert [each.bounds for each in breaks] == [
        ("2013-10-09T10:00:00.000", "2013-10-10T09:30:00.000"),
        ("2013-10-10T10:00:00.000", "2013-10-11T09:30:00.000"),
    ]


def test_a_figure_for_a_notebook_shows_equity_drawdown_and_fills(result: Result) -> None:
    figure = result.plot()
    names = [trace.name for trace in figure.data]
    assert names == ["Script", "Script", "AAA", "bought", "sold"]
    assert figure.layout.title.text == "Script on small · SIMULATED"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1204.5, "gain", "+$1,204.50"),
        (-1204.5, "gain", "−$1,204.50"),
        (-0.001, "gain", "$0.00"),
        (0.0, "gain", "$0.00"),
        (12345678.9, "money", "$12,345,679"),
        (-3.14, "bp", "−3.1 bp"),
        (0.617, "percent", "62 %"),
        (0.004, "percent", "< 1 %"),
        (0, "percent", "0 %"),
        (1.836, "ratio", "1.84"),
        (1234, "count", "1,234"),
        (0.25, "shares", "0.25"),
        (None, "money", "–"),
    ],
)
def test_numbers_read_as_people_write_them(value: float | None, unit: words.Unit, text: str) -> None:
    assert words.written(value, unit, "$" if unit in ("gain", "money") else "") == text


@pytest.mark.parametrize(
    ("low", "high", "places"), [(24, 24.36, 2), (1.05, 1.0512, 4), (9, 9, 2), (0, 500, 2)]
)
def test_prices_on_an_axis_have_as_many_decimals_as_tell_them_apart(
    low: float, high: float, places: int
) -> None:
    assert words.digits(low, high) == places


def test_times_read_as_people_write_them() -> None:
    assert words.moment(OPEN, "America/New_York") == "9 Oct 2013, 09:30:00"
    assert words.moment(OPEN + 5_000_000, "UTC", date=False, fraction=True) == "13:30:00.005"
    assert words.span(OPEN, OPEN + 6 * HOUR, "America/New_York") == "Wed 9 Oct 2013, 09:30 to 15:30"
    assert words.span(OPEN, OPEN + 3 * DAY, "America/New_York") == "9 Oct 2013 to 12 Oct 2013"
    assert [words.duration(n) for n in (SECOND // 2, 90 * SECOND, 2 * HOUR, 27 * HOUR)] == [
        "500 ms", "1 min 30 s", "2 h 00 min", "1 d 03 h",
    ]  # fmt: skip
    assert words.listed(["A", "B", "C"]) == "A, B and C"
    assert [words.price(p) for p in (10.0, 10.5, 10.125, 0.0001, None)] == [
        "10.00", "10.50", "10.125", "0.0001", "–",
    ]  # fmt: skip


# In Chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed: apt-get install chromium fonts-dejavu-core")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as player:
        launched = player.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=flags)
        yield launched
        launched.close()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (420, "light")])
def test_in_a_browser_it_draws_every_chart_and_sends_no_request(
    browser: Any, tmp_path: Path, three: str, width: int, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(three, "utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    try:
        page = context.new_page()
        requests: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 4")
        assert page.locator(".chart .plot .cartesianlayer").count() == 4
        assert requests == [path.as_uri()]
        assert complaints == []
        # Nothing makes the page itself scroll sideways.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(17, 20, 24)" if scheme == "dark" else "rgb(247, 247, 245)")
    finally:
        context.close()


def test_trades_alone_and_bars_alone_have_a_report() -> None:
    for data in (tape(trade(0, 10.0), trade(1, 10.1)), tape(bar(0, 1, 2, 1, 2), bar(1, 2, 2, 2, 2))):
        page = _Page(report.html([backtest(script(at_1=lambda s: s.buy("AAA", 1)), data).as_run()]))
        assert "Fills" in page.text
