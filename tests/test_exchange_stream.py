"""The exchange's live stream, judged by the vendor's own client and by every frame."""

from __future__ import annotations

import asyncio
import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import websockets
from massive import WebSocketClient
from massive.exceptions import AuthError
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from exchange_clients import (
    AUTHENTICATED,
    CONNECTED,
    WITHIN,
    Event,
    Start,
    ask,
    connected,
    everything,
    heard,
    run,
    said,
    said_on,
    script_of,
)
from tapelab.exchange import Exchange
from tapelab.exchange.stream import app as stream
from tapelab.exchange.stream.speaker import Speaker
from tapelab.exchange.stream.voice import Voice
from tapelab.exchange.tape import FlatFileTape, Tape
from test_exchange_tape import DAY, MINUTE, OPEN

pytest_plugins = "exchange_fixtures"


async def vendors_client(exchange: Exchange, topics: list[str], count: int) -> list[Any]:
    """What the vendor's own client hands over, until it has `count` messages."""
    feed = exchange.ws_url.removeprefix("ws://")
    client = WebSocketClient(exchange.api_key, feed=feed, market="stocks", secure=False, subscriptions=topics)
    found: list[Any] = []
    enough = asyncio.Event()

    async def handle(messages: list[Any]) -> None:
        found.extend(messages)
        if len(found) >= count:
            enough.set()

    listening = asyncio.create_task(client.connect(handle))
    waiting = asyncio.create_task(enough.wait())
    await asyncio.wait([listening, waiting], return_when=asyncio.FIRST_COMPLETED)
    await client.close()
    waiting.cancel()
    await listening
    return found


def as_vendor_has_it(tape: Tape, day: date, start: int, until: int) -> list[tuple[object, ...]]:
    """Trades and quotes between two instants, straight from the tape's tables, in order of arrival."""
    ticks = tape.ticks(day)
    rows: list[tuple[int, tuple[object, ...]]] = []
    for row in within(ticks.trades, start, until):
        codes = row["conditions"]
        of_trade = (
            row["price"],
            row["size"],
            row["exchange"],
            row["id"],
            codes,
            row["sequence"],
            row["tape"],
        )
        rows.append((row["arrival"], ("T", row["symbol"], row["ts_event"] // 10**6, *of_trade)))
    for row in within(ticks.quotes, start, until):
        bid, ask = (row["bid"] or 0, row["bid_size"]), (row["ask"] or 0, row["ask_size"])
        code = (row["conditions"] or [None])[0]
        of_quote = (*bid, row["bid_exchange"], *ask, row["ask_exchange"], code, row["sequence"])
        rows.append((row["arrival"], ("Q", row["symbol"], row["ts_event"] // 10**6, *of_quote)))
    return [row for _, row in sorted(rows)]


def within(table: pa.Table, start: int, until: int) -> list[dict[str, Any]]:
    stamps = table.column("ts_event").to_numpy()
    rows: list[dict[str, Any]] = table.filter(pa.array((stamps >= start) & (stamps < until))).to_pylist()
    return rows


def from_vendors_client(m: Any) -> tuple[object, ...]:
    if m.event_type == "T":
        of_trade = (m.price, m.size, m.exchange, m.id, m.conditions, m.sequence_number, m.tape)
        return ("T", m.symbol, m.timestamp, *of_trade)
    bid = (m.bid_price, m.bid_size, m.bid_exchange_id)
    ask = (m.ask_price, m.ask_size, m.ask_exchange_id)
    return ("Q", m.symbol, m.timestamp, *bid, *ask, m.condition, m.sequence_number)


@pytest.mark.judge
def test_the_vendors_client_streams_a_simulated_minute_unchanged(started: Start) -> None:
    exchange = started(simulate=True, start="09:30", until="09:31")
    start = exchange.position
    expected = as_vendor_has_it(exchange.tape, exchange.day, start, start + MINUTE)
    bars = exchange.tape.all_bars("1m", exchange.day).to_pylist()
    bars = [bar for bar in bars if bar["timestamp"] == start]
    found = run(vendors_client(exchange, ["T.*", "Q.*", "AM.*"], len(expected) + len(bars)))
    assert [from_vendors_client(m) for m in found if m.event_type != "AM"] == expected
    assert len(expected) > 500
    minutes = {m.symbol: m for m in found if m.event_type == "AM"}
    assert found[-len(bars) :] == list(minutes.values())
    for bar in bars:
        m = minutes[bar["symbol"]]
        assert (m.open, m.high, m.low, m.close) == (bar["open"], bar["high"], bar["low"], bar["close"])
        assert (m.volume, m.vwap) == (bar["volume"], bar["vwap"])
        assert (m.start_timestamp, m.end_timestamp) == (start // 10**6, start // 10**6 + 60_000)


@pytest.mark.judge
def test_the_vendors_client_streams_a_real_minute_unchanged(started: Start, real_minutes: Path) -> None:
    exchange = started(flat_files=real_minutes, start="10:00", until="10:01")
    start = exchange.position
    expected = as_vendor_has_it(exchange.tape, exchange.day, start, start + MINUTE)
    found = run(vendors_client(exchange, ["T.*", "Q.*"], len(expected)))
    assert [from_vendors_client(m) for m in found] == expected
    assert len(expected) > 3000


@pytest.mark.judge
def test_the_vendors_client_hears_the_bands_of_a_simulated_opening(started: Start) -> None:
    exchange = started(simulate=True, start="09:30", until="09:31")
    bands = exchange.tape.bands(exchange.day)[:4]
    found = run(vendors_client(exchange, ["LULD.*"], len(bands)))
    assert [(m.symbol, m.high_price, m.low_price, m.timestamp) for m in found] == [
        (row["T"], row["h"], row["l"], row["t"]) for row in bands
    ]
    assert {m.symbol for m in found} == set(exchange.tape.symbols())
    for m in found:
        assert m.high_price > m.low_price > 0


@pytest.mark.judge
def test_the_vendors_client_is_told_that_its_key_is_wrong(started: Start) -> None:
    exchange = started(simulate=True)
    feed = exchange.ws_url.removeprefix("ws://")
    client = WebSocketClient("wrong", feed=feed, market="stocks", secure=False, subscriptions=["T.*"])

    async def nothing(messages: list[Any]) -> None:
        raise AssertionError(messages)

    with pytest.raises(AuthError, match="authentication failed"):
        run(client.connect(nothing))


@pytest.mark.judge
def test_the_handshake_is_the_vendors_frame_by_frame(started: Start, shared: Path) -> None:
    lines = (shared / "payloads/ws/handshake.jsonl").read_text().splitlines()
    frames = [json.loads(line) for line in lines]
    exchange = started(simulate=True)

    async def talk() -> None:
        async with websockets.connect(f"{exchange.ws_url}/stocks") as ws:
            for step in frames[:7]:
                if step["dir"] == "client":
                    text = json.dumps(step["frame"]).replace("<API KEY>", exchange.api_key)
                    await ws.send(text.replace("AAPL", "NONE"))
                else:
                    assert json.dumps(await said(ws)) == json.dumps(step["frame"]).replace("AAPL", "NONE")

    run(talk())


def test_the_whole_day_comes_in_order_and_none_twice(started: Start) -> None:
    exchange = started(simulate=True)

    async def listen() -> list[Event]:
        async with connected(exchange, "T.*", "Q.*", "A.*", "AM.*") as ws:
            return await heard(ws, len(expected))

    expected = script_of(exchange.tape, exchange.day, "T.*", "Q.*", "A.*", "AM.*")
    found = run(listen())
    assert found == expected
    assert exchange.finished.wait(WITHIN)
    assert exchange.position // 10**6 == max(event.get("t", event.get("e")) for event in found)


def test_bars_come_just_after_their_end(started: Start) -> None:
    exchange = started(simulate=True, start="09:30", until="09:45")

    async def listen() -> list[Event]:
        async with connected(exchange, "T.*", "Q.*", "AM.*") as ws:
            return await heard(ws, len(said_on(exchange, "T.*", "Q.*", "AM.*", minutes=15)))

    latest = 0
    bars = 0
    for event in run(listen()):
        if event["ev"] == "AM":
            bars += 1
            assert latest < event["e"]
            ended = event["e"]
        else:
            latest = event["t"]
            assert not bars or latest >= ended
    assert bars >= 4 * 15 - 2


def test_the_connection_stays_open_and_silent_after_the_end(started: Start) -> None:
    exchange = started(simulate=True, start="09:30", until="09:30:10")

    async def listen() -> None:
        count = len(said_on(exchange, "T.*", "Q.*", minutes=1 / 6))
        async with connected(exchange, "T.*", "Q.*") as ws:
            await heard(ws, count)
            assert exchange.finished.wait(WITHIN)
            await (await ws.ping())
            await ask(ws, "unsubscribe", "T.*")
            assert [event["message"] for event in await said(ws)] == ["unsubscribed to: T.*"]

    run(listen())


def test_the_key_may_come_before_the_greeting_was_read(started: Start) -> None:
    exchange = started(simulate=True)

    async def talk() -> None:
        async with websockets.connect(f"{exchange.ws_url}/stocks") as ws:
            await ask(ws, "auth", exchange.api_key)
            assert await said(ws) == CONNECTED
            assert await said(ws) == AUTHENTICATED

    run(talk())


def test_a_wrong_key_is_answered_and_cut_without_a_close_frame(started: Start) -> None:
    exchange = started(simulate=True)

    async def talk() -> None:
        async with connected(exchange, key="wrong") as ws:
            [status] = await said(ws)
            assert (status["status"], status["message"]) == ("auth_failed", "authentication failed")
            with pytest.raises(ConnectionClosedError) as caught:
                await ws.recv()
            assert caught.value.rcvd is None

    run(talk())


def test_who_is_not_logged_in_gets_nothing(started: Start) -> None:
    exchange = started(simulate=True)

    async def talk() -> None:
        async with websockets.connect(f"{exchange.ws_url}/stocks") as ws:
            await said(ws)
            await ask(ws, "subscribe", "T.*")
            assert [event["status"] for event in await said(ws)] == ["auth_required"]
        assert not exchange.finished.is_set()

    run(talk())


def test_the_exchange_is_silent_where_the_vendor_is(started: Start) -> None:
    exchange = started(simulate=True, wait_for=9)

    async def talk() -> list[Event]:
        async with connected(exchange, "T.ZVZZT") as ws:
            await ask(
                ws, "subscribe", "XX.AAPL,T.ZVZZT,T,,Q.,.,*"
            )  # unknown, known already, broken: no answer
            await ask(ws, "unsubscribe", "Q.ZVZZT,T.NONE")
            await ask(ws, "subscribe", "T.NONE, LULD.*,T.NONE")  # unknown tickers are confirmed, once
            return await said(ws)

    assert [e["message"] for e in run(talk())] == ["subscribed to: T.NONE", "subscribed to: LULD.*"]


def test_refusals_come_first_and_name_no_topic(started: Start) -> None:
    exchange = started(simulate=True, plan="starter", wait_for=9)

    async def talk() -> list[Event]:
        async with connected(exchange) as ws:
            await ask(ws, "subscribe", "AM.ZVZZT,T.ZVZZT,Q.*")
            return await said(ws)

    assert [(e["status"], e["message"]) for e in run(talk())] == [
        ("error", "not authorized"),
        ("error", "not authorized"),
        ("success", "subscribed to: AM.ZVZZT"),
    ]


def test_a_plan_without_streaming_says_so(started: Start) -> None:
    exchange = started(simulate=True, plan="basic")

    async def talk() -> list[Event]:
        async with connected(exchange, key=exchange.api_key) as ws:
            return await everything(ws)

    [status] = run(talk())
    assert status["status"] == "auth_failed"
    assert "doesn't include websocket access" in status["message"]


def test_one_connection_too_many_closes_the_older_one(started: Start) -> None:
    exchange = started(simulate=True, max_connections=1, wait_for=9)

    async def talk() -> None:
        async with connected(exchange, "T.*") as older, connected(exchange, "T.*") as newer:
            [status] = await said(older)
            assert status["status"] == "max_connections"
            assert "You may only use 1 connections at a time." in status["message"]
            with pytest.raises(ConnectionClosed) as caught:
                await older.recv()
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1008, "max_connections")
            await (await newer.ping())

    run(talk())


def test_test_symbols_are_left_out_of_wildcards(started: Start, by_hand: Path) -> None:
    exchange = started(flat_files=by_hand)

    async def talk(*topics: str, count: int) -> list[str]:
        async with connected(exchange, *topics) as ws:
            return [event["sym"] for event in await heard(ws, count)]

    assert run(talk("T.*", "Q.*", count=6)) == ["AAPL"] * 6
    assert exchange.finished.wait(WITHIN)
    named = started(flat_files=by_hand)
    exchange = named
    assert sorted(run(talk("T.*", "T.ZVZZT", count=4))) == ["AAPL", "AAPL", "AAPL", "ZVZZT"]


def test_it_is_finished_though_the_last_listener_leaves_with_the_last_event(
    started: Start, by_hand: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Speaker._send

    def then_gone(self: Speaker, voice: Voice, now: int) -> bool:
        said = send(self, voice, now)
        if voice.chunk is not None and voice._cursor == len(voice.chunk):
            for client in self._clients:
                client.wanted.clear()
        return said

    monkeypatch.setattr(Speaker, "_send", then_gone)
    exchange = started(flat_files=by_hand)

    async def talk() -> list[str]:
        async with connected(exchange, "T.*", "Q.*") as ws:
            return [event["sym"] for event in await heard(ws, 6)]

    assert run(talk()) == ["AAPL"] * 6
    assert exchange.finished.wait(10)


def test_events_of_one_nanosecond_keep_their_order(started: Start, by_hand: Path) -> None:
    exchange = started(flat_files=by_hand, start=OPEN, until=OPEN + MINUTE)

    async def talk() -> list[Event]:
        async with connected(exchange, "T.AAPL", "Q.AAPL", "AM.AAPL") as ws:
            return await heard(ws, 5)

    assert [(e["ev"], e.get("t", e.get("e"))) for e in run(talk())] == [
        ("Q", OPEN // 10**6 + 500),
        ("T", OPEN // 10**6 + 1000),
        ("Q", OPEN // 10**6 + 1000),
        ("T", OPEN // 10**6 + 2000),
        ("AM", OPEN // 10**6 + 60_000),
    ]
    assert exchange.day == DAY


@pytest.mark.parametrize("path", ["/", "/options", "/stocks/../etc", "/crypto"])
def test_other_paths_are_unknown(started: Start, path: str) -> None:
    exchange = started(simulate=True)

    async def talk() -> None:
        with pytest.raises(websockets.exceptions.InvalidStatus, match="404"):
            await websockets.connect(exchange.ws_url + path)

    run(talk())


def test_the_handshake_says_what_the_tape_is(started: Start) -> None:
    exchange = started(simulate=True, seed=8)

    async def talk() -> str:
        async with websockets.connect(f"{exchange.ws_url}/stocks") as ws:
            assert ws.response is not None
            assert "Sec-WebSocket-Extensions" not in ws.response.headers
            return str(ws.response.headers["X-Tapelab-Tape"])

    assert run(talk()) == "simulated seed=8"


def test_who_does_not_log_in_is_sent_away(started: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "AUTH_DEADLINE", 0.01)
    exchange = started(simulate=True)

    async def talk() -> list[Event]:
        async with websockets.connect(f"{exchange.ws_url}/stocks") as ws:
            return await everything(ws)

    assert [event["status"] for event in run(talk())] == ["connected", "auth_timeout"]


def test_a_tape_that_cannot_be_read_ends_the_stream_with_an_error(started: Start, by_hand: Path) -> None:
    [path] = by_hand.glob("us_stocks_sip/trades_v1/*/*/*.csv.gz")
    path.write_bytes(path.read_bytes()[:-20])
    exchange = started(flat_files=by_hand)

    async def talk() -> None:
        async with connected(exchange, "T.*") as ws:
            with pytest.raises(ConnectionClosedError) as caught:
                await ws.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1011

    run(talk())


def test_the_tape_of_a_folder_streams_its_own_minutes(by_hand: Path) -> None:
    tape = FlatFileTape(by_hand)
    events = script_of(tape, DAY, "AM.AAPL")
    assert [(e["s"] * 10**6 - OPEN) // MINUTE for e in events] == [0, 1, 5]
    assert ["vw" in e for e in events] == [True, True, False]
