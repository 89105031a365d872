"""The description that the exchange serves, judged by schemathesis and by what the vendor's clients send."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import WITHIN
from massive import RESTClient
from papers import SYMBOLS, TEST_SYMBOL

from tapelab.exchange import Exchange

pytestmark = pytest.mark.judge

# What schemathesis expects and the vendor does not do: 405 for other methods (it answers 404), and any text
# for a date (which is a string to a description).
NOT_THE_VENDORS = "unsupported_method,positive_data_acceptance"

WAIT = 900  # seconds; 9,400 requests take two minutes of a quiet machine

# Each method of the vendor's Python client whose endpoint is served, with that endpoint.
METHODS = {
    "list_aggs": "/v2/aggs/ticker/{ticker}/range/{multiplier}/{timespan}/{from}/{to}",
    "get_previous_close_agg": "/v2/aggs/ticker/{ticker}/prev",
    "get_grouped_daily_aggs": "/v2/aggs/grouped/locale/us/market/stocks/{date}",
    "get_daily_open_close_agg": "/v1/open-close/{ticker}/{date}",
    "list_trades": "/v3/trades/{ticker}",
    "list_quotes": "/v3/quotes/{ticker}",
    "get_last_trade": "/v2/last/trade/{ticker}",
    "get_last_quote": "/v2/last/nbbo/{ticker}",
    "get_snapshot_all": "/v2/snapshot/locale/us/markets/stocks/tickers",
    "get_snapshot_ticker": "/v2/snapshot/locale/us/markets/stocks/tickers/{ticker}",
    "list_universal_snapshots": "/v3/snapshot",
    "list_tickers": "/v3/reference/tickers",
    "get_ticker_details": "/v3/reference/tickers/{ticker}",
    "get_ticker_events": "/vX/reference/tickers/{id}/events",
    "get_ticker_types": "/v3/reference/tickers/types",
    "list_splits": "/v3/reference/splits",
    "list_stocks_splits": "/stocks/v1/splits",
    "list_dividends": "/v3/reference/dividends",
    "list_stocks_dividends": "/stocks/v1/dividends",
    "list_conditions": "/v3/reference/conditions",
    "get_exchanges": "/v3/reference/exchanges",
    "get_market_status": "/v1/marketstatus/now",
    "get_market_holidays": "/v1/marketstatus/upcoming",
}
# Arguments of the client's own, and other spellings of what stands in a path.
NOT_SENT = {"self", "params", "raw", "options", "market_type", "locale", "from_"}


def described(exchange: Exchange) -> dict[str, Any]:
    """The description, which takes no key to read."""
    answer = httpx.get(f"{exchange.rest_url}/openapi.json", timeout=WITHIN)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def parameters(description: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """What an endpoint understands."""
    return list(description["paths"][path]["get"]["parameters"])


@pytest.mark.timeout(2 * WAIT)
@pytest.mark.parametrize("examples", [8, pytest.param(300, marks=pytest.mark.slow)])
def test_schemathesis_finds_no_way_to_break_it(known: Exchange, tmp_path: Path, examples: int) -> None:
    description = described(known)
    for path in description["paths"]:
        for parameter in parameters(description, path):
            if parameter["name"] in ("ticker", "id"):  # random text is hardly ever a symbol
                symbols = {"enum": [*SYMBOLS, TEST_SYMBOL]}
                parameter["schema"] = {"anyOf": [symbols, parameter["schema"]]}
    (tmp_path / "openapi.json").write_text(json.dumps(description))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", known.rest_url),
        *("--header", f"Authorization: Bearer {known.api_key}"),
        *("--checks", "all", "--exclude-checks", NOT_THE_VENDORS),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", str(examples)),
        *("--generation-deterministic", "--continue-on-failure"),
        *("--warnings", "off", "--no-color"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-1_000:]
    assert re.search(r"Tested: (\d+)", done.stdout)[1] == str(len(description["paths"]))  # type: ignore[index]
    status = httpx.get(f"{known.rest_url}/v1/marketstatus/now?apiKey={known.api_key}", timeout=WITHIN)
    assert status.json()["exchanges"]


def test_every_parameter_of_the_vendors_client_is_understood(known: Exchange) -> None:
    description = described(known)
    missing = {
        f"{method}({argument})"
        for method, path in METHODS.items()
        for argument in inspect.signature(getattr(RESTClient, method)).parameters
        if argument not in NOT_SENT | ({"ticker"} if method == "get_ticker_events" else set())
        and re.sub(r"_(gte?|lte?|any_of)$", r".\1", argument)
        not in {parameter["name"] for parameter in parameters(description, path)}
    }
    assert missing == set()
    assert set(METHODS.values()) | {f"{METHODS['get_snapshot_all'][:-8]}/gainers"} <= set(
        description["paths"]
    )


def test_what_may_be_asked_is_described_with_its_bounds(known: Exchange) -> None:
    description = described(known)
    trades = {p["name"]: p["schema"] for p in parameters(description, METHODS["list_trades"])}
    assert trades["limit"] == {"type": "integer", "minimum": 1, "maximum": 50_000, "default": 1_000}
    assert trades["order"] == {"type": "string", "enum": ["asc", "desc"], "default": "desc"}
    assert {f"timestamp{operator}" for operator in ("", ".gt", ".gte", ".lt", ".lte")} < set(trades)
    bars = {p["name"]: p for p in parameters(description, METHODS["list_aggs"])}
    assert bars["adjusted"]["schema"] == {"type": "boolean", "default": True}
    assert (bars["from"]["in"], bars["from"]["required"], bars["limit"]["in"]) == ("path", True, "query")
    answers = description["paths"][METHODS["list_trades"]]["get"]["responses"]
    assert set(answers) == {"200", "400", "401", "403", "404", "429"}
    row = answers["200"]["content"]["application/json"]["schema"]["properties"]["results"]["items"]
    assert row["properties"]["sip_timestamp"] == {"type": "number"}
    assert row["properties"]["conditions"]["items"] == {"type": "number"}
