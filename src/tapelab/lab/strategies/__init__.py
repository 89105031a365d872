"""Strategies to start from: one file each, one idea each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from tapelab.errors import StrategyError, UnknownName
from tapelab.lab.strategies.market_maker import MarketMaker
from tapelab.lab.strategies.moving_average_cross import MovingAverageCross
from tapelab.lab.strategies.pairs_trading import PairsTrading
from tapelab.lab.strategy import Strategy

SHIPPED: dict[str, type[Strategy]] = {
    kind.__name__: kind for kind in (MarketMaker, MovingAverageCross, PairsTrading)
}


def by_name(text: str) -> type[Strategy]:
    """The class that a name means: a shipped one, or `path/to/file.py:Class`.

    The class may be left out where the file has only one. Raises `UnknownName` with the nearest known name,
    `StrategyError` where the file cannot be imported.
    """
    path, _, name = text.rpartition(":") if ".py:" in text else (text, "", "")
    if not path.endswith(".py"):
        if text not in SHIPPED:
            raise UnknownName.among("strategy", text, SHIPPED)
        return SHIPPED[text]
    found = _strategies_in(Path(path))
    if not name and len(found) == 1:
        return next(iter(found.values()))
    if name not in found:
        raise UnknownName.among(f"strategy in {path}", name, found)
    return found[name]


def _strategies_in(path: Path) -> dict[str, type[Strategy]]:
    if not path.is_file():
        raise UnknownName(f"There is no strategy file {path}.", remedy="Check the path.", name=str(path))
    name = f"tapelab_strategy_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as cause:
        del sys.modules[name]
        raise StrategyError(
            f"{path} cannot be imported: {type(cause).__name__}: {cause}.",
            remedy="Run it with Python to see where it breaks.",
            path=str(path),
        ) from cause
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Strategy) and value.__module__ == name
    }


__all__ = ["SHIPPED", "MarketMaker", "MovingAverageCross", "PairsTrading", "by_name"]
