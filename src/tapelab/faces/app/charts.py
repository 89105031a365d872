"""Tables in, Altair charts out: candles, equity curves, live lines. Nothing is drawn where nothing traded."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import pandas as pd

from tapelab.faces.app.parts import CURVES, DOWN, QUIET, UP, wall_clock

MOST_CANDLES = 1_500  # more than a screen has room for; the table has them all
FEWEST_PLACES = 40  # so that a few candles are not walls
MOST_POINTS = 2_000  # of one curve
CANDLE_WIDTH = 0.7  # of a bar's place
VOLUME_SHARE = 5  # the highest volume reaches a fifth of the chart
# Midnight shows the day; the rest of the axis counts to 24.
_DAY_OR_HOUR = (
    "utcFormat(datum.value, '%H:%M:%S') == '00:00:00' ? utcFormat(datum.value, '%-d %b') "
    ": utcFormat(datum.value, utcseconds(datum.value) ? '%H:%M:%S' : '%H:%M')"
)
PRICES = alt.Axis(format=",.4~f", grid=True, gridOpacity=0.5)
HOURS = alt.Axis(grid=False, labelOverlap=True, labelExpr=_DAY_OR_HOUR)
Drawn = alt.LayerChart | alt.FacetChart
EPOCH = pd.Timestamp(0)


def placed(bars: pd.DataFrame, interval: str, zone: str) -> tuple[pd.DataFrame, list[str]]:
    """`bars` of one symbol with the `place` of each on the axis, and the label of every place.

    Sessions stand beside each other, nights and weekends take no room. Inside a session every interval
    has its place, and one in which nothing traded stays empty.
    """
    if interval[-1] in "dwo":
        labels = pd.to_datetime(bars["session"]).dt.strftime("%-d %b %Y").to_list()
        return bars.assign(place=range(len(bars)), label=labels), labels
    step = pd.Timedelta(interval)
    clock = wall_clock(bars["timestamp"], zone)
    sessions = clock.groupby(bars["session"].to_numpy())
    spells = list(zip(sessions.min(), sessions.max(), strict=True))
    form = "%H:%M:%S" if step < pd.Timedelta("1min") else "%H:%M"
    form = form if len(spells) == 1 else f"%-d %b {form}"
    grid = pd.DatetimeIndex([at for first, last in spells for at in pd.date_range(first, last, freq=step)])
    place = grid.get_indexer(pd.DatetimeIndex(clock))
    labels = grid.strftime(form).to_list()
    return bars.assign(place=place, label=[labels[at] for at in place]), labels


def candles(bars: pd.DataFrame, interval: str, zone: str) -> Drawn:
    """Open, high, low, close and volume of one symbol. Drag moves it, Shift and the wheel zoom."""
    data, labels = placed(bars.tail(MOST_CANDLES), interval, zone)
    data = data.assign(left=data["place"] - CANDLE_WIDTH / 2, right=data["place"] + CANDLE_WIDTH / 2)
    axis = alt.Axis(
        labelExpr="labels[datum.value] || ''", tickMinStep=1, grid=False, title=None, labelFlush=True
    )
    ends = alt.Scale(domain=[-1, max(len(labels), FEWEST_PLACES)], nice=False)
    x = alt.X("left:Q", axis=axis, scale=ends)
    colour = alt.condition("datum.close >= datum.open", alt.value(UP), alt.value(DOWN))
    tooltip = [
        alt.Tooltip("label:N", title=zone),
        *(alt.Tooltip(f"{name}:Q", format=",.4~f") for name in ("open", "high", "low", "close")),
        alt.Tooltip("volume:Q", format=",.6~f"),
    ]
    price = alt.Y("low:Q", title=None, scale=alt.Scale(domain=_above_the_volume(data)), axis=PRICES)
    base = alt.Chart(data).encode(tooltip=tooltip)
    wicks = base.mark_rule().encode(
        x=alt.X("place:Q", axis=axis, scale=ends), y=price, y2="high:Q", color=colour
    )
    bodies = base.mark_bar().encode(
        x=x, x2="right:Q", y=alt.Y("open:Q", title=None), y2="close:Q", color=colour
    )
    closes = base.mark_rule().encode(x=x, x2="right:Q", y=alt.Y("close:Q", title=None), color=colour)
    highest = float(data["volume"].fillna(0).max()) or 1.0
    volume = base.mark_bar(opacity=0.35, color=QUIET).encode(
        x=x,
        x2="right:Q",
        y2=alt.datum(0),
        y=alt.Y("volume:Q", axis=None, scale=alt.Scale(domain=[0, VOLUME_SHARE * highest])),
    )
    movable = alt.selection_interval(bind="scales", encodings=["x"], zoom="wheel![event.shiftKey]")
    prices = alt.layer(wicks, bodies, closes).add_params(movable)
    both: alt.LayerChart = alt.layer(volume, prices).resolve_scale(y="independent")
    return both.add_params(alt.param(name="labels", value=labels)).properties(height=420)


def _above_the_volume(bars: pd.DataFrame) -> list[float]:
    """Prices from lowest to highest, with room for the volume below them."""
    low, high = float(bars["low"].min()), float(bars["high"].max())
    room = (high - low) or high / 100
    return [low - room / (VOLUME_SHARE - 1), high + room / 20]


def curves(lines: Mapping[str, pd.DataFrame], zone: str, *, title: str, height: int = 360) -> Drawn:
    """Lines over time, one colour each: tables with `at` (UTC) and `value`, which holds until the next."""
    parts = [_thinned(line).assign(line=name) for name, line in lines.items() if len(line)]
    data = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["at", "value", "line"])
    clock = wall_clock(data["at"], zone)
    data = pd.DataFrame(
        {
            "line": data["line"],
            "value": data["value"],
            "ms": (clock - EPOCH) / pd.Timedelta("1ms"),
            "time": clock.dt.strftime("%-d %b %H:%M:%S"),
        }
    )
    x = alt.X("ms:T", title=None, scale=alt.Scale(type="utc"), axis=HOURS)
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format=",.2~f"))
    colour = alt.Color(
        "line:N",
        title=None,
        scale=alt.Scale(domain=list(lines), range=[CURVES[i % len(CURVES)] for i in range(len(lines))]),
        legend=alt.Legend(orient="top", labelLimit=400),
    )
    base = alt.Chart(data).encode(x=x, y=y, color=colour)
    drawn = base.mark_line(interpolate="step-after", strokeWidth=1.8)
    near = alt.selection_point(nearest=True, on="pointerover", clear="pointerout", fields=["ms"], empty=False)
    points = (
        base.mark_circle(size=70)
        .encode(
            opacity=alt.condition(near, alt.value(1), alt.value(0)),
            tooltip=[
                alt.Tooltip("line:N", title="line"),
                alt.Tooltip("time:N", title=zone),
                alt.Tooltip("value:Q", title=title, format=",.2f"),
            ],
        )
        .add_params(near)
    )
    return alt.layer(drawn, points).properties(height=height)


def rate(samples: list[tuple[int, int]]) -> alt.Chart:
    """Events that came in each second since the start."""
    data = pd.DataFrame(samples, columns=["second", "events"])
    seconds = alt.Axis(grid=False, tickMinStep=1)
    counts = alt.Axis(tickCount=3, tickMinStep=1, format=",d")
    drawn: alt.Chart = alt.Chart(data).mark_line(interpolate="step-after", color=CURVES[0], strokeWidth=1.5)
    return drawn.encode(
        x=alt.X("second:Q", title="seconds", scale=alt.Scale(nice=False), axis=seconds),
        y=alt.Y("events:Q", title="events a second", axis=counts),
        tooltip=[alt.Tooltip("second:Q"), alt.Tooltip("events:Q", format=",")],
    ).properties(height=180)


def _thinned(line: pd.DataFrame) -> pd.DataFrame:
    """At most `MOST_POINTS` rows: the lowest, highest and last of each stretch, so no fall is hidden."""
    if len(line) <= MOST_POINTS:
        return line
    line = line.reset_index(drop=True)
    stretch = line.index // (3 * len(line) // MOST_POINTS + 1)
    by_stretch = line.groupby(stretch)["value"]
    last = line.index.to_series().groupby(stretch).max()
    return line.loc[sorted({0, *by_stretch.idxmin(), *by_stretch.idxmax(), *last})]
