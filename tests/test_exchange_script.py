"""What is said on a day, in which order: the same whether the day fits in memory or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from datetime import date, time
from math import fsum
from pathlib import Path
from statistics import fmean

import pytest

from exchange_clients import told
from tapelab.errors import Damaged
from tapelab.exchange import opening
from tapelab.exchange.stream.dayscript import DayScript
from tapelab.exchange.stream.longscript import LongScript
from tapelab.exchange.stream.script import Topics
from tapelab.exchange.tape import (
    DAY_BARS,
    MINUTE_BARS,
    PRODUCTS,
    QUOTES,
    TRADES,
    FlatFileTape,
    Tape,
    simulated,
    sorting,
)
from tapelab.exchange.tape import folder as tape_folder
from tapelab.market import sessions
from tapelab.market.symbols import Market
from tapelab.massive import wire
from test_exchange_sorting import DAY as SORTED_DAY
from test_exchange_sorting import write_quotes
from test_exchange_tape import DAY, MINUTE, OPEN, folder_of

REAL_DAY = date(2013, 10, 9)
EVERYTHING = ("T.*", "Q.*", "A.*", "AM.*", "LULD.*")


@pytest.fixture
def folder(tmp_path: Path) -> FlatFileTape:
    return FlatFileTape(folder_of(tmp_path / "hand made"))


def long_script(folder: FlatFileTape, day: date, memory: int, *span: int | None) -> LongScript:
    """The day, read from a sort on the disk whatever its size."""
    paths = {p: folder.raw(p, day) if day in folder.days(p) else None for p in (QUOTES, TRADES)}
    ticks = sorting.sort_day(quotes=paths[QUOTES], trades=paths[TRADES], day=day, memory=memory)
    return LongScript(folder, ticks, day, *span)


def test_the_script_merges_channels_and_says_bars_at_their_end(folder: FlatFileTape) -> None:
    said = DayScript(folder, DAY)
    part = said.part(0)
    assert part is not None
    chunk = part.chunk(0, said.topics.heard({"T.AAPL", "Q.AAPL", "A.AAPL", "AM.AAPL"}))
    assert chunk is not None
    events = [json.loads(payload) for payload in chunk.payloads]
    assert [(e["ev"], (at - OPEN) / 1e9) for e, at in zip(events, chunk.at.tolist(), strict=True)] == [
        ("Q", 0.5),
        ("T", 1.000000001),  # a print goes before the quote of its own nanosecond
        ("Q", 1.000000001),
        ("A", 2),
        ("T", 2.000000002),
        ("AM", 60),
        ("Q", 60.5),
        ("T", 61.000000003),
        ("A", 62),
        ("AM", 120),
        ("AM", 360),
    ]


def test_the_script_can_be_cut_and_says_only_whole_bars(folder: FlatFileTape) -> None:
    said = DayScript(folder, DAY, OPEN + 1_200_000_000, OPEN + MINUTE)
    assert [json.loads(payload)["ev"] for payload in told(said, "T.*", "Q.*", "A.*", "AM.*")] == ["T"]
    assert said.start == OPEN + 1_200_000_000


def test_test_symbols_are_left_out_of_wildcards_unless_the_market_is_made_of_them(
    folder: FlatFileTape,
) -> None:
    def heard(tape: Tape, day: date, *wanted: str) -> set[str]:
        return {json.loads(event)["sym"] for event in told(DayScript(tape, day), *wanted)}

    assert heard(folder, DAY, "T.*") == {"AAPL"}
    assert heard(folder, DAY, "T.*", "T.ZVZZT") == {"AAPL", "ZVZZT"}
    tape = simulated(7)
    assert heard(tape, tape.days(TRADES)[-1], "T.*") == set(tape.symbols())


def test_a_chunk_gives_each_client_what_it_asked_for() -> None:
    tape = simulated(7)
    said = DayScript(tape, tape.days(TRADES)[-1])
    part = said.part(0)
    assert part is not None
    everything, one = said.topics.heard({"T.*", "Q.*"}), said.topics.heard({"T.ZXZZT"})
    chunk, alone = part.chunk(1000, everything), part.chunk(1000, one)
    assert chunk is not None
    assert alone is not None
    expected = [p for p in chunk.payloads[10:9000] if b'"ev":"T","sym":"ZXZZT"' in p]
    assert chunk.heard(one, 10, 9000) == expected
    assert alone.payloads == chunk.heard(one, 0, len(chunk))
    assert chunk.covers(one)
    assert not chunk.covers(said.topics.heard({"AM.*"}))


def test_topics_that_come_later_are_heard_by_wildcards() -> None:
    topics = Topics(tests_too=False)
    assert topics.number("T", "AAPL") == topics.number("T", "AAPL") == 0
    assert topics.number("Q", "AAPL") == 1
    assert topics.number("T", "ZVZZT") == 2
    assert topics.heard({"T.*", "Q.MSFT", "T."}).tolist() == [True, False, False]
    topics.number("T", "MSFT")
    assert topics.heard({"T.*", "T.ZVZZT"}).tolist() == [True, False, True, True]


@pytest.mark.parametrize("memory", [sorting.LEAST_MEMORY, 1 << 20])
def test_a_day_from_the_disk_is_said_as_from_memory(folder: FlatFileTape, memory: int) -> None:
    expected = told(DayScript(folder, DAY), *EVERYTHING)
    said = long_script(folder, DAY, memory)
    assert told(said, *EVERYTHING) == expected
    assert told(said, *EVERYTHING) == expected
    in_memory = DayScript(folder, DAY)
    assert (said.start, said.end) == (in_memory.start, in_memory.end)
    said.close()


def simulated_folder(path: Path, *, minutes: bool) -> FlatFileTape:
    """Three quarters of an hour of the simulated market as flat files: rows enough for many stretches."""
    market = simulated(7)
    day = market.days(TRADES)[-1]
    session = sessions.session(Market.STOCKS, day)
    assert session is not None
    for product in PRODUCTS:
        if product == MINUTE_BARS and not minutes:
            continue
        table = market.table(product, day)
        stamps = table.column("timestamp" if "timestamp" in table.column_names else "ts_event").to_numpy()
        if product != DAY_BARS:
            table = table.filter(
                (stamps >= session.open - 15 * MINUTE) & (stamps < session.open + 30 * MINUTE)
            )
        file = path / wire.file_key(product, day)
        file.parent.mkdir(parents=True)
        file.write_bytes(wire.write_flat_file(table, product))
    return FlatFileTape(path)


@pytest.mark.parametrize("minutes", [False, True])
def test_a_simulated_morning_from_the_disk_is_said_as_from_memory(tmp_path: Path, minutes: bool) -> None:
    folder = simulated_folder(tmp_path, minutes=minutes)
    day = folder.days(TRADES)[0]
    topics = [f"{channel}.{symbol}" for channel in ("T", "Q", "A", "AM") for symbol in folder.symbols()]
    session = sessions.session(Market.STOCKS, day)
    assert session is not None
    cut = session.open + 15 * MINUTE + 12_345_678_901
    for span in ((None, None), (session.open, cut), (cut, None)):
        expected = told(DayScript(folder, day, *span), *topics)
        said = long_script(folder, day, 4 << 20, *span)
        assert len(expected) > 3_000
        assert told(said, *topics) == expected
        in_memory = DayScript(folder, day, *span)
        assert (said.start, said.end) == (in_memory.start, in_memory.end)
        for since in (cut, cut // MINUTE * MINUTE, session.open + 1):
            assert told(said, *topics, since=since) == told(in_memory, *topics, since=since)
        said.close()


@pytest.mark.parametrize("official", [None, 321.5])
def test_a_streamed_bar_says_what_the_day_was_at_its_end(tmp_path: Path, official: float | None) -> None:
    """Recomputed print by print: volume that counts, its average price, the first price of regular hours."""
    folder = simulated_folder(tmp_path, minutes=True)
    day, symbol = folder.days(TRADES)[0], "ZVZZT"
    session = sessions.session(Market.STOCKS, day)
    assert session is not None
    if official is not None:
        row = {"symbol": symbol, "from": str(day), "open": official, "close": 300.0}
        (tmp_path / "reference").mkdir()
        (tmp_path / "reference/official.json").write_text(json.dumps([row]))
    prints = folder.of_symbol(TRADES, day, symbol).to_pylist()
    bars = [json.loads(event) for event in told(DayScript(folder, day), f"A.{symbol}", f"AM.{symbol}")]
    assert {bar["ev"] for bar in bars} == {"A", "AM"}
    assert bars[0]["s"] < session.open // 10**6 < bars[-1]["s"]
    for bar in bars[::23]:
        past = [row for row in prints if row["ts_event"] < bar["e"] * 10**6]
        counted = [row for row in past if not {15, 16, 38} & set(row["conditions"] or ())]
        volume = fsum(row["size"] for row in counted)
        assert (bar["av"], float(bar["dav"])) == (int(volume), volume)
        assert bar["a"] == pytest.approx(fsum(r["size"] * r["price"] for r in counted) / volume, abs=6e-5)
        opening = [
            row["price"]
            for row in past
            if row["ts_event"] >= session.open and not {2, 7, 12, 37, 52, 53} & set(row["conditions"] or ())
        ]
        assert bar.get("op") == (None if not opening else official or opening[0])


def test_minutes_stand_for_a_day_whose_trades_are_not_there(tmp_path: Path) -> None:
    folder = simulated_folder(tmp_path, minutes=True)
    day = folder.days(TRADES)[0]
    folder.raw(TRADES, day).unlink()
    without = FlatFileTape(tmp_path)
    volume = 0
    for event in told(DayScript(without, day), "AM.ZVZZT"):
        bar = json.loads(event)
        volume += bar["v"]
        assert (bar["av"], "a" in bar) == (volume, False)
    long = long_script(without, day, 1 << 20)
    assert told(long, "AM.ZVZZT") == told(DayScript(without, day), "AM.ZVZZT")
    long.close()


def test_large_days_are_sorted_on_the_disk_and_small_ones_are_not(
    folder: FlatFileTape, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder.sorted_ticks(DAY) is None
    assert isinstance(opening.script_of(folder, DAY, None, None), DayScript)
    monkeypatch.setattr(tape_folder, "LARGE", 100)
    large = opening.script_of(folder, DAY, None, None)
    assert isinstance(large, LongScript)
    assert told(large, *EVERYTHING) == told(DayScript(folder, DAY), *EVERYTHING)
    large.close()


def test_bands_beside_a_tape_are_said_when_they_came(folder: FlatFileTape) -> None:
    rows = [
        {"T": "AAPL", "h": 187.01, "l": 153.01, "i": [21], "z": 3, "t": OPEN + 1_000_000_001, "q": 7},
        {"T": "AAPL", "h": 188.0, "l": 154.0, "t": OPEN + 61_000_000_000, "otc": True},
        {"T": "AAPL", "h": 1.0, "l": 0.5, "t": OPEN + 86_400_000_000_000},
    ]
    (folder.folder / "reference").mkdir()
    (folder.folder / "reference/luld.json").write_text(json.dumps(rows[::-1]))
    said = DayScript(folder, DAY)
    events = told(said, "LULD.AAPL", "T.AAPL", "Q.AAPL")
    assert events[1] == (
        b'{"ev":"LULD","T":"AAPL","h":187.01,"l":153.01,"i":[21],"z":3,"t":1712323801000000001,"q":7}'
    )
    assert [json.loads(event)["ev"] for event in events] == ["Q", "LULD", "T", "Q", "T", "Q", "LULD", "T"]
    large = long_script(folder, DAY, sorting.LEAST_MEMORY)
    assert told(large, *EVERYTHING) == told(said, *EVERYTHING)
    large.close()
    (folder.folder / "reference/luld.json").write_text('[{"T": "AAPL", "t": 5}]')
    with pytest.raises(Damaged, match="luld"):
        DayScript(folder, DAY)


def test_simulated_bands_follow_the_rules_of_the_plan() -> None:
    """Recomputed print by print, as the plan is written: no arrays, no cumulative sums."""
    market = simulated(7)
    day = market.days(TRADES)[-1]
    session = sessions.session(Market.STOCKS, day)
    assert session is not None
    found = market.bands(day)
    assert [row["t"] for row in found] == sorted(row["t"] for row in found)
    for symbol in market.symbols():
        prints = [
            (row["ts_event"], row["price"])
            for row in market.of_symbol(TRADES, day, symbol).to_pylist()
            if session.open <= row["ts_event"] < session.close and not {12, 37} & set(row["conditions"] or ())
        ]
        reference, since = prints[0][1], prints[0][0]
        expected = [(since, round(reference * 1.1, 2), round(reference * 0.9, 2))]
        window: deque[tuple[int, float]] = deque()
        for at, price in prints:
            window.append((at, price))
            while window[0][0] <= at - 5 * MINUTE:
                window.popleft()
            if at < since + 30 * 10**9:
                continue
            mean = fmean(price for _, price in window)
            if abs(mean / reference - 1) >= 0.01:
                reference, since = mean, at
                expected.append((at, round(reference * 1.1, 2), round(reference * 0.9, 2)))
        assert [(row["t"], row["h"], row["l"]) for row in found if row["T"] == symbol] == expected
    said = [json.loads(event) for event in told(DayScript(market, day), "LULD.*")]
    assert [event["T"] for event in said] == [row["T"] for row in found]
    assert len(found) >= 4


@pytest.mark.slow
def test_the_real_day_from_the_disk_is_said_as_from_memory(real_day: Path) -> None:
    folder = FlatFileTape(real_day)
    expected = told(DayScript(folder, REAL_DAY), *EVERYTHING)
    said = long_script(folder, REAL_DAY, 24 << 20)
    found = told(said, *EVERYTHING)
    assert len(found) == len(expected) > 1_790_000
    assert [n for n, (ours, theirs) in enumerate(zip(found, expected, strict=True)) if ours != theirs] == []
    noon = sessions.instant(REAL_DAY, time(12), sessions.NEW_YORK)
    assert told(said, *EVERYTHING, since=noon) == told(DayScript(folder, REAL_DAY), *EVERYTHING, since=noon)
    said.close()


SPEAK = """
import json, resource, sys
from pathlib import Path
from websockets.sync.client import connect
from tapelab.exchange import serve
from tapelab.exchange.tape import folder, sorting

def peak():
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024

def hear(folder, count):
    with serve(flat_files=folder, speed=0) as exchange, connect(exchange.ws_url + "/stocks") as ws:
        for action, params in (("auth", exchange.api_key), ("subscribe", "Q.*")):
            ws.recv()
            ws.send(json.dumps({"action": action, "params": params}))
        ws.recv()
        heard = 0
        while heard < count:
            heard += ws.recv(decode=False).count(b'{"ev":"Q"')
        return heard

folder.LARGE, sorting.MEMORY = 0, int(sys.argv[3])
hear(sys.argv[1], 1_000)
before = peak()
print(hear(sys.argv[2], 5_000_000), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("memory", [32 << 20, 128 << 20])
def test_five_million_quotes_are_said_in_the_memory_that_was_given(tmp_path: Path, memory: int) -> None:
    for name, count in (("small", 1_000), ("large", 5_000_000)):
        file = tmp_path / name / wire.file_key(QUOTES, SORTED_DAY)
        file.parent.mkdir(parents=True)
        write_quotes(file, count)
    program = [sys.executable, "-c", SPEAK, str(tmp_path / "small"), str(tmp_path / "large"), str(memory)]
    done = subprocess.run(program, timeout=280, check=True, capture_output=True, text=True, env=os.environ)
    said, used = map(int, done.stdout.split())
    assert said == 5_000_000
    assert used < memory + sorting.READING
