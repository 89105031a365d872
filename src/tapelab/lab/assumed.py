"""What follows from the data and the run, beside the rules that were chosen."""

from __future__ import annotations

from tapelab.lab.broker import Broker
from tapelab.lab.loop import Record
from tapelab.lab.rules import Assumption
from tapelab.lab.sources import Source
from tapelab.lab.strategy import Strategy

ROUND_LOT = 100  # shares that one lot stands for where quote sizes are in lots

_QUOTE_SIZES = {
    "shares": Assumption("Quote sizes", "shares", "Displayed sizes are taken as shares."),
    "lots": Assumption(
        "Quote sizes", "round lots", f"Displayed sizes are round lots of {ROUND_LOT} shares each."
    ),
    "unknown": Assumption(
        "Quote sizes",
        "unit unknown, taken as shares",
        "The source does not say whether displayed sizes are shares or lots. Shares is the smaller reading, "
        "so takers may have been held back too much.",
    ),
}
_IMPACT = Assumption(
    "Impact", "none", "The orders change nothing in the market: nobody reacts to them or is crowded out."
)
_MONEY = Assumption(
    "Money",
    "free and without limit",
    "Cash may fall below zero and shares may be sold short, without interest, margin or borrowing cost.",
)
_SIMULATED = Assumption(
    "Market", "simulated", "These prices were made up; they say nothing about any real market."
)
_BARS_IN_ORDER = Assumption(
    "Order of events",
    "bars by their end",
    "A bar is known at its end; bars that end together come by symbol.",
)
_BARS_AS_GIVEN = Assumption(
    "Bars", "as the data has them", "The strategy's own choice of bars is for quotes and trades only."
)
_AS_RECEIVED = Assumption(
    "Order of events",
    "as received",
    "Quotes and trades come in the order in which they arrived here. The time is the exchange's: how late "
    "the feed was is not counted; add it to the latency.",
)
_BY_THE_EXCHANGE = Assumption(
    "Order of events",
    "trade before quote at equal time",
    "Nobody received these ticks, so the exchange's clock orders them, and a trade comes before the quotes "
    "that share its time. Where many share a time another order is as likely, and maker fills depend on it.",
)


def assumed(
    strategy: Strategy, source: Source, broker: Broker, record: Record, unit: str
) -> tuple[Assumption, ...]:
    """The order of events, the unit of sizes, bars, valuation, gaps: whatever holds for this run."""
    found = [_order_of_events(source)]
    if len(source.quotes):
        found.append(_QUOTE_SIZES.get(unit, _QUOTE_SIZES["unknown"]))
    if strategy.bars and source.ticks:
        found.append(_bars_on_the_way(strategy.bars, source, record.late_prints))
    elif strategy.bars:
        found.append(_BARS_AS_GIVEN)
    unquoted = sorted(set(source.symbols) - set(broker.quotes)) if len(source.quotes) else []
    if unquoted:
        text = "The data holds no quotes of them, so market orders in them could not fill."
        found.append(Assumption("Symbols without quotes", ", ".join(unquoted), text))
    mark = "mid" if len(source.quotes) else "print" if len(source.trades) else "close"
    end = Assumption(
        "End",
        f"valued at the last {mark}",
        "What is still held is not closed: it pays no further spread and no further fee. "
        f"Orders that were still working were withdrawn: {record.unfilled:,}.",
    )
    found += [_IMPACT, _MONEY, end]
    if source.gaps:
        text = "In a gap nothing is seen: orders wait, positions keep their last price."
        found.append(Assumption("Gaps", f"{len(source.gaps):,} known", text))
    if source.provenance.get("simulated"):
        found.append(_SIMULATED)
    return tuple(found)


def _order_of_events(source: Source) -> Assumption:
    if not source.ticks:
        return _BARS_IN_ORDER
    return _AS_RECEIVED if source.received else _BY_THE_EXCHANGE


def _bars_on_the_way(interval: str, source: Source, late: int) -> Assumption:
    text = (
        "Built from the prints that had arrived when the bar ended, by the vendor's condition rules."
        if "trades" in source.carried
        else "The data holds no trades: bars are built from mids, without volume."
    )
    left_out = f" Ticks that came after the end of their bar are in none: {late:,}." if late else ""
    return Assumption("Bars", interval, text + left_out)
