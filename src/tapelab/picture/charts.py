"""Figures of a backtest: equity over each other, drawdown, prices with their fills.

Plotly figures with colours that read on light and on dark; whoever shows them sets the ground. Times are
the exchange's.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.market.clock import HOUR
from tapelab.picture import words
from tapelab.picture.run import Run

if TYPE_CHECKING:
    import plotly.graph_objects as go

CURVES = ("#3b74dd", "#e0813a", "#17a08c", "#a261e0", "#d64f84", "#a8890f", "#6f8299", "#5a9e35")
BUY, SELL = "#1f8fbf", "#d9652b"
PRICE = "#7c8b9e"
GAP = "rgba(128, 134, 145, 0.18)"

FILLS_SHOWN = 3_000  # markers in one chart
FEW_FILLS = 150  # up to here markers are drawn large
SYMBOLS_SHOWN = 4  # price charts under each other
GAPS_SHOWN = 100
QUIET_HOURS = 3 * HOUR  # a longer stretch without a point is left out of the axis, if it is an exception
BREAKS_SHOWN = 60

Dates = npt.NDArray[np.datetime64]


def equity(runs: Sequence[Run], labels: Sequence[str] | None = None) -> go.Figure:
    """Profit of several runs on one dataset over each other, their drawdowns below."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.06)
    names = labels or [run.name for run in runs]
    for run, name, colour in zip(runs, names, _colours(len(runs)), strict=True):
        curve = run.tables["equity"]
        times = local_times(curve.column("timestamp"), run.zone)
        values = curve.column("equity").to_numpy()
        line = {"color": colour, "width": 1.8, "shape": "hv"}
        hover = "%{y:+,.2f}"
        profit = values - (values[0] if len(values) else 0)
        _line(figure, times, profit, name, line, hover, row=1)
        fall = curve.column("drawdown").to_numpy()
        thin = {"color": colour, "width": 1.2, "shape": "hv"}
        _line(figure, times, fall, name, thin, hover, row=2, showlegend=False)
    money = runs[0].currency if runs else ""
    figure.update_yaxes(title_text="Profit", tickformat=f"{money},.4~f", row=1, col=1)
    figure.update_yaxes(title_text="Drawdown", tickformat=f"{money},.4~f", row=2, col=1, nticks=4)
    figure.add_hline(y=0, line={"width": 1, "color": GAP}, row=1, col=1)
    return _finished(figure, runs, height=460)


def prices_with_fills(run: Run) -> go.Figure:
    """The course of each symbol that was traded, with what was bought and sold at which price."""
    from plotly.subplots import make_subplots

    symbols = charted_symbols(run)
    rows = max(len(symbols), 1)
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.26 / (rows + 3))
    fills = _thinned(run.tables["fills"])
    for row, symbol in enumerate(symbols, 1):
        course = _of(run.tables["prices"], symbol)
        times = local_times(course.column("timestamp"), run.zone)
        line = {"color": PRICE, "width": 1.2, "shape": "hv"}
        _line(
            figure,
            times,
            course.column("price").to_numpy(),
            symbol,
            line,
            "%{y:,.4~f}",
            row,
            showlegend=False,
        )
        own = _of(fills, symbol)
        for name, colour, mark, side in (
            ("bought", BUY, "triangle-up", pc.greater(own.column("size"), 0)),
            ("sold", SELL, "triangle-down", pc.less(own.column("size"), 0)),
        ):
            _markers(figure, own.filter(side), run, name, colour, mark, row)
        ticks = f"{run.currency},.{_decimals(course)}f"
        figure.update_yaxes(title_text=escape(symbol), row=row, col=1, tickformat=ticks)
    return _finished(figure, [run], height=140 + 210 * rows, hovermode="closest")


def _decimals(course: pa.Table) -> int:
    prices = pc.min_max(course.column("price")).as_py()
    return words.digits(prices["min"] or 0.0, prices["max"] or 0.0)


def charted_symbols(run: Run) -> list[str]:
    """The symbols whose prices are shown: the ones with the most fills first."""
    present = run.tables["prices"].column("symbol").unique().to_pylist()
    return list(present[:SYMBOLS_SHOWN])


def overview(run: Run) -> go.Figure:
    """Equity, drawdown and the most traded symbol's price with the fills, in one figure."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=3, cols=1, shared_xaxes=True, row_heights=[0.45, 0.17, 0.38], vertical_spacing=0.05
    )
    parts = (equity([run]), prices_with_fills(run))
    for trace in parts[0].data:
        figure.add_trace(trace, row=2 if trace.yaxis == "y2" else 1, col=1)
    for trace in parts[1].data:
        if trace.yaxis in (None, "y"):
            figure.add_trace(trace, row=3, col=1)
    symbols = charted_symbols(run)
    for row, title in enumerate(("Profit", "Drawdown", escape(symbols[0]) if symbols else "Price"), 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    made_up = " · SIMULATED" if run.simulated else ""
    figure.update_layout(
        title=escape(f"{run.name} on {run.dataset['name']}{made_up}"), template="plotly_white"
    )
    return _finished(figure, [run], height=720, hovermode="closest", top=64)


def local_times(column: pa.ChunkedArray, zone: str) -> Dates:
    """Instants (ns UTC) as the exchange's wall clock, to the millisecond."""
    stamps = column.cast(pa.int64()).cast(pa.timestamp("ns", tz=zone))
    local: Dates = pc.local_timestamp(stamps).to_numpy().astype("datetime64[ms]")
    return local


def _colours(count: int) -> list[str]:
    return [CURVES[n % len(CURVES)] for n in range(count)]


def _line(
    figure: go.Figure,
    times: Dates,
    values: npt.NDArray[np.float64],
    name: str,
    line: dict[str, Any],
    hover: str,
    row: int,
    **more: Any,
) -> None:
    figure.add_scatter(
        x=times,
        y=values,
        name=escape(name),
        mode="lines",
        line=line,
        hovertemplate=hover,
        legendgroup=name,
        row=row,
        col=1,
        **more,
    )


def _markers(
    figure: go.Figure, fills: pa.Table, run: Run, name: str, colour: str, mark: str, row: int
) -> None:
    few = len(run.tables["fills"]) < FEW_FILLS
    figure.add_scatter(
        x=local_times(fills.column("timestamp"), run.zone),
        y=fills.column("price").to_numpy(),
        name=name,
        mode="markers",
        marker={
            "symbol": mark,
            "size": 9 if few else 6,
            "color": colour,
            "line": {"width": 0.6, "color": "white"},
        },
        text=[
            f"{name} {abs(size):,.6g} as {'maker' if maker else 'taker'}"
            for size, maker in zip(
                fills.column("size").to_pylist(), fills.column("maker").to_pylist(), strict=True
            )
        ],
        hovertemplate="%{text}<br>at %{y:,.4~f}<br>%{x|%H:%M:%S.%L}<extra></extra>",
        legendgroup=name,
        showlegend=row == 1,
        row=row,
        col=1,
    )


def _finished(
    figure: go.Figure, runs: Sequence[Run], height: int, hovermode: str = "x unified", top: int = 36
) -> go.Figure:
    figure.update_layout(
        height=height,
        hovermode=hovermode,
        margin={"l": 64, "r": 16, "t": top, "b": 36},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "xanchor": "left", "title": None},
        hoverlabel={"namelength": -1},
    )
    figure.update_xaxes(rangebreaks=_breaks(runs), showgrid=False, zeroline=False)
    figure.update_yaxes(zeroline=False, separatethousands=True)
    if not runs:
        return figure
    for gap in runs[0].dataset.get("gaps", [])[:GAPS_SHOWN]:
        bounds = pa.chunked_array([pa.array([gap["start"], gap["end"]], pa.int64())])
        start, end = local_times(bounds, runs[0].zone).astype(str).tolist()
        figure.add_vrect(x0=start, x1=end, fillcolor=GAP, line_width=0, layer="below")
    if any(run.simulated for run in runs):
        figure.add_annotation(
            text="SIMULATED",
            xref="paper",
            yref="paper",
            x=0.5,
            y=0.5,
            showarrow=False,
            opacity=0.13,
            font={"size": 64},
            name="watermark",
        )
    return figure


def _breaks(runs: Sequence[Run]) -> list[dict[str, list[str]]]:
    """Nights and weekends, left out of the axis where the data is intraday."""
    if not runs:
        return []
    stamps = [np.asarray(run.tables[t].column("timestamp")) for run in runs for t in ("equity", "prices")]
    known = np.unique(np.concatenate(stamps)).astype(np.int64)
    steps = np.diff(known)
    long = np.flatnonzero(steps > QUIET_HOURS)
    if not 0 < len(long) <= BREAKS_SHOWN or len(long) * 4 > len(steps):
        return []
    edges = pa.chunked_array([pa.array(np.stack([known[long], known[long + 1]], axis=1).ravel())])
    pairs = local_times(edges, runs[0].zone).astype(str).reshape(-1, 2)
    return [{"bounds": pair} for pair in pairs.tolist()]


def _of(table: pa.Table, symbol: str) -> pa.Table:
    return table.filter(pc.equal(table.column("symbol"), symbol))


def _thinned(fills: pa.Table) -> pa.Table:
    if len(fills) <= FILLS_SHOWN:
        return fills
    return fills.take(pa.array(np.unique(np.linspace(0, len(fills) - 1, FILLS_SHOWN).astype(np.int64))))
