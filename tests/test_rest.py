"""The REST client against a real local server: the vendor's shapes and the vendor's troubles."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tapelab import errors
from tapelab.budget import Budget
from tapelab.market import clock
from tapelab.market.clock import SECOND, FixedClock
from tapelab.massive import rest, wire
from tapelab.massive.rest import RestClient
from tapelab.settings import Settings

KEY = "test-key-that-nobody-may-see"
NOON = 1_790_000_000 * SECOND  # 2026-09-21
OPEN = 1_381_152_600_000  # 2013-10-07 09:30 New York, ms


@dataclass
class Reply:
    """What the server says; `cut` promises more bytes than it sends."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0


@dataclass
class Asked:
    path: str
    query: dict[str, str]
    key: str


class Vendor:
    """A server on this machine whose every answer a test decides."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Reply] = lambda asked: Reply(status=404)
        vendor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                asked = Asked(parts.path, query, self.headers.get("Authorization", ""))
                vendor.asked.append(asked)
                reply = vendor.answer(asked)
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(reply.body) + reply.cut))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
                if reply.cut:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def script(self, *replies: Reply) -> None:
        """These answers in this order, whatever is asked."""
        left = iter(replies)
        self.answer = lambda asked: next(left)


@contextmanager
def serving() -> Iterator[Vendor]:
    vendor = Vendor()
    thread = threading.Thread(target=vendor.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield vendor
    finally:
        vendor.server.shutdown()
        vendor.server.server_close()
        thread.join()


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with serving() as found:
        yield found


@pytest.fixture
def still() -> Iterator[FixedClock]:
    """A clock that only waiting moves, so that no test waits."""
    with clock.use(FixedClock(NOON)) as fixed:
        assert isinstance(fixed, FixedClock)
        yield fixed


@pytest.fixture
def settings(vendor: Vendor, tmp_path: Path) -> Settings:
    return Settings.load(
        api_key=KEY,
        rest_url=vendor.url,
        s3_endpoint=vendor.url,
        ws_url=vendor.url.replace("http", "ws"),
        home=tmp_path,
        rest_calls_per_day=50,
        rest_calls_per_minute=0,
    )


@pytest.fixture
def client(settings: Settings, still: FixedClock) -> Iterator[RestClient]:
    with RestClient(settings, Budget(settings)) as found:
        yield found


def calls(settings: Settings) -> int:
    return Budget(settings).left().calls_today


def bars(*minutes: int, next_url: str | None = None, symbol: str = "AAPL") -> Reply:
    rows = [
        {"v": 100 + m, "vw": 1.5, "o": 1, "c": 2, "h": 3, "l": 0.5, "t": OPEN + 60_000 * m, "n": 7}
        for m in minutes
    ]
    body = {"status": "OK", "ticker": symbol, "resultsCount": len(rows), "adjusted": False}
    if rows:
        body["results"] = rows
    if next_url:
        body["next_url"] = next_url
    return Reply(json.dumps(body).encode(), headers={"Content-Type": "application/json"})


def ask(client: RestClient) -> list[int]:
    """The minutes that came, counted from the open."""
    pages = list(client.bars("AAPL", "1m", date(2013, 10, 7), date(2013, 10, 11)))
    stamps = [stamp for page in pages for stamp in page["timestamp"].to_pylist()]
    return [(stamp // 1_000_000 - OPEN) // 60_000 for stamp in stamps]


def test_bars_come_raw_and_page_by_page(client: RestClient, vendor: Vendor, settings: Settings) -> None:
    path = "/v2/aggs/ticker/AAPL/range/1/minute/1381152720000/2013-10-11"
    vendor.script(bars(0, 1, next_url=f"{vendor.url}{path}?cursor=bGltaXQ9Mg"), bars(2))
    assert ask(client) == [0, 1, 2]
    first, second = vendor.asked
    assert first.path == "/v2/aggs/ticker/AAPL/range/1/minute/2013-10-07/2013-10-11"
    assert first.query == {"adjusted": "false", "sort": "asc", "limit": "50000"}
    assert (second.path, second.query) == (path, {"cursor": "bGltaXQ9Mg"})
    assert calls(settings) == 2


def test_the_key_travels_in_a_header_and_no_other_host_ever_sees_it(
    client: RestClient, vendor: Vendor
) -> None:
    with serving() as stranger:
        vendor.script(bars(0, next_url=f"{stranger.url}/v2/elsewhere?cursor=x&apiKey=stolen"), bars(1))
        assert ask(client) == [0, 1]
        assert stranger.asked == []
    assert [asked.key for asked in vendor.asked] == [f"Bearer {KEY}"] * 2
    assert all(KEY not in asked.path and "apiKey" not in asked.query for asked in vendor.asked)


def test_an_empty_answer_is_an_empty_table(client: RestClient, vendor: Vendor) -> None:
    vendor.script(bars())
    assert ask(client) == []


def test_a_redirect_is_refused_so_that_the_key_stays_here(client: RestClient, vendor: Vendor) -> None:
    vendor.script(Reply(status=302, headers={"Location": "http://198.51.100.1/"}))
    with pytest.raises(errors.MalformedAnswer, match="redirects"):
        ask(client)


@pytest.mark.parametrize(
    ("payload", "status", "error", "says"),
    [
        ("401-unknown-key.json", 401, errors.NotAuthorized, "MASSIVE_API_KEY"),
        ("403-not-entitled.json", 403, errors.NotInPlan, "not entitled"),
        ("403-timeframe.json", 403, errors.NotInPlan, "timeframe"),
        ("404-ticker.json", 404, errors.NotFound, "Ticker not found"),
        ("404-unknown-route.txt", 404, errors.NotFound, "/v2/aggs"),
    ],
)
def test_each_refusal_is_its_own_error_at_once(
    client: RestClient,
    vendor: Vendor,
    shared: Path,
    payload: str,
    status: int,
    error: type[Exception],
    says: str,
) -> None:
    vendor.script(Reply((shared / "payloads" / "errors" / payload).read_bytes(), status))
    with pytest.raises(error, match=says):
        ask(client)
    assert len(vendor.asked) == 1


def test_a_server_that_quotes_the_key_does_not_get_it_printed(client: RestClient, vendor: Vendor) -> None:
    vendor.script(Reply(json.dumps({"error": f"Unknown API Key {KEY}"}).encode(), 401))
    with pytest.raises(errors.NotAuthorized) as caught:
        ask(client)
    assert KEY not in f"{caught.value} {caught.value.facts} {client!r}"


def test_a_429_with_retry_after_waits_that_long_and_goes_on(
    settings: Settings, vendor: Vendor, still: FixedClock
) -> None:
    waits: list[float] = []
    vendor.script(Reply(status=429, headers={"Retry-After": "12"}), bars(0))
    with RestClient(settings, Budget(settings), on_wait=waits.append) as client:
        assert ask(client) == [0]
    assert waits == [12.0]
    assert still.now() - NOON == 12 * SECOND
    assert calls(settings) == 2


def test_a_429_with_a_date_waits_until_then(client: RestClient, vendor: Vendor, still: FixedClock) -> None:
    until = format_datetime(datetime.fromtimestamp(NOON // SECOND + 30, UTC), usegmt=True)
    vendor.script(Reply(status=429, headers={"Retry-After": until}), bars(0))
    assert ask(client) == [0]
    assert still.now() - NOON == 30 * SECOND


def test_a_429_without_retry_after_backs_off_and_goes_on(
    client: RestClient, vendor: Vendor, still: FixedClock
) -> None:
    vendor.script(*[Reply(status=429)] * 4, bars(0))
    assert ask(client) == [0]
    assert 5 <= (still.now() - NOON) / SECOND <= 31


def test_a_429_that_never_ends_is_an_error_after_a_bounded_wait(
    client: RestClient, vendor: Vendor, still: FixedClock
) -> None:
    vendor.answer = lambda asked: Reply(status=429)
    with pytest.raises(errors.RateLimited, match="TAPELAB_REST_CALLS_PER_MINUTE"):
        ask(client)
    assert (still.now() - NOON) / SECOND <= rest.LONGEST_SLOW_DOWN


def test_a_server_that_fails_is_asked_again_and_the_answer_is_whole(
    client: RestClient, vendor: Vendor, still: FixedClock
) -> None:
    page = bars(0, next_url=f"{vendor.url}/v2/next?cursor=x")
    vendor.script(page, Reply(status=500), Reply(b"<html>bad gateway</html>", 502), bars(1))
    assert ask(client) == [0, 1]
    assert still.now() > NOON


def test_a_server_that_keeps_failing_on_page_two_is_an_error_not_half_a_history(
    client: RestClient, vendor: Vendor, settings: Settings
) -> None:
    page = bars(0, next_url=f"{vendor.url}/v2/next?cursor=x")
    vendor.answer = lambda asked: Reply(status=500) if "next" in asked.path else page
    with pytest.raises(errors.ServerTrouble, match="500"):
        ask(client)
    assert calls(settings) == len(vendor.asked) == 1 + rest.TRIES


def test_an_answer_cut_on_the_way_is_asked_for_again(client: RestClient, vendor: Vendor) -> None:
    cut = bars(0, 1)
    cut.cut = 100
    vendor.script(cut, bars(0, 1))
    assert ask(client) == [0, 1]


def test_an_answer_that_is_always_cut_is_unreachable(client: RestClient, vendor: Vendor) -> None:
    cut = bars(0)
    cut.cut = 100
    vendor.answer = lambda asked: cut
    with pytest.raises(errors.Unreachable, match="broke"):
        ask(client)
    assert len(vendor.asked) == rest.TRIES


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b"<html>hello</html>"),
        Reply(b'{"status":"OK","resultsCount":2,"results":[]}'),
        Reply(b'{"status":"ERROR","error":"half of it"}'),
        Reply(b'{"status":"OK","results":[{"t":1}]}'),
    ],
    ids=["html", "count", "status", "row"],
)
def test_what_is_no_page_of_bars_is_an_error(client: RestClient, vendor: Vendor, reply: Reply) -> None:
    vendor.answer = lambda asked: reply
    with pytest.raises(errors.MalformedAnswer):
        ask(client)
    assert len(vendor.asked) <= rest.TRIES_OF_A_PAGE


def test_a_page_that_came_broken_is_asked_for_again(client: RestClient, vendor: Vendor) -> None:
    whole = bars(0, 1)
    vendor.script(Reply(whole.body[:40]), Reply(b'{"status":"ERROR","error":"a bad moment"}'), whole)
    assert ask(client) == [0, 1]


def test_bars_out_of_order_or_twice_are_an_error(client: RestClient, vendor: Vendor) -> None:
    vendor.script(bars(0, 1, next_url=f"{vendor.url}/v2/next?cursor=x"), bars(1, 2))
    with pytest.raises(errors.MalformedAnswer, match="order"):
        ask(client)


def test_pages_that_lead_in_a_circle_are_an_error(client: RestClient, vendor: Vendor) -> None:
    vendor.answer = lambda asked: bars(next_url=f"{vendor.url}/v2/next?cursor=x")
    with pytest.raises(errors.MalformedAnswer, match="never end"):
        ask(client)


def test_nobody_there_names_the_host_and_costs_no_call(settings: Settings) -> None:
    nobody = settings.with_(rest_url="http://127.0.0.1:1")
    with RestClient(nobody, Budget(nobody)) as client, pytest.raises(errors.Unreachable) as caught:
        ask(client)
    assert "127.0.0.1:1" in str(caught.value)
    assert KEY not in str(caught.value)
    assert calls(nobody) == 0


def test_a_full_budget_refuses_before_anything_is_sent(settings: Settings, vendor: Vendor) -> None:
    tight = settings.with_(rest_calls_per_day=1)
    vendor.answer = lambda asked: bars(0)
    with RestClient(tight, Budget(tight)) as client:
        assert ask(client) == [0]
        with pytest.raises(errors.BudgetExceeded):
            ask(client)
    assert len(vendor.asked) == 1


def test_a_pause_that_the_vendor_asks_for_is_kept_by_every_question(
    client: RestClient, vendor: Vendor, still: FixedClock
) -> None:
    vendor.script(Reply(status=429, headers={"Retry-After": "30"}), bars(0), bars(0))
    first = threading.Event()

    class Standing(FixedClock):
        """One thread sleeps while another asks."""

        def sleep(self, seconds: float) -> None:
            if not first.is_set():
                first.set()
                ask(client)
                assert self.at >= NOON + 30 * SECOND
            super().sleep(seconds)

    with clock.use(Standing(NOON)):
        ask(client)
    assert len(vendor.asked) == 3


def test_after_stop_nothing_more_is_sent_and_nothing_counted(
    client: RestClient, vendor: Vendor, settings: Settings
) -> None:
    client.stop()
    with pytest.raises(errors.Unreachable, match="stopped"):
        ask(client)
    assert (len(vendor.asked), calls(settings)) == (0, 0)


def test_the_markets_splits_since_a_day_are_one_question(client: RestClient, vendor: Vendor) -> None:
    rows = [
        {"ticker": "B", "execution_date": "2024-06-10", "split_from": 1, "split_to": 10},
        {"ticker": "A", "execution_date": "2024-06-07", "split_from": 4, "split_to": 1},
    ]
    paid = [{"ticker": "A", "ex_dividend_date": "2024-06-07", "cash_amount": 0.25}]
    vendor.script(
        Reply(json.dumps({"status": "OK", "results": rows}).encode()),
        Reply(json.dumps({"status": "OK", "results": paid}).encode()),
    )
    found = client.splits(since=date(2024, 6, 1))
    assert [(split.symbol, split.factor) for split in found] == [("A", 4), ("B", 0.1)]
    assert [dividend.cash_amount for dividend in client.dividends(since=date(2024, 6, 1))] == [0.25]
    assert [asked.query for asked in vendor.asked] == [
        {"execution_date.gte": "2024-06-01", "limit": "1000"},
        {"ex_dividend_date.gte": "2024-06-01", "limit": "1000"},
    ]


def test_ticks_out_of_order_or_of_another_time_are_an_error(client: RestClient, vendor: Vendor) -> None:
    begin = 1_517_562_000_016_036_581
    for stamps in ([begin + 1, begin], [begin - 1], [begin + 10]):
        rows = [{"sip_timestamp": s, "participant_timestamp": s, "price": 1.5, "size": 1} for s in stamps]
        vendor.script(Reply(json.dumps({"status": "OK", "results": rows}).encode()))
        with pytest.raises(errors.MalformedAnswer, match="order of time"):
            list(client.trades("AAPL", begin, begin + 10))


def test_without_a_key_the_error_says_which_setting(settings: Settings) -> None:
    with pytest.raises(errors.SettingError, match="MASSIVE_API_KEY"):
        RestClient(settings.with_(api_key=""), Budget(settings))


def test_splits_of_a_symbol_oldest_first(client: RestClient, vendor: Vendor, shared: Path) -> None:
    mocks = shared / "payloads/rest/test_rest/mocks/v3/reference"
    vendor.script(Reply((mocks / "splits.json").read_bytes()))
    found = client.splits("SHOP")
    assert vendor.asked[0].query == {"ticker": "SHOP", "limit": "1000"}
    assert [split.execution_date for split in found] == sorted(split.execution_date for split in found)
    assert (found[-1].symbol, found[-1].factor) in {("GOOGL", 1 / 20), ("GOOG", 1 / 20)}


def test_trades_are_asked_for_oldest_first_and_numbered_through(client: RestClient, vendor: Vendor) -> None:
    def page(*stamps: int, more: bool) -> Reply:
        rows = [
            {"sip_timestamp": stamp, "participant_timestamp": stamp, "price": 1.5, "size": 100}
            for stamp in stamps
        ]
        body: dict[str, object] = {"status": "OK", "results": rows}
        if more:
            body["next_url"] = f"{vendor.url}/v3/trades/AAPL?cursor=x"
        return Reply(json.dumps(body).encode())

    begin = 1_517_562_000_016_036_581
    vendor.script(page(begin, begin + 1, more=True), page(begin + 1, more=False))
    found = list(client.trades("AAPL", begin, begin + 10))
    assert [row for table in found for row in table["ts_event"].to_pylist()] == [begin, begin + 1, begin + 1]
    assert [row for table in found for row in table["arrival"].to_pylist()] == [0, 1, 2]
    assert vendor.asked[0].query["order"] == "asc"


def test_market_status_and_symbols_speak_the_vendors_words(
    client: RestClient, vendor: Vendor, shared: Path
) -> None:
    mocks = shared / "payloads/rest/test_rest/mocks"
    tickers = json.loads((mocks / "v3/reference/tickers.json").read_bytes())
    del tickers["next_url"]
    vendor.script(
        Reply((mocks / "v1/marketstatus/now.json").read_bytes()), Reply(json.dumps(tickers).encode())
    )
    assert client.market_status()["exchanges"]["nyse"] in {"open", "closed", "extended-hours"}
    assert client.symbols() == sorted(row["ticker"] for row in tickers["results"])


def test_the_stand_in_exchange_says_what_its_tape_is(client: RestClient, vendor: Vendor) -> None:
    reply = bars(0)
    reply.headers["X-Tapelab-Tape"] = "simulated seed=7"
    vendor.script(reply)
    ask(client)
    assert client.tape == "simulated seed=7"


def test_the_vendors_own_answer_is_read_whole(client: RestClient, vendor: Vendor, shared: Path) -> None:
    mocks = shared / "payloads/rest/test_rest/mocks/v2/aggs/ticker/AAPL/range/1/day/2005-04-01"
    body = (mocks / "2005-04-04.json").read_bytes()
    vendor.script(Reply(body))
    [table] = list(client.bars("AAPL", "1d", date(2005, 4, 1), date(2005, 4, 4)))
    assert table.equals(wire.decode_page(body, "bars", symbol="AAPL").table)
    assert table["volume"].to_pylist()[0] == 642646396.0
