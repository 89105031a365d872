"""Starting, using and closing the stand-in exchange."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from pathlib import Path

import httpx
import pytest
import websockets

from tapelab import settings
from tapelab.errors import BadRange, ServeError, UnknownName, UsageError
from tapelab.exchange import serve
from tapelab.market import clock, sessions
from tapelab.market.symbols import Market
from test_exchange_tape import DAY, folder_of


def test_it_says_where_it_is_in_one_line_of_json() -> None:
    with serve(simulate=True) as exchange:
        said = json.loads(exchange.ready_line())
        assert "\n" not in exchange.ready_line()
        assert list(said) == [
            "rest_url",
            "ws_url",
            "s3_endpoint",
            "s3_bucket",
            "api_key",
            "s3_access_key_id",
            "s3_secret_access_key",
        ]
        assert said["ws_url"].startswith("ws://127.0.0.1:")
        assert not said["ws_url"].endswith("/stocks")
        assert said["s3_bucket"] == "flatfiles"
        assert (
            httpx.get(f"{said['rest_url']}/v1/marketstatus/now?apiKey={said['api_key']}").status_code == 200
        )


def test_everything_in_its_context_talks_to_it_and_keeps_a_home_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MASSIVE_API_KEY", "the user's own")
    monkeypatch.setenv("TAPELAB_HOME", str(tmp_path))
    before = settings.current()
    with serve(simulate=True) as exchange:
        with exchange.use() as used:
            assert settings.current() is used
            assert used.rest_url == exchange.rest_url
            assert used.need_api_key() == exchange.api_key
            assert used.need_s3() == (exchange.s3_access_key_id, exchange.s3_secret_access_key)
            assert used.endpoint != "massive"
            assert used.rest_calls_per_day == used.flat_file_gb_per_month == 0
            home = used.home
            assert home.is_dir()
            assert tmp_path not in home.parents
        assert not home.exists()
        assert settings.current() == before
        with exchange.use(tmp_path / "mine") as used:
            assert used.home == tmp_path / "mine"


def test_the_same_tape_has_the_same_keys_and_another_has_others() -> None:
    with serve(simulate=True) as one, serve(simulate=True) as same, serve(simulate=True, seed=8) as other:
        assert one.api_key == same.api_key != other.api_key
        assert one.rest_url != same.rest_url
        keys = (one.api_key, one.s3_access_key_id, one.s3_secret_access_key)
        assert len(set(keys)) == 3
        assert all(key.startswith("demo-") for key in keys)
        assert not any(key in repr(one) for key in keys)


def test_ports_are_free_again_after_it_was_closed() -> None:
    with serve(simulate=True) as exchange:
        ports = [
            int(url.rpartition(":")[2]) for url in (exchange.rest_url, exchange.ws_url, exchange.s3_endpoint)
        ]
    with serve(simulate=True, rest_port=ports[0], ws_port=ports[1], s3_port=ports[2]) as again:
        assert again.rest_url == exchange.rest_url


@pytest.mark.parametrize("option", ["rest", "ws", "s3"])
def test_a_port_in_use_is_named_with_the_way_out(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError) as caught:
            serve(simulate=True, **{f"{option}_port": port})  # type: ignore[arg-type]
    assert f"Port {port}" in caught.value.message
    assert "in use" in caught.value.message
    assert f"--{option}-port" in caught.value.remedy


def test_a_host_that_is_not_here_is_refused() -> None:
    with pytest.raises(ServeError, match="cannot be opened"):
        serve(simulate=True, host="192.0.2.1")
    with pytest.raises(ServeError, match="no port 99999"):
        serve(simulate=True, rest_port=99999)


def test_it_closes_in_bounded_time_whatever_clients_do() -> None:
    others = set(threading.enumerate())  # exchanges that other tests share

    async def stay() -> None:
        exchange = serve(simulate=True, speed=0)
        async with websockets.connect(f"{exchange.ws_url}/stocks", max_queue=1, close_timeout=1) as ws:
            await ws.send(json.dumps({"action": "auth", "params": exchange.api_key}))
            await ws.send(json.dumps({"action": "subscribe", "params": "T.*,Q.*"}))
            await ws.recv()
            # It never reads another word. Half a request is left open as well.
            with socket.create_connection(("127.0.0.1", int(exchange.rest_url.rpartition(":")[2]))) as half:
                half.sendall(b"GET /v1/marketstatus/now HTTP/1.1\r\nHost: ")
                begun = clock.monotonic()
                await asyncio.to_thread(exchange.close)
                assert clock.monotonic() - begun < 10 * clock.SECOND
        exchange.close()
        with pytest.raises(ServeError, match="closed"):
            exchange.pause()

    asyncio.run(stay())
    left = set(threading.enumerate()) - others
    assert not [thread for thread in left if thread.name == "tapelab-exchange"]


def test_its_clock_stands_at_the_beginning_until_somebody_listens() -> None:
    with serve(simulate=True) as exchange:
        session = sessions.session(Market.STOCKS, exchange.day)
        assert session is not None
        assert exchange.position == session.start
        assert exchange.now == session.end  # nothing is said yet, so all of the tape is history
        assert not exchange.finished.is_set()
    with serve(simulate=True, start="09:30") as exchange:
        assert exchange.position == session.open
    with serve(simulate=True, start=session.close) as exchange:
        assert exchange.position == session.close


def test_the_latest_day_with_ticks_is_streamed_unless_another_is_asked_for(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with serve(flat_files=folder) as exchange:
        assert exchange.day == DAY
    with serve(simulate=True) as exchange:
        days = exchange.tape.days("us_stocks_sip/trades_v1")
        assert exchange.day == days[-1]
    with serve(simulate=True, day=str(days[0])) as exchange:
        assert exchange.day == days[0]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({}, UsageError, "Nothing to serve"),
        ({"simulate": True, "flat_files": "."}, UsageError, "only one"),
        ({"flat_files": "/no/such/folder"}, ServeError, "no folder"),
        ({"simulate": True, "day": "2026-10-10"}, BadRange, "no ticks on 2026-10-10"),
        ({"simulate": True, "day": "tomorrow"}, BadRange, "not a date"),
        ({"simulate": True, "start": "half past nine"}, BadRange, "not a time"),
        ({"simulate": True, "start": "10:00", "until": "09:30"}, BadRange, "not after"),
        ({"simulate": True, "speed": -1}, UsageError, "speed=-1"),
        ({"simulate": True, "speed": float("nan")}, UsageError, "speed=nan"),
        ({"simulate": True, "wait_for": -1}, UsageError, "wait_for=-1"),
        ({"simulate": True, "plan": "stater"}, UnknownName, "'stater'"),
        ({"simulate": True, "keys": {"a-good-key": "stater"}}, UnknownName, "'stater'"),
        ({"simulate": True, "keys": {"short": "basic"}}, UsageError, "keys cannot be used"),
        ({"simulate": True, "follow": True}, UsageError, "Only a recording"),
        ({"dataset": "any", "follow": True, "day": "2026-10-02"}, UsageError, "own day and pace"),
        ({"simulate": True, "faults": {"strem": []}}, UnknownName, "'strem'"),
        ({"simulate": True, "faults": "/no/such/script.toml"}, UsageError, "fault script"),
    ],
)
def test_a_question_without_sense_is_refused_with_the_way_out(
    options: dict[str, object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        serve(**options)  # type: ignore[arg-type]
    assert getattr(caught.value, "remedy", "")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="no flat files"):
        serve(flat_files=tmp_path)
