"""Your own splits and dividends, in the place of what the vendor lists wrongly.

`overrides/splits.json` and `overrides/dividends.json` below TAPELAB_HOME hold, by symbol, the whole list that
is to be believed; an empty list means that there are none:

    {"AAPL": [{"execution_date": "2020-08-31", "split_from": 1, "split_to": 4}]}
    {"SHEL": [{"ex_dividend_date": "2024-02-15", "cash_amount": 0.688}]}

Cash is in US dollars, for a share of that day. What is written there is not compared with prices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from tapelab.errors import SettingError
from tapelab.market.adjust import Dividend, Split

FOLDER = "overrides"

SPLITS = '{"AAPL": [{"execution_date": "2020-08-31", "split_from": 1, "split_to": 4}]}'
DIVIDENDS = '{"SHEL": [{"ex_dividend_date": "2024-02-15", "cash_amount": 0.688}]}'

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_T = TypeVar("_T")


class _Split(msgspec.Struct, forbid_unknown_fields=True):
    execution_date: date
    split_from: _Positive
    split_to: _Positive


class _Dividend(msgspec.Struct, forbid_unknown_fields=True):
    ex_dividend_date: date
    cash_amount: _Positive


@dataclass(frozen=True)
class Overrides:
    """The symbols for which your own lists count."""

    splits: Mapping[str, tuple[Split, ...]]
    dividends: Mapping[str, tuple[Dividend, ...]]

    @classmethod
    def load(cls, home: Path) -> Overrides:
        """What lies below `home`. Raises `SettingError` for a file that is not as it should be."""
        splits = _read(splits_file(home), _Split, SPLITS)
        dividends = _read(dividends_file(home), _Dividend, DIVIDENDS)
        return cls(
            {
                symbol: tuple(Split(symbol, row.execution_date, row.split_from, row.split_to) for row in rows)
                for symbol, rows in splits.items()
            },
            {
                symbol: tuple(Dividend(symbol, row.ex_dividend_date, row.cash_amount) for row in rows)
                for symbol, rows in dividends.items()
            },
        )


NO_OVERRIDES = Overrides({}, {})


def splits_file(home: Path) -> Path:
    return home / FOLDER / "splits.json"


def dividends_file(home: Path) -> Path:
    return home / FOLDER / "dividends.json"


def _read(path: Path, row: type[_T], example: str) -> dict[str, list[_T]]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, list[row]])  # type: ignore[valid-type]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise SettingError(
            f"{path} is not a list of rows by symbol: {cause}.",
            remedy=f"It looks like {example}.",
            path=str(path),
        ) from cause
    except OSError as cause:
        raise SettingError(
            f"{path} cannot be read: {cause.strerror}.", remedy="Check its permissions.", path=str(path)
        ) from cause
