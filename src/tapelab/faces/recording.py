"""`tapelab record`: once, or session after session with nobody looking."""

from __future__ import annotations

import json
import threading
from argparse import Namespace
from math import inf

import tapelab as tl
from tapelab.errors import UsageError
from tapelab.faces.panel import Panel
from tapelab.live.recorder import parse_symbols
from tapelab.live.schedule import MARGIN, delay_of
from tapelab.live.unattended import Unattended
from tapelab.live.watch import Watch
from tapelab.live.webhook import read_address
from tapelab.market import clock
from tapelab.settings import Settings
from tapelab.store.datasets.dataset import check_name, folder_of

NAME = "session"


def record(chosen: Namespace, ended: threading.Event) -> str:
    """What `tapelab record` does, until it is over or `ended` is set; gives what to print."""
    if chosen.schedule and chosen.duration is not None:
        raise UsageError("A schedule has its own times.", remedy="Leave out --duration, or --schedule.")
    if not chosen.schedule and (chosen.hours or chosen.margin is not None):
        raise UsageError("--hours and --margin belong to --schedule.", remedy="Add --schedule.")
    settings = Settings.load()
    settings.need_api_key()
    if chosen.name and not chosen.schedule:
        _check_free(chosen.name)
    address = read_address(chosen.webhook_file) if chosen.webhook_file else None
    with Panel() as panel:
        watch = Watch(
            folder_of(settings),
            parse_symbols(chosen.symbols)[0],
            delay=delay_of(settings.ws_url),
            health_port=chosen.health_port,
            webhook=address,
            free_least=round(chosen.min_free * 1e9),
            show=panel.show,
        )
        try:
            return (_sessions if chosen.schedule else _once)(chosen, watch, ended)
        finally:
            watch.close()


def _check_free(name: str) -> None:
    """Said before anything is recorded, not hours later when the recording is to get its name."""
    check_name(name)
    if any(dataset.name == name for dataset in tl.list_datasets()):
        raise UsageError(f"There is a dataset {name!r} already.", remedy="Choose another --name.")


def _channels(chosen: Namespace) -> tuple[str, ...]:
    return tuple(channel.strip() for channel in chosen.channels.split(",") if channel.strip())


def _sessions(chosen: Namespace, watch: Watch, ended: threading.Event) -> str:
    margin = MARGIN if chosen.margin is None else round(chosen.margin * clock.SECOND)
    unattended = Unattended(
        chosen.symbols,
        watch,
        channels=_channels(chosen),
        name=chosen.name or NAME,
        hours=chosen.hours or "all",
        margin=margin,
        tags=chosen.tag,
    )
    unattended.run(ended)
    return json.dumps(watch.said, indent=2) if chosen.json else "Ended."


def _once(chosen: Namespace, watch: Watch, ended: threading.Event) -> str:
    recorder = tl.WebSocketDataRecorder(chosen.symbols, channels=_channels(chosen))
    begun = clock.monotonic()
    lasts = inf if chosen.duration is None else chosen.duration
    with recorder:
        watch.follow(recorder, ended, lambda: lasts - (clock.monotonic() - begun) / clock.SECOND)
    path = recorder.save_dataset(chosen.name or recorder.stats.dataset)
    dataset = tl.open_dataset(path)
    if chosen.tag:
        dataset = dataset.tag(*chosen.tag)
    stats = recorder.stats
    if chosen.json:
        found = {"path": str(path), "name": dataset.name, "events": stats.events, "gaps": stats.gaps}
        return json.dumps(found, indent=2)
    return f"{stats.events:,} events, {stats.gaps} gaps: dataset {dataset.name} ({path.parent})"
