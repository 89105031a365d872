"""What a recording lacks, told apart: silence, gaps, undeclared loss, late prints, corrections, revisions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from heal_tape import T0, Loss, Recorder, Tape, Tick
from tapelab.errors import NoData
from tapelab.live.completeness import compare
from tapelab.live.heal import heal_from
from tapelab.market import clock, tables
from tapelab.settings import Settings, use
from tapelab.store.datasets import catalogue

TICKS = ("quotes", "trades")


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> object:
    with use(Settings.load(home=tmp_path)) as settings:
        yield settings


def ticks(count: int) -> list[Tick]:
    """A quote and a trade of AAA in turn, one a second."""
    return [Tick(TICKS[n % 2], "AAA", n * clock.SECOND) for n in range(count)]


def minute(n: int) -> pd.Timestamp:
    return pd.Timestamp(T0 + n * clock.MINUTE, tz="UTC")


def rows(table: pd.DataFrame, channel: str, **where: object) -> pd.DataFrame:
    found = table[(table["channel"] == channel) & (table["symbol"] == "AAA")]
    for name, value in where.items():
        found = found[found[name] == value]
    return found


def test_everything_is_there_or_healed_and_the_report_says_so() -> None:
    tape = Tape(ticks(300))
    dataset = Recorder().record(tape, [Loss(130, 150)], "day", parts_of=400)
    before = compare(dataset, tape)
    assert (before.lacking, before.table["lost"].sum()) == (20, 20)
    assert "20 lacking in gaps, in 1 minutes" in str(before)
    assert before.as_dict()["minutes"][0]["minute"] == minute(2).isoformat()  # type: ignore[index]
    report = heal_from(dataset, tape).report()
    assert (report.lacking, report.final) == (0, True)
    assert rows(report.table, "quotes")["healed"].tolist() == [0, 0, 10, 0, 0]
    assert rows(report.table, "quotes")["status"].tolist() == [
        "complete", "complete", "healed", "complete", "complete"
    ]  # fmt: skip
    assert "Nothing is lacking." in str(report)
    assert (report.table["source"] == report.table["received"] + report.table["healed"]).all()


def test_what_is_lacking_outside_the_gaps_is_no_gaps_loss() -> None:
    tape = Tape(ticks(300))
    dataset = Recorder().record(tape, [Loss(20, 24), Loss(200, 206, declared=False)], "day", parts_of=400)
    report = heal_from(dataset, tape).report()
    assert rows(report.table, "trades", status="undeclared")["minute"].tolist() == [minute(3)]
    assert report.table["undeclared"].sum() == report.lacking == 6
    assert "6 lacking outside the gaps" in str(report)


def test_silence_is_told_from_loss() -> None:
    tape = Tape([tick for tick in ticks(400) if not 120 <= tick.at // clock.SECOND < 180])
    dataset = Recorder().record(tape, [Loss(250, 256)], "day", parts_of=400)
    report = compare(dataset, tape)
    assert rows(report.table, "quotes", status="silent")["minute"].tolist() == [minute(2)]
    assert set(report.table[report.table["symbol"] == "BBB"]["status"]) == {"silent"}
    assert rows(report.table, "quotes", status="lost")["minute"].tolist() == [minute(5)]


def test_late_prints_and_corrections_are_counted_and_are_no_loss() -> None:
    made = ticks(300)
    made[101] = Tick("trades", "AAA", made[101].at, waited=90 * clock.SECOND)
    made[161] = Tick("trades", "AAA", made[161].at, correction=8)
    tape = Tape(made)
    dataset = Recorder(late={221: 280}).record(tape, [], "day", parts_of=400)
    report = compare(dataset, tape)
    assert report.lacking == 0
    assert rows(report.table, "trades", late=1)["minute"].tolist() == [minute(1), minute(3)]
    assert rows(report.table, "trades", corrected=1)["minute"].tolist() == [minute(2)]
    assert set(report.table[report.table["symbol"] == "AAA"]["status"]) == {"complete"}


def test_what_the_source_does_not_know_is_extra() -> None:
    tape = Tape(ticks(300))
    dataset = Recorder().record(tape, [], "day", parts_of=400)
    without = Tape([Tick("quotes", "CCC", t.at) if n == 130 else t for n, t in enumerate(tape.ticks)])
    report = compare(dataset, without)
    assert rows(report.table, "quotes", extra=1)["minute"].tolist() == [minute(2)]
    assert report.lacking == 0


def test_bars_that_were_revised_are_told_from_bars_that_were_lost() -> None:
    tape = Tape(ticks(600))
    told = [
        {
            "timestamp": T0 + n * clock.MINUTE, "session": clock.date_of(T0, "America/New_York"),
            "symbol": "AAA", "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0 + n,
            "vwap": None, "transactions": 3,
        }
        for n in range(8)
    ]  # fmt: skip
    tape.bars = pa.Table.from_pylist(told, schema=tables.BARS)
    heard = [dict(row, volume=3.0) if n == 2 else row for n, row in enumerate(told) if n not in (4, 6)]
    recorder = Recorder(topics=("Q.AAA", "T.AAA", "AM.AAA"), channels=("quotes", "trades", "bars"))
    bars = pa.Table.from_pylist(heard, schema=tables.BARS)
    dataset = recorder.record(tape, [Loss(290, 310)], "day", parts_of=700, bars=bars)
    report = compare(dataset, tape)
    found = rows(report.table, "bars", source=1).set_index("minute")
    assert found.loc[minute(2), ["revised", "status"]].tolist() == [1, "complete"]
    assert found.loc[minute(4), "status"] == "lost"
    assert found.loc[minute(6), "status"] == "undeclared"
    assert found["revised"].sum() == 1


def test_a_source_that_is_not_that_far_is_compared_as_far_as_it_is() -> None:
    tape = Tape(ticks(300), final=False, until=T0 + 200 * clock.SECOND)
    dataset = Recorder().record(tape, [], "day", parts_of=400)
    report = compare(dataset, tape)
    assert not report.final
    assert (report.lacking, report.table["extra"].sum()) == (0, 0)
    assert rows(report.table, "quotes")["minute"].max() == minute(3)
    assert "(provisional)" in str(report)
    assert "up to 2013-10-09T14:03:1" in str(report)


def test_symbols_added_later_are_not_lacking_before(tmp_path: Path) -> None:
    tape = Tape([Tick("quotes", ("AAA", "BBB")[n % 2], n * clock.SECOND) for n in range(300)])
    recorder = Recorder(channels=("quotes",))
    losses = [Loss(0, 150, ("BBB",), declared=False)]
    dataset = recorder.record(
        tape, losses, "day", parts_of=400, changed={0: ("Q.AAA",), 150: ("Q.AAA", "Q.BBB")}
    )
    report = compare(dataset, tape)
    assert report.lacking == 0
    assert len(report.stretches) == 2


def test_of_a_whole_market_every_symbol_of_the_file_counts() -> None:
    tape = Tape(ticks(300), route="flat_file")
    tape.ticks[150] = Tick("quotes", "RARE", tape.ticks[150].at)
    dataset = Recorder(topics=("Q.*",), channels=("quotes",)).record(
        tape, [Loss(150, 151, declared=False)], "day", parts_of=400
    )
    report = compare(dataset, tape)
    assert report.table[report.table["undeclared"] > 0]["symbol"].tolist() == ["RARE"]
    assert report.notes == ()
    assert "silent" not in set(report.table["status"])
    tape.route = "rest"
    assert "REST was asked for the symbols that were seen" in str(compare(dataset, tape))


def test_what_was_imported_has_nothing_to_be_compared() -> None:
    tape = Tape(ticks(10))
    dataset = catalogue.from_tables("imported", quotes=tape.table("quotes"), source="flat_file")
    with pytest.raises(NoData, match="imported"):
        compare(dataset, tape)
