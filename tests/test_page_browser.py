"""Both pages in Chromium against the stand-in exchange, from the first bar to a tested strategy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

import tapelab as tl
from tapelab.market import clock

pytest.importorskip("streamlit", reason="the page needs tapelab[ui]")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY_WITHIN = 60  # seconds for the server
SEEN_WITHIN = 30_000  # ms for anything on the page
ENOUGH_EVENTS = 2_000

# Whether the metric "Events" has reached a number.
EVENTS = """least => {
  const all = [...document.querySelectorAll('[data-testid=stMetric]')].map(each => each.innerText);
  const shown = (all.find(text => /^Events(?! a)/.test(text)) || '').match(/[\\d,]+/);
  return shown && Number(shown[0].replaceAll(',', '')) >= least;
}"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="Chromium is not at /usr/bin/chromium"),
]


@pytest.fixture(scope="module")
def exchange() -> Iterator[object]:
    """Half a minute of the open in every second, of the simulated market."""
    with tl.serve(simulate=True, speed=30, start="09:30") as running:
        yield running


@pytest.fixture(scope="module")
def address(exchange, tmp_path_factory) -> Iterator[str]:
    """Where `tapelab ui` serves its page, with the exchange in the place of the vendor."""
    folder = tmp_path_factory.mktemp("page")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "MASSIVE_REST_URL": exchange.rest_url,
        "MASSIVE_WS_URL": exchange.ws_url,
        "MASSIVE_S3_ENDPOINT": exchange.s3_endpoint,
        "MASSIVE_S3_BUCKET": exchange.s3_bucket,
        "MASSIVE_API_KEY": exchange.api_key,
        "MASSIVE_S3_ACCESS_KEY_ID": exchange.s3_access_key_id,
        "MASSIVE_S3_SECRET_ACCESS_KEY": exchange.s3_secret_access_key,
        "TAPELAB_HOME": str(folder / "home"),
        "TAPELAB_REST_CALLS_PER_DAY": "0",
        "TAPELAB_REST_CALLS_PER_MINUTE": "0",
        "TAPELAB_FLAT_FILE_GB_PER_MONTH": "0",
    }
    with (folder / "log").open("w+b") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tapelab", "ui", "--port", str(port)],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(server, f"{url}/_stcore/health", folder / "log")
            yield url
        finally:
            os.killpg(server.pid, signal.SIGINT)
            try:
                server.wait(READY_WITHIN)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def wait_until_ready(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    until = clock.monotonic() + READY_WITHIN * clock.SECOND
    while clock.monotonic() < until and server.poll() is None:
        try:
            with urlopen(health, timeout=1):
                return
        except OSError:
            clock.sleep(0.1)
    pytest.fail(f"the page was not served:\n{log.read_text()}")


class Visitor:
    """Somebody at the page, who notes every host that it talks to."""

    def __init__(self, page, address: str) -> None:
        self.page = page
        self.address = address
        self.hosts: set[str | None] = set()
        page.set_default_timeout(SEEN_WITHIN)
        page.on("request", lambda request: self._note(request.url))
        page.on("websocket", lambda socket: self._note(socket.url))

    def _note(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob"):
            self.hosts.add(parts.hostname)

    def open(self, path: str) -> None:
        self.page.goto(f"{self.address}/{path}")

    def write(self, field: str, text: str) -> None:
        box = self.page.get_by_role("textbox", name=field, exact=True)
        box.fill(text)
        box.press("Enter")
        self.settle()

    def day(self, field: str, day: date) -> None:
        """The field has a part each for year, month and day, and moves on by itself."""
        parts = self.page.get_by_test_id("stDateInput").filter(has_text=field).get_by_role("spinbutton")
        parts.first.click()
        self.page.keyboard.type(f"{day:%Y%m%d}")
        self.page.keyboard.press("Enter")
        self.settle()

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def sees(self, text: str):
        found = self.page.get_by_text(text).filter(visible=True).first
        found.wait_for()
        return found

    def sees_chart(self, name: str) -> None:
        """Many marks are painted, a few are drawn."""
        chart = self.page.get_by_test_id("stVegaLiteChart").and_(self.page.get_by_label(name, exact=True))
        chart.locator("canvas, svg.marks").first.wait_for()

    def sees_cells(self, *texts: str) -> None:
        """In a table: what a screen reader is told of it, since the rest is painted."""
        for text in texts:
            self.page.locator("[role=gridcell], [role=columnheader]").filter(has_text=text).first.wait_for(
                state="attached"
            )

    def settle(self) -> None:
        """Until the server has answered what was just typed."""
        self.page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()

    def takes(self, button: str) -> bytes:
        with self.page.expect_download() as coming:
            self.press(button)
        return Path(coming.value.path()).read_bytes()


@pytest.fixture
def visitor(address) -> Iterator[Visitor]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=FLAGS)
        visitor = Visitor(browser.new_page(viewport={"width": 1400, "height": 1400}), address)
        yield visitor
        browser.close()
    assert visitor.hosts == {"127.0.0.1"}


def test_bars_come_by_rest_and_by_flat_file(visitor, exchange):
    first, last = exchange.tape.days("us_stocks_sip/minute_aggs_v1")[-2:]
    visitor.open("")
    visitor.write("Symbols", "ZVZZT ZWZZT")
    visitor.day("From", first)
    visitor.day("To, included", last)
    visitor.page.get_by_text("REST API", exact=True).click()
    visitor.sees("Asked for REST API (small query: 2 symbols, 2 days)")
    visitor.sees("REST calls: no limit")
    visitor.press("Load bars")
    visitor.sees("4 symbol-days from REST")
    visitor.sees("SIMULATED")
    visitor.sees_chart("Candles of ZVZZT")
    by_rest = visitor.takes("Download CSV").decode().splitlines()
    assert by_rest[0] == "timestamp,session,symbol,open,high,low,close,volume,vwap,transactions"

    visitor.write("Symbols", "ZXZZT ZJZZT")
    visitor.page.get_by_text("Flat files", exact=True).click()
    visitor.sees("Asked for Flat Files (small query: 2 symbols, 2 days)")
    visitor.press("Load bars")
    visitor.sees("4 symbol-days from flat files")
    visitor.sees_chart("Candles of ZJZZT")
    assert len(visitor.takes("Download CSV").decode().splitlines()) > 100


def test_a_recording_made_on_the_page_is_tested_with_two_strategies(visitor):
    visitor.open("live_trading")
    visitor.write("Symbols to watch", "ZVZZT")
    visitor.press("Watch")
    visitor.sees("Watching ZVZZT")
    visitor.sees("STAND-IN")
    visitor.sees_chart("Quotes of ZVZZT")

    visitor.tab("Test on Live Data")
    visitor.write("Symbols to record", "ZVZZT ZWZZT")
    visitor.write("Name", "morning")
    visitor.press("Start recording")
    visitor.sees("Recording ZVZZT, ZWZZT")
    visitor.sees("SIMULATED")
    visitor.page.wait_for_function(EVENTS, arg=ENOUGH_EVENTS)
    visitor.open("live_trading")  # a recording outlives a look at it
    visitor.tab("Test on Live Data")
    visitor.sees("Recording ZVZZT, ZWZZT")
    visitor.press("Stop")
    visitor.sees("Recorded morning")

    visitor.press("MarketMaker")
    visitor.settle()
    visitor.press("Run")
    visitor.sees("What came of it on morning")
    visitor.sees("SIMULATED")
    visitor.sees_chart("Equity of MovingAverageCross, MarketMaker")
    visitor.tab("Metrics")
    visitor.sees_cells("Profit", "MovingAverageCross", "MarketMaker")
    visitor.tab("Trades")
    visitor.page.get_by_role("combobox", name="Strategy", exact=True).click()
    visitor.page.get_by_role("option", name="MarketMaker").click()
    visitor.sees_cells("ZVZZT")
    visitor.tab("Assumptions and gaps")
    visitor.sees("TakerAtTouch, version 1")
    report = visitor.takes("Report (HTML)").decode()
    assert "MovingAverageCross" in report
    assert "MarketMaker" in report

    visitor.open("")
    visitor.page.get_by_text("Recorded dataset", exact=True).first.click()
    visitor.press("Load bars")
    visitor.sees("Bars of the recording morning")
    visitor.sees("SIMULATED")
    visitor.sees_chart("Candles of ZVZZT")
