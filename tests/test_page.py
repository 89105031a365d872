"""The page without a browser: what it says when something is wrong, and what its charts hold."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="the page needs tapelab[ui]")

from streamlit.testing.v1 import AppTest

import tapelab as tl
from tapelab.faces.app import backtests, charts, data_loader, parts, source

NEW_YORK = "America/New_York"
MAIN = Path(data_loader.__file__).with_name("main.py")
LONGEST = 60  # seconds for one run of a page


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has set nothing, in an empty folder."""
    for name in (
        "MASSIVE_API_KEY",
        "MASSIVE_S3_ACCESS_KEY_ID",
        "MASSIVE_S3_SECRET_ACCESS_KEY",
        "TAPELAB_PLAN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TAPELAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def loader(no_account: Path) -> AppTest:
    return AppTest.from_file(str(MAIN), default_timeout=LONGEST).run()


@pytest.fixture
def live(no_account: Path) -> AppTest:
    def script() -> None:
        from tapelab.faces.app import live_trading

        live_trading.page()

    return AppTest.from_function(script, default_timeout=LONGEST).run()


def said(page: AppTest) -> str:
    """The one sentence that the page complains with; never a traceback."""
    assert not page.exception
    assert len(page.error) == 1
    return str(page.error[0].value).replace("\\", "")


def test_the_loader_opens_without_an_account_and_asks_for_a_symbol(loader):
    assert not loader.exception
    assert not loader.error
    assert any("Name a symbol" in each.value for each in loader.caption)
    assert any("not set" in each.value for each in loader.sidebar.caption)


def test_without_keys_the_loader_says_which_setting_is_missing(loader):
    loader.text_input(key="symbols").set_value("AAPL").run()
    assert "MASSIVE_API_KEY" in said(loader)
    assert not [button for button in loader.button if button.label == "Load bars"]


def test_without_an_account_the_page_works_on_a_simulated_market_that_says_so(loader, no_account):
    loader.text_input(key="symbols").set_value("AAPL").run()
    loader.button(key="simulate").click().run()
    assert loader.text_input(key="symbols").value == "ZJZZT, ZVZZT"
    loader.button(key="load").click().run()
    assert not loader.exception
    assert not loader.error
    assert any("SIMULATED" in each.value for each in loader.warning)
    assert not list((no_account / "home").rglob("*"))  # it has a home of its own

    loader.button(key="leave").click().run()
    assert loader.text_input(key="symbols").value == ""
    assert not loader.warning
    source._market.clear()


def test_what_to_type_is_shown_as_code_and_nothing_else_is_taken_for_markdown():
    assert parts._text("Ask `tapelab doctor` for 5 * $2_000") == r"Ask `tapelab doctor` for 5 \* \$2\_000"


def test_a_count_has_the_right_noun():
    assert [parts.counted(n, "bar") for n in (0, 1, 5343)] == ["no bars", "1 bar", "5,343 bars"]


def test_an_end_before_the_start_is_one_sentence_with_the_remedy(loader):
    loader.text_input(key="symbols").set_value("AAPL")
    loader.date_input(key="start").set_value(date(2026, 10, 9))
    loader.date_input(key="end").set_value(date(2026, 10, 1)).run()
    assert "ends (2026-10-01) before it starts (2026-10-09)" in said(loader)
    assert "Swap start and end" in said(loader)


def test_a_symbol_in_small_letters_is_answered_with_the_right_spelling(loader):
    loader.text_input(key="symbols").set_value("aapl").run()
    assert "Did you mean 'AAPL'?" in said(loader)


def test_without_recordings_the_loader_says_where_they_are_made(loader):
    loader.segmented_control(key="source").set_value(data_loader.RECORDED).run()
    assert not loader.exception
    assert "Live Trading records" in loader.info[0].value


def test_live_trading_opens_without_an_account(live):
    assert not live.exception
    assert not live.error
    assert any("Nothing is recorded yet" in each.value for each in live.info)


@pytest.mark.parametrize(("field", "button"), [("record_symbols", "start"), ("watched", "watch")])
def test_without_keys_the_stream_is_refused_in_one_sentence(live, field, button):
    live.text_input(key=field).set_value("AAPL")
    live.button(key=button).click().run()
    assert "No API key is set (MASSIVE_API_KEY)" in said(live)


def test_a_recording_without_symbols_is_refused_in_one_sentence(live):
    live.button(key="start").click().run()
    assert "No symbol was given" in said(live)


# Charts


def minutes(day: str, *times: str) -> pd.DataFrame:
    starts = pd.to_datetime([f"{day} {time}" for time in times]).tz_localize(NEW_YORK)
    count = len(times)
    return pd.DataFrame(
        {
            "timestamp": starts.tz_convert("UTC"),
            "session": [date.fromisoformat(day)] * count,
            "symbol": "ZVZZT",
            "open": 10.0,
            "high": 10.2,
            "low": 9.9,
            "close": 10.1,
            "volume": 100.0,
        }
    )


def test_a_minute_without_a_trade_keeps_its_place_and_has_no_candle():
    bars, labels = charts.placed(minutes("2026-10-08", "09:30", "09:31", "09:34"), "1m", NEW_YORK)
    assert bars["place"].to_list() == [0, 1, 4]
    assert labels == ["09:30", "09:31", "09:32", "09:33", "09:34"]


def test_a_night_takes_no_room_between_two_sessions():
    two = pd.concat(
        [minutes("2026-10-08", "15:58", "15:59"), minutes("2026-10-09", "09:30")], ignore_index=True
    )
    bars, labels = charts.placed(two, "1m", NEW_YORK)
    assert bars["place"].to_list() == [0, 1, 2]
    assert labels == ["8 Oct 15:58", "8 Oct 15:59", "9 Oct 09:30"]


def test_days_stand_beside_each_other():
    days = pd.concat([minutes("2026-10-09", "00:00"), minutes("2026-10-12", "00:00")], ignore_index=True)
    bars, labels = charts.placed(days, "1d", NEW_YORK)
    assert bars["place"].to_list() == [0, 1]
    assert labels == ["9 Oct 2026", "12 Oct 2026"]


def test_a_candle_is_drawn_for_each_bar_and_for_nothing_else():
    drawn = charts.candles(minutes("2026-10-08", "09:30", "09:34"), "1m", NEW_YORK).to_dict()
    (rows,) = drawn["datasets"].values()
    assert [row["label"] for row in rows] == ["09:30", "09:34"]


def test_bars_of_mid_prices_without_any_volume_can_be_drawn():
    bars = minutes("2026-10-08", "09:30").assign(volume=float("nan"))
    assert charts.candles(bars, "1m", NEW_YORK).to_dict()


def test_a_thinned_curve_hides_no_fall():
    values = [100.0] * 50_000
    values[31_234] = 1.0
    line = pd.DataFrame({"at": range(50_000), "value": values})
    thin = charts._thinned(line)
    assert len(thin) <= charts.MOST_POINTS + 1
    assert thin["value"].min() == 1.0
    assert thin["at"].is_monotonic_increasing
    assert thin["at"].iloc[-1] == 49_999


# Words


@pytest.mark.parametrize(
    ("left", "needed", "says", "colour"),
    [
        (100, 2, "100 of 100 REST calls left today", "green"),
        (26, 2, "26 of 100 REST calls left today", "yellow"),
        (1, 2, "1 of 100 REST calls left today", "red"),
        (0, 0, "0 of 100 REST calls left today", "red"),
        (None, 2, "REST calls: no limit", "green"),
    ],
)
def test_the_lamp_follows_what_is_left_of_the_rest_budget(left, needed, says, colour):
    assert data_loader.quota(left, needed, 100) == (says, colour)


def test_symbols_are_read_as_people_type_them():
    assert parts.typed_symbols(" AAPL, MSFT;BRK.B\nAAPL ") == ["AAPL", "MSFT", "BRK.B"]
    assert parts.typed_symbols("  ") == []


def test_text_from_elsewhere_is_shown_as_it_is():
    assert parts.plain("$5 *bold* [link](x) `code` a_b") == r"\$5 \*bold\* \[link\](x) \`code\` a\_b"


def test_a_number_that_would_say_nothing_is_a_dash_in_the_table_of_metrics():
    bars = minutes("2026-10-08", "09:30", "09:31", "09:32")
    results = [tl.backtest(tl.strategies.MovingAverageCross(fast=1, slow=2), bars)]
    table = backtests.metrics(results)
    assert list(table.columns) == ["MovingAverageCross"]
    assert table.loc["Round trips", "MovingAverageCross"] == "0"
    assert table.loc["of them with a profit", "MovingAverageCross"] == "–"
