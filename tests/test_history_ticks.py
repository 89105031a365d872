"""Trades and quotes of a real day: the same rows by either route, exact to the nanosecond, paid for once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tapelab import errors
from tapelab.budget import Budget
from tapelab.exchange import Exchange, serve
from tapelab.history import dataset_of_ticks, fetch_quotes, fetch_trades
from tapelab.history.mend import mend_lake
from tapelab.market import tables
from tapelab.massive import rest
from tapelab.settings import Settings, use
from tapelab.store.lake import Lake
from tapelab.store.lake.ticks import TickStore, missing

DAY = date(2013, 10, 9)
MORNING = ("2013-10-09T09:30", "2013-10-09T09:40")
FETCH = {"trades": fetch_trades, "quotes": fetch_quotes}


@pytest.fixture(scope="module")
def exchange(real_day: Path) -> Iterator[Exchange]:
    with serve(flat_files=real_day, speed=0) as found:
        yield found


@pytest.fixture
def here(exchange: Exchange, tmp_path: Path) -> Iterator[Settings]:
    """A home of its own, with budgets that count and hardly limit."""
    with use(exchange.settings(tmp_path).with_(rest_calls_per_day=1000)) as settings:
        yield settings


@pytest.fixture(scope="module")
def homes(exchange: Exchange, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Settings]:
    """One home has only seen REST and one only flat files, each with the ticks around the open."""
    found = {}
    for method in ("rest", "flat_file"):
        found[method] = exchange.settings(tmp_path_factory.mktemp(method))
        with use(found[method]):
            for fetch in FETCH.values():
                fetch(["AIG", "BAC"], "2013-10-09T09:25", "2013-10-09T09:40", method=method)
    return found


def facts(table: pa.Table) -> dict[str, object]:
    return tables.facts(table)


def bare(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)


def calls(settings: Settings) -> int:
    return Budget(settings).left().calls_today


@pytest.mark.parametrize(("kind", "names"), [("trades", ["IBM", "AIG"]), ("quotes", ["IBM"])])
def test_a_whole_day_is_the_same_by_rest_and_by_flat_file_in_every_column(
    exchange: Exchange, tmp_path: Path, kind: str, names: list[str]
) -> None:
    found = {}
    for method in ("rest", "flat_file"):
        with exchange.use(home=tmp_path / method):
            found[method] = FETCH[kind](names, DAY, DAY, method=method, frame="arrow")
            assert facts(found[method])["routes"] == {method: len(names)}
            again = FETCH[kind](names, DAY, DAY, frame="arrow")
            assert facts(again)["route"] == "cache"
            assert bare(again).equals(bare(found[method]))
    assert bare(found["rest"]).equals(bare(found["flat_file"]))


def test_trades_are_the_files_own_rows_to_the_nanosecond(here: Settings, real_day: Path) -> None:
    raw = pd.read_csv(real_day / "us_stocks_sip/trades_v1/2013/10/2013-10-09.csv.gz")
    raw = raw[raw["ticker"] == "IBM"].sort_values("sip_timestamp", kind="stable")
    found = fetch_trades("IBM", DAY, DAY)
    assert found["ts_event"].astype("int64").tolist() == raw["sip_timestamp"].tolist()
    assert found["ts_participant"].astype("int64").tolist() == raw["participant_timestamp"].tolist()
    assert found["price"].tolist() == raw["price"].tolist()
    assert found["size"].tolist() == raw["size"].tolist()
    assert found["arrival"].tolist() == list(range(len(raw)))
    assert found["ts_recv"].isna().all()
    assert found.attrs["tapelab"]["kind"] == "trades"


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    begin=st.integers(0, 900 * 10**6 - 1),
    length=st.integers(1, 300 * 10**6),
    names=st.sampled_from([["AIG"], ["BAC"], ["BAC", "AIG"]]),
    kind=st.sampled_from(["trades", "quotes"]),
)
def test_any_stretch_is_the_same_from_either_cache_and_inside_the_stretch(
    homes: dict[str, Settings], begin: int, length: int, names: list[str], kind: str
) -> None:
    start = datetime(2013, 10, 9, 9, 25) + timedelta(microseconds=begin)
    end = min(start + timedelta(microseconds=length), datetime(2013, 10, 9, 9, 40))
    found = {}
    for method, settings in homes.items():
        with use(settings):
            try:
                found[method] = bare(FETCH[kind](names, start, end, frame="arrow"))
            except errors.TapelabError as error:
                found[method] = type(error)
    assert found["rest"] == found["flat_file"]
    if isinstance(found["rest"], pa.Table):
        stamps = found["rest"]["ts_event"]
        assert pc.min(stamps).as_py() >= pd.Timestamp(start, tz="America/New_York")
        assert pc.max(stamps).as_py() < pd.Timestamp(end, tz="America/New_York")


def test_only_the_part_that_is_missing_is_asked_for(here: Settings) -> None:
    first = fetch_trades("BAC", *MORNING, method="rest")
    assert calls(here) == 1
    wider = fetch_trades("BAC", "2013-10-09T09:25", "2013-10-09T09:45", method="rest", frame="arrow")
    assert calls(here) == 3, "what lies before and what lies after"
    again = fetch_trades("BAC", *MORNING)
    assert calls(here) == 3
    pd.testing.assert_frame_equal(first.drop(columns="arrival"), again.drop(columns="arrival"))
    spans = sorted((s.start, s.end) for s in TickStore(here).stretches("trades", "BAC", DAY))
    assert missing(spans[0][0], spans[-1][1], TickStore(here).stretches("trades", "BAC", DAY)) == []
    assert len(wider) > len(first)


def test_an_interrupted_answer_goes_on_where_it_broke(
    here: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rest, "PAGE_ROWS", 400)
    whole = rest.RestClient._get
    asked: list[str] = []

    def breaking(client: rest.RestClient, target: str) -> bytes:
        asked.append(target)
        if len(asked) == 4:
            raise errors.ServerTrouble("The server is gone.", remedy="Try again later.")
        return whole(client, target)

    monkeypatch.setattr(rest.RestClient, "_get", breaking)
    with pytest.raises(errors.ServerTrouble):
        fetch_trades("BAC", *MORNING, method="rest", fallback=False)
    kept = TickStore(here).stretches("trades", "BAC", DAY)
    assert len(kept) == 1
    found = fetch_trades("BAC", *MORNING, method="rest", frame="arrow")
    assert f"timestamp.gte={kept[0].end}" in asked[4]
    with use(here.with_(home=tmp_path / "elsewhere")):
        assert bare(found).equals(bare(fetch_trades("BAC", *MORNING, method="flat_file", frame="arrow")))


def test_a_long_answer_is_kept_in_parts_that_join_without_a_seam(
    here: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tapelab.history import gather_ticks

    whole = fetch_quotes("AIG", *MORNING, method="flat_file", frame="arrow")
    monkeypatch.setattr(rest, "PAGE_ROWS", 300)
    monkeypatch.setattr(gather_ticks, "PART_ROWS", 1000)
    with use(here.with_(home=tmp_path / "elsewhere")) as other:
        parts = fetch_quotes("AIG", *MORNING, method="rest", frame="arrow")
        assert len(TickStore(other).stretches("quotes", "AIG", DAY)) > 3
    assert bare(parts).equals(bare(whole))


def test_auto_takes_the_cheaper_plan_and_says_so(here: Settings) -> None:
    few = fetch_trades("BAC", *MORNING)
    assert few.attrs["tapelab"]["reason"].startswith("Auto-selected")
    assert "cheaper: " in few.attrs["tapelab"]["reason"]


def test_a_plan_without_quotes_falls_back_or_names_the_product(real_day: Path) -> None:
    with serve(flat_files=real_day, plan="developer") as developer, developer.use():
        assert len(fetch_trades("BAC", *MORNING, method="flat_file")) > 0
        with pytest.raises(errors.NotInPlan) as caught:
            fetch_quotes("BAC", *MORNING, method="flat_file")
        assert "us_stocks_sip/quotes_v1 for 2013-10-09 is not in your plan" in str(caught.value)
        assert "REST API failed: This data is not in the plan: /v3/quotes/BAC" in str(caught.value)


def test_a_day_of_ticks_becomes_a_dataset_with_the_exchanges_clock(here: Settings) -> None:
    made = dataset_of_ticks("morning", ["AIG", "BAC"], *MORNING)
    assert made.clock == "event"
    assert made.provenance["simulated"] is False
    assert len(made.table("trades")) == len(fetch_trades(["AIG", "BAC"], *MORNING))
    events = list(made.replay())
    assert len(events) == len(made.table("trades")) + len(made.table("quotes"))
    stamps = [event.ts_event for event in events]
    assert stamps == sorted(stamps)


def test_a_simulated_market_says_so_in_ticks_and_in_what_is_made_of_them(tmp_path: Path) -> None:
    with serve(simulate=True, speed=0) as simulated, simulated.use(home=tmp_path):
        day = simulated.day
        begin = datetime(day.year, day.month, day.day, 10)
        span = (begin, begin + timedelta(minutes=5))
        for method in ("rest", "flat_file"):
            known = fetch_trades("ZVZZT", *span, method=method).attrs["tapelab"]
            assert (known["simulated"], known["tapes"]) == (True, ["simulated seed=7"])
        assert dataset_of_ticks("sim", "ZVZZT", *span).provenance["simulated"] is True


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"symbols": "BACC", "method": "flat_file"}, errors.UnknownSymbol, r"Did you mean BAC\?"),
        ({"symbols": ["BAC", "ZZZZQ"]}, errors.UnknownSymbol, "ZZZZQ has no trades"),
        ({"symbols": "ZZZZQ"}, errors.NoData, "no trades of ZZZZQ"),
        ({"method": "fast"}, errors.UnknownName, "There is no method 'fast'"),
        ({"frame": "panda"}, errors.UsageError, "'pandas', 'polars' or 'arrow'"),
        ({"start": "2013-10-12", "end": "2013-10-13"}, errors.NoData, "no trading session"),
        ({"start": "2013-10-10"}, errors.BadRange, "Swap"),
    ],
)
def test_bad_input_is_one_clear_sentence(
    here: Settings, changes: dict[str, object], error: type[Exception], says: str
) -> None:
    asked = {"symbols": "BAC", "start": DAY, "end": DAY, "method": "rest", **changes}
    with pytest.raises(error, match=says):
        fetch_trades(**asked)  # type: ignore[arg-type]


def test_a_damaged_file_of_ticks_is_named_and_fetched_again(here: Settings) -> None:
    fetch_trades("BAC", *MORNING, method="rest")
    [stretch] = TickStore(here).stretches("trades", "BAC", DAY)
    stretch.path.write_bytes(stretch.path.read_bytes()[:100])
    with pytest.raises(errors.Damaged, match=rf"{stretch.path.name} is not what was written\. Delete it"):
        fetch_trades("BAC", *MORNING)
    mended = mend_lake()
    assert [(broken.what, broken.symbol, broken.base) for broken in mended.again] == [
        ("ticks", "BAC", "trades")
    ]
    assert TickStore(here).stretches("trades", "BAC", DAY)[0].path == stretch.path
    assert fetch_trades("BAC", *MORNING).attrs["tapelab"]["route"] == "cache"


def test_ticks_that_are_here_as_a_file_cost_nothing(here: Settings) -> None:
    fetch_trades("AIG", *MORNING, method="flat_file")
    found = fetch_trades(["BAC", "IBM"], DAY, DAY, method="rest")
    assert found.attrs["tapelab"]["route"] == "cache"
    assert calls(here) == 0
    assert Lake(here).day_file("us_stocks_sip/trades_v1", DAY) is not None
