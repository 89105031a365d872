"""Sessions with nobody looking: the vendor leaves every night, and the machine falls over once."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from datetime import date, time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tapelab.exchange import Exchange, opening, serve
from tapelab.exchange.tape.simulate import SimulatedMarket
from tapelab.exchange.tape.simulated import SimulatedTape
from tapelab.live.schedule import next_session
from tapelab.market import clock, replay, sessions
from tapelab.market.symbols import Market
from tapelab.massive import wire
from tapelab.settings import use
from tapelab.store.datasets.dataset import Dataset, list_datasets
from unattended_driver import Program, Told

SYMBOLS = ["ZVZZT", "ZXZZT"]
MARKET = SimulatedMarket()
DAYS = [s.date for s in sessions.between(Market.STOCKS, date(2026, 10, 5), date(2026, 10, 9))]
Hours = tuple[time, time]
WHOLE, MORNING = (time(4), time(20)), (time(9, 30), time(11))
LASTS = 6  # seconds; how long a day is streamed
LONGEST = 120.0  # seconds; nothing is waited for longer


@pytest.fixture(autouse=True)
def five_days_of_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = SimulatedTape(MARKET, tick_days=len(DAYS))
    monkeypatch.setattr(opening, "simulated", lambda seed: tape)


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for sock in held:
        sock.bind(("127.0.0.1", 0))
    ports = [int(sock.getsockname()[1]) for sock in held]
    for sock in held:
        sock.close()
    return ports


def said(port: int) -> dict[str, Any]:
    """What health says; nothing while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        found = json.loads(refused.read())
    except OSError:
        return {}
    return found


def wait_for(port: int, **facts: object) -> None:
    until = clock.monotonic() / clock.SECOND + LONGEST
    while not facts.items() <= said(port).items():
        assert clock.monotonic() / clock.SECOND < until, (facts, said(port))
        clock.sleep(0.05)


def bounds(day: date, hours: Hours) -> tuple[int, int]:
    first, last = (sessions.instant(day, at, sessions.NEW_YORK) for at in hours)
    return first, last


def wait_until(exchange: Exchange, hours: Hours, share: float) -> None:
    """Until so much of what is streamed of the day was told."""
    start, end = bounds(exchange.day, hours)
    at = start + round((end - start) * share)
    until = clock.monotonic() / clock.SECOND + LONGEST
    while exchange.position < at and not exchange.finished.is_set():
        assert clock.monotonic() / clock.SECOND < until
        clock.sleep(0.01)


def told(day: date, hours: Hours) -> dict[str, pa.Table]:
    """What the stream says of our symbols on that day, in order."""
    start, end = bounds(day, hours)
    quotes, trades = replay.in_order_of_arrival(*(_between(table, start, end) for table in MARKET.ticks(day)))
    streamed = {"quotes": wire.as_streamed(quotes, "Q"), "trades": wire.as_streamed(trades, "T")}
    return {
        kind: table.filter(pc.is_in(table["symbol"], pa.array(SYMBOLS))) for kind, table in streamed.items()
    }


def _between(table: pa.Table, start: int, end: int) -> pa.Table:
    at = table["ts_event"]
    return table.filter(pc.and_(pc.greater_equal(at, start), pc.less(at, end)))


def _keys(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["symbol"].to_pylist(), table["sequence"].to_pylist(), strict=True))


def undeclared(dataset: Dataset, want: dict[str, pa.Table]) -> int:
    """How many events were lost between two rows, or at an end, without a gap that says so."""
    lost = 0
    gaps = [(gap.start, gap.end) for gap in dataset.gaps]
    for kind, events in want.items():
        got = dataset.table(kind)
        order = {key: n for n, key in enumerate(_keys(events))}
        places = np.array([order[key] for key in _keys(got)])
        assert (np.diff(places) > 0).all()
        for name in ("ts_event", "symbol", "sequence"):
            assert got[name].equals(events.take(pa.array(places))[name])
        stamps = [0, *got["ts_recv"].to_pylist(), 2**63 - 1]
        steps = np.diff(np.concatenate([[-1], places, [len(events)]]))
        for n in np.flatnonzero(steps > 1):
            before, after = stamps[n], stamps[n + 1]
            if not any(before <= end and start <= after for start, end in gaps):
                lost += int(steps[n]) - 1
    return lost


def run(days: list[date], home: Path, hours: Hours, *, reboot: date) -> None:
    """Day by day the vendor opens, streams with one cut, and leaves; in the midst of one, a power cut."""
    rest, ws, s3, health = free_ports(4)
    ports = {"rest_port": rest, "ws_port": ws, "s3_port": s3}
    now, left = home / "clock", len(days)
    Told.tell(now, next_session(sessions.day_start(Market.STOCKS, days[0])).start - clock.HOUR)
    with serve(simulate=True, day=days[0], **ports) as first:
        settings = first.settings(home)
    given: dict[str, object] = {"clock": str(now), "symbols": SYMBOLS, "health_port": health}
    running = Program(settings, **given, count=left)
    try:
        for day in days:
            slot = next_session(sessions.day_start(Market.STOCKS, day))
            wait_for(health, state="waiting")
            start, end = bounds(day, hours)
            speed = (end - start) / clock.SECOND / LASTS
            with serve(simulate=True, day=day, start=start, until=end, speed=speed, **ports) as exchange:
                Told.tell(now, slot.start - clock.SECOND)
                wait_for(health, state="recording", connected=True, dataset=slot.name)
                wait_until(exchange, hours, 0.3)
                exchange.disconnect_clients(clean=day.day % 2 == 0)
                if day == reboot:
                    wait_until(exchange, hours, 0.5)
                    running.kill()
                    wait_until(exchange, hours, 0.6)
                    exchange.pause()
                    running = Program(settings, **given, count=left)
                    wait_for(health, state="recording", connected=True)
                    exchange.resume()
                assert exchange.finished.wait(LONGEST)
                Told.tell(now, slot.stop)
                left -= 1
                if left:
                    wait_for(health, state="waiting")
                else:
                    assert running.wait(LONGEST) == 0
    finally:
        running.kill()
    with use(settings):
        recorded = list_datasets()
        assert [dataset.name for dataset in recorded] == [f"session_{day}" for day in days]
        for dataset, day in zip(recorded, days, strict=True):
            want = told(day, hours)
            assert undeclared(dataset, want) == 0
            share = len(dataset.table("quotes")) / len(want["quotes"])
            assert 0.5 < share < 1
            causes = [gap.cause for gap in dataset.gaps]
            assert len(causes) == (2 if day == reboot else 1)
            assert ("killed" in causes) == (day == reboot)
            assert dataset.verify() > 0


def test_two_sessions_unattended_with_a_night_between_and_a_power_cut_lose_nothing_undeclared(
    tmp_path: Path,
) -> None:
    run(DAYS[:2], tmp_path, MORNING, reboot=DAYS[1])


@pytest.mark.slow
def test_five_sessions_unattended_with_their_nights_and_a_power_cut_lose_nothing_undeclared(
    tmp_path: Path,
) -> None:
    run(DAYS, tmp_path, WHOLE, reboot=DAYS[2])
