"""Bad input through the real receiver and recorder: counted, kept or refused by name; never a silent row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streams import Vendor, both, message, quote, settings_for, trade, until
from tapelab.live import stream
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.store import journal
from tapelab.store.datasets.dataset import open_dataset
from test_journal import frames

DEEP = b"[" * 100_000 + b"]" * 100_000

# name → a message, how many of its events break the protocol, and how many are of a kind that has no table
BAD: dict[str, tuple[bytes, int, int]] = {
    "no JSON": (b"<html>503</html>", 1, 0),
    "nothing": (b"", 1, 0),
    "half of JSON": (both(1)[:-20], 1, 0),
    "not UTF-8": (b'[{"ev":"Q","sym":"\xff\xfe","t":1}]', 1, 0),
    "not UTF-8, and looks like a status": (b'[{"ev":"status","status":"\xff"}]', 1, 0),
    "too deep": (DEEP, 1, 0),
    "too deep, and looks like a status": (b'{"status":' + DEEP + b"}", 1, 0),
    "too deep inside an event": (b'[{"ev":"Q","x":' + DEEP + b"}]", 1, 0),
    "an object": (json.dumps(quote(1)).encode(), 1, 0),
    "a number": (b"17", 1, 0),
    "null": (b"null", 1, 0),
    "an empty array": (b"[]", 0, 0),
    "an array of what is no event": (b'[1,"Q",null,[],{}]', 5, 0),
    "a kind that nobody knows": (message({"ev": "ZZ", "sym": "AAPL", "deep": [{"a": 1}]}), 0, 1),
    "a price as a string": (message({**quote(1), "bp": "100.25"}), 1, 0),
    "a time as a string": (message({**trade(1), "t": "1700000000000"}), 1, 0),
    "a time with a fraction": (message({**trade(1), "t": 1_700_000_000_000.5}), 1, 0),
    "a symbol as a number": (message({**quote(1), "sym": 7}), 1, 0),
    "a condition as a string": (message({**trade(1), "c": ["12"]}), 1, 0),
    "no symbol": (message({k: v for k, v in quote(1).items() if k != "sym"}), 1, 0),
    "no price": (message({k: v for k, v in trade(1).items() if k != "p"}), 1, 0),
    "no time": (message({k: v for k, v in quote(1).items() if k != "t"}), 1, 0),
    "a time beyond every calendar": (message({**quote(1), "t": 10**30}), 1, 0),
    "a time that nanoseconds cannot hold": (message({**quote(1), "t": 2**62}), 1, 0),
    "a size beyond every number": (b'[{"ev":"Q","sym":"AAPL","t":1700000000000,"bs":1e999}]', 1, 0),
    "a status of another shape": (b'[{"ev":"status","status":{"a":1}},{"ev":"status"}]', 2, 0),
}


def recorded(folder: Path) -> list[bytes]:
    return [m.payload for m in journal.messages(folder) if b"subscribed to" not in m.payload][2:]


@pytest.fixture(scope="module")
def vendor() -> Any:
    with Vendor() as server:
        yield server


def test_whatever_the_server_says_is_kept_counted_and_costs_no_good_event(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it in one recording: what is bad is counted one by one, the good events around it are rows."""
    monkeypatch.setattr(stream, "GATHER_EVERY", 0)
    with WebSocketDataRecorder(["AAPL"], settings=settings_for(vendor, tmp_path)) as recorder:
        malformed = unknown = 0
        for n, (name, (bad, broken, strange)) in enumerate(BAD.items()):
            vendor.tell(both(n))
            vendor.tell_raw(frames(bad))
            malformed, unknown = malformed + broken, unknown + strange
            counted = malformed + unknown
            until(
                lambda n=n, counted=counted: (
                    recorder.stats.events == 2 * n + 2
                    and recorder.stats.malformed + recorder.stats.unknown >= counted
                )
            )
            assert recorder.stats.error is None, name
            assert (recorder.stats.malformed, recorder.stats.unknown) == (malformed, unknown), name
        vendor.tell(both(len(BAD)))
        until(lambda: recorder.stats.events == 2 * len(BAD) + 2)
        assert (recorder.stats.malformed, recorder.stats.unknown) == (malformed, unknown)
    assert vendor.connections == 1
    dataset = open_dataset(recorder.save_dataset("bad"))
    assert dataset.gaps == ()
    for kind in ("quotes", "trades"):
        assert dataset.table(kind).column("sequence").to_pylist() == list(range(len(BAD) + 1))
    told = [payload for n, (bad, _, _) in enumerate(BAD.values()) for payload in (both(n), bad)]
    assert recorded(dataset.path / "journal") == [*told, both(len(BAD))]
    assert dataset.verify()


@pytest.mark.parametrize("name", ["no JSON", "not UTF-8, and looks like a status", "too deep", "null"])
def test_nonsense_during_the_login_is_passed_over(tmp_path: Path, name: str) -> None:
    class Rude(Vendor):
        async def _login(self, ws: Any, key: str) -> bool:
            ws.transport.write(frames(BAD[name][0]))
            return await super()._login(ws, key)

    with Rude() as vendor:
        with WebSocketDataRecorder(["AAPL"], settings=settings_for(vendor, tmp_path)) as recorder:
            vendor.tell(both(1))
            until(lambda: recorder.stats.events == 2)
        assert recorder.stats.malformed == BAD[name][1]


@pytest.mark.parametrize("name", ["no JSON", "not UTF-8, and looks like a status", "too deep", "null"])
def test_nonsense_as_the_last_words_of_a_connection_is_a_gap_like_any_other(
    vendor: Vendor, tmp_path: Path, name: str
) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings_for(vendor, tmp_path)) as recorder:
        vendor.tell_raw(frames(BAD[name][0]))
        until(lambda: recorder.stats.malformed == 1)
        vendor.cut()
        until(lambda: recorder.stats.gaps == 1)
        vendor.await_subscribers()
        vendor.tell(both(1))
        until(lambda: recorder.stats.events == 2)
    assert [gap.cause for gap in open_dataset(recorder.save_dataset("last")).gaps] == ["cut"]


def test_a_message_that_is_too_long_is_refused_with_a_gap_and_the_recording_goes_on(
    vendor: Vendor, tmp_path: Path
) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings_for(vendor, tmp_path)) as recorder:
        vendor.tell(both(1))
        vendor.tell_raw(b"\x81\x7f" + (2**24 + 1).to_bytes(8, "big") + b"[" * 100_000)
        until(lambda: recorder.stats.gaps == 1)
        vendor.await_subscribers()
        longest = both(2)[:-1] + b"," + json.dumps({"ev": "ZZ", "x": "x" * (2**24 - 400)}).encode() + b"]"
        assert 2**24 - 1000 < len(longest) <= 2**24
        vendor.tell(longest, both(3))
        until(lambda: recorder.stats.events == 6)
        assert recorder.stats.unknown == 1
        assert recorder.stats.dropped == 1
    dataset = open_dataset(recorder.save_dataset("long"))
    assert [gap.cause for gap in dataset.gaps] == ["protocol"]
    assert dataset.table("quotes").column("sequence").to_pylist() == [1, 2, 3]


def test_times_of_another_year_and_symbols_never_asked_for_are_kept_as_they_are(
    vendor: Vendor, tmp_path: Path
) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings_for(vendor, tmp_path)) as recorder:
        old, coming = 946_684_800_000, 4_070_908_800_000  # 2000 and 2099
        vendor.tell(message(quote(1), quote(2, start=old), quote(3, start=coming), quote(4, "TSLA")))
        until(lambda: recorder.stats.events == 4)
        vendor.tell(message(trade(5, start=0), trade(6)))  # 1970 is no time of this market
        until(lambda: recorder.stats.events == 5)
        assert recorder.stats.malformed == 1
        assert recorder.stats.lag_ms is None
    dataset = open_dataset(recorder.save_dataset("odd"))
    quotes = dataset.table("quotes")
    assert quotes.column("sequence").to_pylist() == [1, 2, 3, 4]
    assert quotes.column("symbol").to_pylist() == ["AAPL"] * 3 + ["TSLA"]
    assert [t // 10**6 for t in quotes.column("ts_event").to_pylist()[1:3]] == [old + 2, coming + 3]
    assert dataset.coverage["TSLA"].quotes == 1
    assert len(list(dataset.replay())) == 5
