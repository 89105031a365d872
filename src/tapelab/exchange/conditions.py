"""`/v3/reference/conditions`: the sale conditions by which bars are built here (`market.conditions`)."""

from __future__ import annotations

from tapelab.exchange import listing
from tapelab.exchange.ask import Ask, Refused
from tapelab.exchange.listing import Listing
from tapelab.exchange.tape import Row
from tapelab.market.conditions import CONDITIONS, Condition, Moves

ASSET_CLASSES = ("stocks", "options", "crypto", "fx", "futures")

_LISTING = Listing(
    filters={"id": "number", "type": "text", "name": "text"},
    sort="id",
    order="asc",
    limit=10,
    most=1000,
    counted=True,
)


def conditions(ask: Ask) -> bytes:
    """`/v3/reference/conditions`: those of trades. Those of quotes and other markets are not known here."""
    of_stocks(ask)
    if ask.choice("data_type", "trade", "trade", "bbo", "nbbo") != "trade":
        raise Refused("no_ticker", "The conditions of quotes are not known here; those of trades are.")
    sip = ask.choice("sip", "", "", "CTA", "UTP", "OPRA")
    return listing.answer(ask, _LISTING, [_row(c) for c in CONDITIONS if not sip or sip in _letters(c)])


def of_stocks(ask: Ask) -> None:
    """Refuse a question about another market."""
    asset_class = ask.choice("asset_class", "stocks", *ASSET_CLASSES)
    if asset_class != "stocks":
        raise Refused("no_ticker", f"This exchange speaks for stocks; it knows nothing of {asset_class}.")


def _row(condition: Condition) -> dict[str, object]:
    row: dict[str, object] = {
        "id": condition.id,
        "type": condition.kind,
        "name": condition.name,
        "asset_class": "stocks",
        "sip_mapping": _letters(condition) or None,
        "update_rules": {
            "consolidated": _moves(condition.consolidated),
            "market_center": _moves(condition.market_center),
        },
        "data_types": ["trade"],
        "legacy": condition.legacy or None,
    }
    return {key: value for key, value in row.items() if value is not None}


def _letters(condition: Condition) -> dict[str, str]:
    letters = {"CTA": condition.cta, "UTP": condition.utp}
    return {sip: letter for sip, letter in letters.items() if letter is not None}


def _moves(moves: Moves) -> Row:
    return {f"updates_{name}": allowed for name, allowed in moves._asdict().items()}
