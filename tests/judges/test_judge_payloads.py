"""The vendor's own answers and events, asked of an exchange whose tape holds what they tell of.

Each payload is put on a tape as rows of daily files (or beside it, as reference data); then the request that
the vendor captured is sent again. The answer must be the captured one, or, where it tells of a whole market,
one with the same keys and JSON types.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import httpx
import papers
import pytest
from clients import WITHIN, Client, Listener, Start, hear, run
from papers import HEADERS, MILLISECOND, Paper, Row

from tapelab.exchange import Exchange

pytestmark = pytest.mark.judge

MOCKS = "payloads/rest/test_rest/mocks"
Body = dict[str, Any]
Files = dict[str, list[Row]]  # by product

# Keys that the vendor has added since these answers were captured, or that were cut from some of them.
NEWER = {"decimal_size", "ds", "dv", "dav", "count", "request_id"}
# What no tape of US stocks can know: fair values of business plans, other markets' hours.
UNKNOWN = {"fmv", "currencies"}

# The vendor keeps some under the dates of other days; the snapshot is one of the simulated market.
REALLY_OF = {
    "v2/aggs/grouped/locale/us/market/stocks/2005-04-04&adjusted=true": ("2005-04-04", "2020-10-14"),
    "v1/open-close/AAPL/2005-04-01&adjusted=true": ("2005-04-01", "2021-04-01"),
    "v2/snapshot/locale/us/markets/stocks/tickers/AAPL": ("AAPL", "ZVZZT"),
}

# What each captured answer needs on the tape, and how alike ours must be. `same`: value by value, all but the
# number of the request and the host of the next page.
SAME = [
    "v2/aggs/ticker/AAPL/range/1/day/2005-04-01/2005-04-04",
    "v2/aggs/ticker/AAPL/prev",
    "v2/aggs/grouped/locale/us/market/stocks/2005-04-04&adjusted=true",
    "v1/open-close/AAPL/2005-04-01&adjusted=true",
    "v2/last/trade/AAPL",
    "v2/last/nbbo/AAPL",
    "v3/trades/AAPL&limit=2",
    "v3/quotes/AAPL",
    "v3/reference/splits",
    "v3/reference/dividends",
    "v3/reference/tickers/AAPL",
    "v3/reference/exchanges",
    "v3/reference/conditions&asset_class=stocks",
    "v3/reference/tickers/types",
    "vX/reference/tickers/META/events&types=ticker_change",
]
ALIKE = [
    "v1/marketstatus/now",
    "v1/marketstatus/upcoming",
    "v2/snapshot/locale/us/markets/stocks/tickers/AAPL",
    "v2/snapshot/locale/us/markets/stocks/tickers/index",
    "v2/snapshot/locale/us/markets/stocks/gainers",
]


def sent(shared: Path, name: str) -> Any:
    """A captured answer."""
    return json.loads((shared / MOCKS / f"{name}.json").read_bytes())


def asked(exchange: Exchange, name: str, **query: str) -> httpx.Response:
    """The request that a captured answer is named after."""
    path, _, given = name.replace(*REALLY_OF.get(name, ("", ""))).removesuffix("/index").partition("&")
    headers = {"Authorization": f"Bearer {exchange.api_key}"}
    parameters = {**{key: values[0] for key, values in parse_qs(given).items()}, **query}
    return httpx.get(f"{exchange.rest_url}/{path}", params=parameters, headers=headers, timeout=WITHIN)


def day_of(instant: int) -> date:
    """The exchange's date of an instant (ns)."""
    return datetime.fromtimestamp(instant // papers.SECOND, ZoneInfo("America/New_York")).date()


def row_of(product: str, **values: object) -> Row:
    """A row of a daily file; what is not given is 0 or empty."""
    blank = {
        name: "" if name in ("conditions", "indicators", "id") else "0"
        for name in HEADERS[product].split(",")
    }
    return blank | {name: str(value) for name, value in values.items()}


def trade_row(ticker: str, row: Body) -> Row:
    """A trade of the vendor's REST as a row of its file."""
    values = {name: row[name] for name in HEADERS["trades_v1"].split(",") if name in row}
    codes = ",".join(map(str, row.get("conditions", [])))
    return row_of("trades_v1", ticker=ticker, **{**values, "conditions": codes})


def quote_row(ticker: str, row: Body) -> Row:
    """A quote of the vendor's REST as a row of its file."""
    values = {name: row[name] for name in HEADERS["quotes_v1"].split(",") if name in row}
    return row_of("quotes_v1", ticker=ticker, **values)


def bar_files(ticker: str, bar: Body, day: date | None = None) -> tuple[date, Files]:
    """A day bar as a row of its file, and one trade that has its volume-weighted price."""
    day = day or day_of(bar["t"] * MILLISECOND)
    names = {"volume": "v", "open": "o", "close": "c", "high": "h", "low": "l", "transactions": "n"}
    values = {name: bar[key] for name, key in names.items() if key in bar}
    at = papers.instant(day, 12)
    stamps = {"sip_timestamp": at, "participant_timestamp": at}
    print_ = row_of("trades_v1", ticker=ticker, price=bar.get("vw", bar["c"]), size=bar["v"], **stamps)
    whole = row_of("day_aggs_v1", ticker=ticker, window_start=papers.instant(day, 0), **values)
    return day, {"day_aggs_v1": [whole], "trades_v1": [print_]}


class Tapes:
    """Tapes that hold what captured answers tell of."""

    def __init__(self, folder: Path, shared: Path, start: Start) -> None:
        self.paper = Paper(folder)
        self.shared = shared
        self.start = start

    def beside(self, **reference: object) -> None:
        """Put reference data beside the tape."""
        (self.paper.folder / "reference").mkdir(exist_ok=True)
        for name, rows in reference.items():
            (self.paper.folder / f"reference/{name}.json").write_text(json.dumps(rows))

    def write(self, day: date, files: Files) -> None:
        """Put rows of daily files on the tape."""
        for product, rows in files.items():
            self.paper.write(product, day, rows)

    def ticks(self, product: str, rows: list[Row]) -> None:
        """Put ticks of one day on the tape."""
        self.write(day_of(int(rows[0]["sip_timestamp"])), {product: rows})

    def of(self, name: str) -> Exchange:
        """An exchange that knows what an answer tells of, and little else."""
        if "snapshot" in name:  # every bar of that market has trades, from which its `vw` is known
            return self.start(simulate=True)
        body = sent(self.shared, name)
        if name.startswith(("v1/marketstatus", "v3/reference", "vX/reference")):
            self.paper = papers.make(self.paper.folder)
        self.beside(splits=[], dividends=[])
        if name.startswith("v2/aggs"):
            for bar in body["results"]:
                self.write(*bar_files(body.get("ticker", bar.get("T")), bar))
            if name.endswith("prev"):
                self.a_day_later(day_of(body["results"][-1]["t"] * MILLISECOND))
        elif name.startswith("v1/open-close"):
            bar = {key[0]: body[key] for key in ("open", "high", "low", "close", "volume")}
            self.write(*bar_files(body["symbol"], bar, date.fromisoformat(body["from"])))
            names = ("symbol", "from", "open", "close", "preMarket", "afterHours")
            self.beside(official=[{key: body[key] for key in names}])
        elif name.startswith("v2/last"):
            self.ticks(*last_tick(body["results"]))
        elif name.startswith("v3/trades"):
            self.ticks("trades_v1", [trade_row("AAPL", row) for row in reversed(body["results"])])
        elif name.startswith("v3/quotes"):
            pages = [body, sent(self.shared, second_page(self.shared, name))]
            rows = [row for page in pages for row in page["results"]]
            self.ticks("quotes_v1", [quote_row("AAPL", row) for row in reversed(rows)])
        elif name.startswith("vX/reference/tickers"):
            self.beside(ticker_events=[body["results"]])
        elif name.startswith("v3/reference/tickers/AAPL"):
            self.beside(tickers=[body["results"]])
        elif name in ("v3/reference/splits", "v3/reference/dividends"):
            self.beside(**{name.split("/")[-1]: body["results"]})
        elif name == "v3/reference/tickers":
            self.beside(
                tickers=body["results"] + sent(self.shared, second_page(self.shared, name))["results"]
            )
        return self.start(flat_files=self.paper.folder, speed=0)

    def a_day_later(self, day: date) -> None:
        """Let the exchange's clock stand on the next day."""
        at = papers.instant(day + timedelta(days=1), 9, 30)
        self.ticks("trades_v1", [row_of("trades_v1", ticker="AAPL", price=1, size=1, sip_timestamp=at)])


def last_tick(row: Body) -> tuple[str, list[Row]]:
    """The one letters of a last trade or quote as a row of its file."""
    stamps = {"sip_timestamp": row["t"], "participant_timestamp": row["y"], "trf_timestamp": row.get("f", 0)}
    common = {"ticker": row["T"], "sequence_number": row["q"], "tape": row["z"], **stamps}
    if "P" in row:
        sides = {"bid_price": "p", "bid_size": "s", "bid_exchange": "x"}
        sides |= {"ask_price": "P", "ask_size": "S", "ask_exchange": "X"}
        values = {name: row[key] for name, key in sides.items()}
        return "quotes_v1", [row_of("quotes_v1", **common, **values)]
    names = {"exchange": "x", "id": "i", "price": "p", "size": "s", "trf_id": "r"}
    values = {name: row[key] for name, key in names.items()}
    codes = ",".join(map(str, row["c"]))
    return "trades_v1", [row_of("trades_v1", **common, **values, conditions=codes)]


def second_page(shared: Path, name: str) -> str:
    """The captured answer to which a captured page leads."""
    cursor = urlsplit(sent(shared, name)["next_url"]).query
    return f"{name}&{cursor}"


@pytest.fixture
def tapes(tmp_path: Path, shared: Path, started: Start) -> Tapes:
    return Tapes(tmp_path, shared, started)


def kind(value: Any) -> str:
    """The type of a JSON value."""
    if isinstance(value, bool):
        return "boolean"
    names = {int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def unlike(ours: Any, theirs: list[Any], *, where: str = "$") -> Iterator[str]:
    """Where a value differs in keys or types from all that the vendor has at that place."""
    kinds = {kind(value) for value in theirs}
    if "null" in kinds:
        return
    if kind(ours) not in kinds:
        yield f"{where} is {kind(ours)}, not {' or '.join(sorted(kinds))}"
    elif isinstance(ours, list):
        items = [item for value in theirs for item in value]
        if items and not ours:
            yield f"{where} is empty"
        for number, item in enumerate(ours):
            yield from unlike(item, items, where=f"{where}[{number}]")
    elif isinstance(ours, dict):
        always = set.intersection(*map(set, theirs)) - UNKNOWN
        ever = set.union(*map(set, theirs)) | NEWER
        yield from (f"{where}.{key} is missing" for key in sorted(always - set(ours)))
        yield from (f"{where}.{key} is not the vendor's" for key in sorted(set(ours) - ever))
        for key in sorted(set(ours) & ever - NEWER):
            known = [value[key] for value in theirs if key in value]
            yield from unlike(ours[key], known, where=f"{where}.{key}")


def settled(body: Any) -> Any:
    """An answer without what is different each time."""
    if not isinstance(body, dict):
        return body
    return {key: value for key, value in body.items() if key not in ("request_id", "next_url")}


@pytest.mark.parametrize("name", SAME)
def test_a_captured_answer_is_given_again_value_by_value(tapes: Tapes, shared: Path, name: str) -> None:
    expected = sent(shared, name)
    query = {"limit": str(len(expected["results"]))} if name.startswith(("v3/quotes", "v3/ref")) else {}
    answer = asked(tapes.of(name), name, **query)
    assert answer.status_code == 200, answer.text
    assert settled(answer.json()) == settled(expected)


@pytest.mark.parametrize("name", ALIKE)
def test_an_answer_has_the_keys_and_types_of_a_captured_one(tapes: Tapes, shared: Path, name: str) -> None:
    answer = asked(tapes.of(name), name)
    assert answer.status_code == 200, answer.text
    assert list(unlike(answer.json(), [sent(shared, name)])) == []


@pytest.mark.parametrize(("name", "limit"), [("v3/quotes/AAPL", "10"), ("v3/reference/tickers", "2")])
def test_a_captured_page_leads_to_the_captured_second_one(
    tapes: Tapes, shared: Path, name: str, limit: str
) -> None:
    exchange = tapes.of(name)
    first, captured = asked(exchange, name, limit=limit).json(), sent(shared, name)
    second = httpx.get(f"{first['next_url']}&apiKey={exchange.api_key}", timeout=WITHIN).json()
    assert first["results"] == captured["results"]
    assert second["results"] == sent(shared, second_page(shared, name))["results"]
    assert list(unlike(first, [captured])) == []
    assert urlsplit(first["next_url"]).path == urlsplit(captured["next_url"]).path
    assert first["next_url"].startswith(exchange.rest_url)
    assert exchange.api_key not in first["next_url"]


def test_a_cursor_of_quotes_holds_what_a_captured_one_does(tapes: Tapes, shared: Path) -> None:
    name = "v3/quotes/AAPL"
    ours = cursor_of(asked(tapes.of(name), name, limit="10").json()["next_url"])
    theirs = cursor_of(sent(shared, name)["next_url"])
    assert set(ours) == set(theirs)
    assert {key: ours[key] for key in ("limit", "order", "sort")} == {
        key: theirs[key] for key in ("limit", "order", "sort")
    }


def cursor_of(address: str) -> dict[str, list[str]]:
    """The query inside a cursor."""
    [text] = parse_qs(urlsplit(address).query)["cursor"]
    plain = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    return parse_qs(plain, keep_blank_values=True, strict_parsing=True)


# File, HTTP status, what is asked, with which key and on which plan.
REFUSALS = [
    ("401-no-key.json", 401, "/v3/trades/AAPL", "", None),
    ("401-unknown-key.json", 401, "/v3/trades/AAPL", "unknown", None),
    ("403-not-entitled.json", 403, "/v3/trades/AAPL", None, "starter"),
    ("404-ticker.json", 404, "/v2/snapshot/locale/us/markets/stocks/tickers/NOBODY", None, None),
    ("404-unknown-route.txt", 404, "/v9/nothing", None, None),
    ("429.json", 429, "/v1/marketstatus/now", None, "basic"),
]


@pytest.mark.parametrize(("sample", "status", "path", "key", "plan"), REFUSALS)
def test_a_refusal_is_the_captured_one(
    started: Start,
    paper: Paper,
    shared: Path,
    sample: str,
    status: int,
    path: str,
    key: str | None,
    plan: str | None,
) -> None:
    exchange = started(flat_files=paper.folder, plan=plan)
    used = exchange.api_key if key is None else key
    headers = {"Authorization": f"Bearer {used}"} if used else {}
    calls = 2 * 5 + 1 if status == 429 else 1  # of the free plan's five; a minute may end on the way
    answers = [httpx.get(exchange.rest_url + path, headers=headers, timeout=WITHIN) for _ in range(calls)]
    answer = next((answer for answer in answers if answer.status_code == status), answers[-1])
    assert answer.status_code == status
    expected = (shared / "payloads/errors" / sample).read_text()
    if sample.endswith("txt"):
        assert answer.text.strip() == expected.strip()
        assert answer.headers["Content-Type"].startswith("text/plain")
    else:
        assert {**answer.json(), "request_id": ""} == {**json.loads(expected), "request_id": ""}
        assert answer.json()["request_id"] == answer.headers["X-Request-Id"]


@pytest.fixture(scope="module")
def shown(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Paper:
    """Every row of a stock file that the vendor or its users have shown, on one tape."""
    found: dict[tuple[str, date], dict[tuple[str, str], Row]] = {}
    for path in sorted((shared / "payloads").glob("*/*.csv")):
        for product, header in HEADERS.items():
            if product not in path.name or not path.name.startswith(("us_stocks", product)):
                continue
            lines = csv.DictReader(path.read_text().splitlines())
            assert lines.fieldnames == header.split(",")
            for row in lines:
                stamp = row.get("window_start") or row["sip_timestamp"]
                found.setdefault((product, day_of(int(stamp))), {})[row["ticker"], stamp] = row
    paper = Paper(tmp_path_factory.mktemp("shown"))
    for (product, day), rows in found.items():
        paper.write(product, day, [rows[key] for key in sorted(rows)])
    assert len(paper.files) > 10
    return paper


def of_product(shown: Paper, product: str) -> Iterator[tuple[date, list[Row]]]:
    """The days and rows of a product."""
    for key, rows in shown.files.items():
        if product in key:
            yield date.fromisoformat(key.split("/")[-1].removesuffix(".csv.gz")), rows


@pytest.mark.parametrize("product", HEADERS)
def test_every_row_that_was_ever_shown_comes_back_over_rest(
    shown: Paper, started: Start, client: Client, product: str
) -> None:
    vendor = client(started(flat_files=shown.folder))

    def asked_for(row: Row, day: date) -> tuple[list[Any], Body, str]:
        ticker = row["ticker"]
        if product == "trades_v1":
            return (
                list(vendor.list_trades(ticker, timestamp=day)),
                papers.trade_over_rest(row),
                "sip_timestamp",
            )
        if product == "quotes_v1":
            return (
                list(vendor.list_quotes(ticker, timestamp=day)),
                papers.quote_over_rest(row),
                "sip_timestamp",
            )
        bars = vendor.list_aggs(ticker, 1, product.split("_")[0], day, day, adjusted=False)
        expected = papers.bar_over_rest(row)
        if product == "day_aggs_v1":  # in old files a day is stamped with its close, over REST with its start
            expected["timestamp"] = papers.instant(day, 0) // MILLISECOND
        return list(bars), expected, "timestamp"

    for day, rows in of_product(shown, product):
        for row in rows:
            found, expected, stamp = asked_for(row, day)
            [got] = [each for each in found if getattr(each, stamp) == expected[stamp]]
            assert {name: getattr(got, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("product", "channel", "told"),
    [("trades_v1", "T", papers.trade_over_stream), ("quotes_v1", "Q", papers.quote_over_stream)],
)
def test_every_tick_that_was_ever_shown_comes_back_over_the_stream(
    shown: Paper, started: Start, product: str, channel: str, told: Callable[[Row], Body]
) -> None:
    for day, rows in of_product(shown, product):
        expected = sorted((told(row) for row in rows), key=lambda row: str(row["timestamp"]))
        exchange = started(flat_files=shown.folder, day=day)
        events = hear(exchange, f"{channel}.*", count=len(rows))
        assert [{name: getattr(event, name) for name in expected[0]} for event in events] == expected


def example(shared: Path, channel: str) -> Body:
    """The vendor's example of an event of stocks."""
    listed = json.loads((shared / "payloads/ws/spec-examples.json").read_bytes())
    [found] = [item["example"] for item in listed if item["path"] == f"/stocks/{channel}"]
    return dict(found)


def streamed(exchange: Exchange, topic: str) -> Body:
    """The first event of a topic, as it came."""
    heard: list[Body] = []

    class Ear(Listener):
        def loads(self, text: str) -> Any:
            said = super().loads(text)
            heard.extend(event for event in said if event["ev"] != "status")
            return said

    async def listen() -> None:
        async with Ear(exchange, topic) as ear:
            await ear.events_heard(1)

    run(listen())
    return heard[0]


def test_the_vendors_example_of_a_trade_is_streamed_key_by_key(
    tmp_path: Path, shared: Path, started: Start
) -> None:
    event = example(shared, "T")
    codes = ",".join(map(str, event["c"]))
    values = {"ticker": event["sym"], "exchange": event["x"], "id": event["i"], "tape": event["z"]}
    values |= {"price": event["p"], "size": event["s"], "conditions": codes, "sequence_number": event["q"]}
    at = event["t"] * MILLISECOND
    Paper(tmp_path).write("trades_v1", day_of(at), [row_of("trades_v1", sip_timestamp=at, **values)])
    assert streamed(started(flat_files=tmp_path), "T.MSFT") == event


def test_the_vendors_example_of_a_quote_is_streamed_key_by_key(
    tmp_path: Path, shared: Path, started: Start
) -> None:
    event = example(shared, "Q")
    values = {"ticker": event["sym"], "bid_exchange": event["bx"], "bid_price": event["bp"]}
    values |= {"bid_size": event["bs"], "ask_exchange": event["ax"], "ask_price": event["ap"]}
    values |= {"ask_size": event["as"], "conditions": event["c"], "sequence_number": event["q"]}
    values |= {"tape": event["z"], "indicators": ",".join(map(str, event["i"]))}
    at = event["t"] * MILLISECOND
    Paper(tmp_path).write("quotes_v1", day_of(at), [row_of("quotes_v1", sip_timestamp=at, **values)])
    assert streamed(started(flat_files=tmp_path), "Q.MSFT") == event


@pytest.mark.parametrize("channel", ["A", "AM"])
def test_a_bar_is_streamed_with_the_keys_of_the_vendors_example(
    shared: Path, started: Start, paper: Paper, channel: str
) -> None:
    event = streamed(started(flat_files=paper.folder), f"{channel}.{papers.PLAIN}")
    assert list(unlike(event, [example(shared, channel)])) == []


def test_the_vendors_example_of_a_price_band_is_streamed_key_by_key(
    tmp_path: Path, shared: Path, started: Start
) -> None:
    event = example(shared, "LULD")
    event["t"] *= 1_000  # the example has microseconds; on the wire they are nanoseconds
    paper = Paper(tmp_path)
    paper.write("trades_v1", day_of(event["t"]), [row_of("trades_v1", ticker="A", sip_timestamp=event["t"])])
    (tmp_path / "reference").mkdir()
    row = {key: value for key, value in event.items() if key != "ev"}
    (tmp_path / "reference/luld.json").write_text(json.dumps([row]))
    assert streamed(started(flat_files=tmp_path), "LULD.MSFT") == event
