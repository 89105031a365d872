"""Tell somebody elsewhere what is wrong: one message when it begins, one when it is over."""

from __future__ import annotations

import http.client
import logging
import stat
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tapelab.errors import SettingError
from tapelab.market import clock
from tapelab.settings import Secret

MAX_WAITING = 100  # messages that could not be delivered yet; beyond it the oldest are given up
TRIES = 5
FIRST_PAUSE = 1.0  # seconds before the second try, then twice as long each time
ANSWER_WITHIN = 10.0  # seconds
LAST_WORDS = 5.0  # seconds for what is waiting when the recording ends

_log = logging.getLogger("tapelab")


def read_address(path: Path) -> Secret:
    """The address in a file of one line. It is a secret: who knows it can write to you.

    Raises `SettingError`, which does not repeat what the file holds.
    """
    try:
        text = path.read_text("utf-8").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as cause:
        raise SettingError(f"The webhook's file {path} cannot be read.", remedy="Name another.") from cause
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and text.isprintable()
    except ValueError:
        sound = False
    if not sound or " " in text:
        raise SettingError(
            f"The file {path} holds no address.",
            remedy="Its one line looks like https://your_host/your_path.",
        )
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("Others can read %s; run: chmod 600 %s", path, path)
    return Secret(text)


class Webhook:
    """Posts JSON objects to one address, from a thread of its own; whoever calls `tell` never waits.

    A message that is refused is sent again a few times and then given up, which is logged, without the
    address.
    """

    def __init__(self, address: Secret) -> None:
        self.delivered = self.failed = 0
        self._address = address
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._news = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._deliver_all, name="tapelab-webhook", daemon=True)
        self._thread.start()

    def tell(self, message: Mapping[str, object]) -> None:
        """Send a message as soon as it goes."""
        if len(self._waiting) == MAX_WAITING:
            self.failed += 1
        self._waiting.append(msgspec.json.encode(message))
        self._news.set()

    def close(self) -> None:
        """Deliver what is waiting, within a bounded time."""
        self._closing.set()
        self._news.set()
        self._thread.join(LAST_WORDS)

    def _deliver_all(self) -> None:
        while self._waiting or not self._closing.is_set():
            self._news.wait()
            self._news.clear()
            while self._waiting:
                self._deliver(self._waiting.popleft())

    def _deliver(self, body: bytes) -> None:
        pause, why = FIRST_PAUSE, ""
        for attempt in range(TRIES):
            if attempt:
                self._closing.wait(pause)
                pause *= 2
            try:
                self._post(body)
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = _reason(error)
            else:
                self.delivered += 1
                return
        self.failed += 1
        _log.warning("The webhook did not take a message (%s); it is given up.", why)

    def _post(self, body: bytes) -> None:
        request = urllib.request.Request(
            self._address.reveal(), data=body, headers={"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=ANSWER_WITHIN) as answer:
            answer.read(1024)


def _reason(error: Exception) -> str:
    """What went wrong, in words that never hold the address."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        return error.reason.strerror or type(error.reason).__name__
    return type(error).__name__


class Incidents:
    """What is wrong just now, each said once when it begins and once when it is over."""

    def __init__(self, webhook: Webhook | None) -> None:
        self.open: dict[str, tuple[int, str]] = {}  # by kind: since when (ns UTC), and what was said
        self._webhook = webhook

    def look(self, found: Mapping[str, str], *, now: int, dataset: str) -> None:
        """Compare what is wrong now with what was wrong before; `found` is by kind, in a sentence."""
        for kind, message in found.items():
            if kind not in self.open:
                self.open[kind] = (now, message)
                self._say(kind, "open", message, now, now, dataset)
        for kind in sorted(self.open.keys() - found.keys()):
            since, message = self.open.pop(kind)
            self._say(kind, "over", f"Over since {clock.iso(now)}: {message}", since, now, dataset)

    def _say(self, kind: str, state: str, message: str, since: int, now: int, dataset: str) -> None:
        (_log.warning if state == "open" else _log.info)("%s: %s", dataset, message)
        if self._webhook is not None:
            self._webhook.tell(
                {
                    "text": f"tapelab, {dataset}: {message}",
                    "incident": kind,
                    "state": state,
                    "message": message,
                    "dataset": dataset,
                    "since": clock.iso(since),
                    "at": clock.iso(now),
                }
            )
