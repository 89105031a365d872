"""One table of settings, which feeds the object, `tapelab doctor`, the docs and their tests.

Each value is looked for in this order: argument, environment, `api_keys.properties` (working directory,
then the configuration folder), default. Settings belong to a context, so that two can live in one process.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tapelab.errors import SettingError, UnknownName

FILE = "api_keys.properties"
PLACEHOLDER = "your_"
VENDOR_DOMAINS = (".massive.com", ".polygon.io")
PLANS = ("basic", "starter", "developer", "advanced")


class Secret:
    """A value that never shows itself: not in a repr, a log, a traceback or a report."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret('…')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled; hand it over by hand")


@dataclass(frozen=True)
class Setting:
    """One row of the table: its name in the environment, in `Settings`, its kind, default and meaning."""

    name: str
    attribute: str
    kind: type
    default: str
    meaning: str
    remedy: str = ""

    @property
    def secret(self) -> bool:
        return self.kind is Secret


_KEYS = "Copy api_keys.properties.example to api_keys.properties and fill it in from massive.com/dashboard."

TABLE = (
    Setting("MASSIVE_API_KEY", "api_key", Secret, "", "key for REST and the live stream", _KEYS),
    Setting(
        "MASSIVE_S3_ACCESS_KEY_ID", "s3_access_key_id", Secret, "", "access key id for flat files", _KEYS
    ),
    Setting(
        "MASSIVE_S3_SECRET_ACCESS_KEY", "s3_secret_access_key", Secret, "", "secret for flat files", _KEYS
    ),
    Setting("MASSIVE_S3_ENDPOINT", "s3_endpoint", str, "https://files.massive.com", "where flat files lie"),
    Setting("MASSIVE_S3_BUCKET", "s3_bucket", str, "flatfiles", "the bucket they lie in"),
    Setting("MASSIVE_REST_URL", "rest_url", str, "https://api.massive.com", "where REST is asked"),
    Setting("MASSIVE_WS_URL", "ws_url", str, "wss://socket.massive.com", "where the live stream comes from"),
    Setting("TAPELAB_HOME", "home", Path, "", "folder of recordings, lake and ledger"),
    Setting("TAPELAB_PLAN", "plan", str, "", f"your plan at the vendor: {' '.join(PLANS)}"),
    Setting(
        "TAPELAB_REST_CALLS_PER_DAY", "rest_calls_per_day", int, "100", "your budget of REST calls a day"
    ),
    Setting(
        "TAPELAB_REST_CALLS_PER_MINUTE",
        "rest_calls_per_minute",
        int,
        "5",
        "your budget of REST calls a minute",
    ),
    Setting(
        "TAPELAB_FLAT_FILE_GB_PER_MONTH",
        "flat_file_gb_per_month",
        float,
        "10",
        "your budget of flat files, GB a month",
    ),
)

# A plan changes defaults only; what you set yourself stands.
_PLAN_DEFAULTS: dict[str, dict[str, str]] = {
    "basic": {},
    "starter": {"rest_calls_per_minute": "0", "ws_url": "wss://delayed.massive.com"},
    "developer": {"rest_calls_per_minute": "0", "ws_url": "wss://delayed.massive.com"},
    "advanced": {"rest_calls_per_minute": "0"},
}


@dataclass(frozen=True)
class Settings:
    """What tapelab needs to know about you: keys, addresses, budgets and where data is kept.

    `origin` says for each attribute where its value came from.
    """

    api_key: Secret | None
    s3_access_key_id: Secret | None
    s3_secret_access_key: Secret | None
    s3_endpoint: str
    s3_bucket: str
    rest_url: str
    ws_url: str
    home: Path
    plan: str
    rest_calls_per_day: int
    rest_calls_per_minute: int
    flat_file_gb_per_month: float
    origin: Mapping[str, str]

    @classmethod
    def load(cls, **arguments: Any) -> Settings:
        """Read every setting; `arguments` come first. Raises `SettingError` that names the setting."""
        unknown = sorted(set(arguments) - {s.attribute for s in TABLE})
        if unknown:
            raise UnknownName.among("setting", unknown[0], (s.attribute for s in TABLE))
        sources = [("environment", dict(os.environ)), *_files()]
        plan = _find(next(s for s in TABLE if s.attribute == "plan"), arguments, sources)[0]
        if plan and plan not in PLANS:
            raise SettingError(
                f"TAPELAB_PLAN={plan!r} is not a plan.", remedy=f"Use one of {', '.join(PLANS)}."
            )
        defaults = _PLAN_DEFAULTS.get(plan, {})
        values: dict[str, Any] = {}
        origin: dict[str, str] = {}
        for setting in TABLE:
            text, where = _find(setting, arguments, sources)
            if where == "default" and setting.attribute in defaults:
                text, where = defaults[setting.attribute], f"plan {plan}"
            values[setting.attribute] = _convert(setting, text, where)
            origin[setting.attribute] = where
        return cls(**values, origin=origin)

    @classmethod
    def current(cls) -> Settings:
        """The settings of this context: those of a running `exchange.use()`, otherwise read afresh."""
        return current()

    def with_(self, **changes: Any) -> Settings:
        """The same settings with some of them changed."""
        mine = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "origin"}
        origin = {**self.origin, **dict.fromkeys(changes, "argument")}
        for setting in TABLE:
            if setting.attribute in changes:
                value = changes[setting.attribute]
                changes[setting.attribute] = _convert(setting, value, "argument")
        return Settings(**{**mine, **changes}, origin=origin)

    @property
    def endpoint(self) -> str:
        """A folder-safe name of where data comes from; what comes from different endpoints never mixes.

        The vendor's own hosts are `massive`. Anything else is told apart by its addresses and its key.
        """
        urls = (self.rest_url, self.ws_url, self.s3_endpoint)
        if all((urlsplit(url).hostname or "").endswith(VENDOR_DOMAINS) for url in urls):
            return "massive"
        key = self.api_key.reveal() if self.api_key else ""
        told_apart = hashlib.sha256("\n".join((*urls, key)).encode()).hexdigest()[:10]
        rest = urlsplit(self.rest_url)
        return f"{rest.hostname}-{rest.port or rest.scheme}-{told_apart}"

    @property
    def root(self) -> Path:
        """Where everything from this endpoint is kept."""
        return self.home / self.endpoint

    def need_api_key(self) -> str:
        """The key, or a `SettingError` that says how to set it."""
        if self.api_key is None:
            raise SettingError("No API key is set (MASSIVE_API_KEY).", remedy=NO_KEYS)
        return self.api_key.reveal()

    def need_s3(self) -> tuple[str, str]:
        """The access key id and its secret for flat files, or a `SettingError` that says how to set them."""
        if self.s3_access_key_id is None or self.s3_secret_access_key is None:
            missing = "ACCESS_KEY_ID" if self.s3_access_key_id is None else "SECRET_ACCESS_KEY"
            raise SettingError(f"Flat files need MASSIVE_S3_{missing}.", remedy=NO_KEYS)
        return self.s3_access_key_id.reveal(), self.s3_secret_access_key.reveal()


NO_KEYS = f"{_KEYS} Without an account, `tapelab demo` shows everything on a stand-in exchange."


def _find(
    setting: Setting, arguments: Mapping[str, Any], sources: list[tuple[str, dict[str, str]]]
) -> tuple[Any, str]:
    if arguments.get(setting.attribute) is not None:
        return arguments[setting.attribute], "argument"
    for where, values in sources:
        text = values.get(setting.name, "").strip()
        if text and not text.startswith(PLACEHOLDER):
            return text, where
    return setting.default, "default"


def _convert(setting: Setting, value: Any, where: str) -> Any:
    if setting.kind is Secret:
        return value if isinstance(value, Secret) else Secret(value) if value else None
    if setting.kind is Path:
        return Path(value).expanduser().absolute() if value else _default_home()
    if setting.kind is str:
        return _url(setting, str(value)) if setting.attribute.endswith(("_url", "_endpoint")) else str(value)
    try:
        number = setting.kind(value)
    except ValueError as cause:
        raise SettingError(
            f"{setting.name}={value!r} ({where}) is not a number.", remedy="Use digits; 0 means no limit."
        ) from cause
    if not 0 <= number < float("inf"):
        raise SettingError(f"{setting.name}={value!r} ({where}) makes no sense.", remedy="0 means no limit.")
    return number


def _url(setting: Setting, text: str) -> str:
    parts = urlsplit(text)
    schemes = ("ws", "wss") if setting.attribute == "ws_url" else ("http", "https")
    if parts.scheme not in schemes or not parts.hostname:
        raise SettingError(
            f"{setting.name}={text!r} is not an address.", remedy=f"It looks like {setting.default}."
        )
    if parts.username or parts.password or parts.query:
        raise SettingError(
            f"{setting.name} carries a user, a password or a query.", remedy="Leave them out of the address."
        )
    return text.rstrip("/")


def _default_home() -> Path:
    from platformdirs import user_data_path

    return user_data_path("tapelab", appauthor=False)


def config_folder() -> Path:
    """Where `api_keys.properties` is looked for after the working directory."""
    from platformdirs import user_config_path

    return user_config_path("tapelab", appauthor=False)


def _files() -> list[tuple[str, dict[str, str]]]:
    found = []
    for folder in (Path.cwd(), config_folder()):
        path = folder / FILE
        if path.is_file():
            if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                warnings.warn(f"Others can read {path}; run: chmod 600 {path}", UserWarning, stacklevel=4)
            found.append((str(path), parse_properties(path.read_text("utf-8"))))
    return found


def parse_properties(text: str) -> dict[str, str]:
    """`name=value` lines; `#` and `!` begin comments."""
    pairs = (line.split("=", 1) for line in map(str.strip, text.splitlines()) if line[:1] not in ("#", "!"))
    return {pair[0].strip(): pair[1].strip().strip("\"'") for pair in pairs if len(pair) == 2}


def example() -> str:
    """The text of `api_keys.properties.example`."""
    lines = [
        f"# Copy to {FILE}, fill in, and keep it to yourself: chmod 600 {FILE}",
        f"# A value that starts with {PLACEHOLDER} counts as not set. A budget of 0 means no limit.",
    ]
    for setting in TABLE:
        value = f"{PLACEHOLDER}{setting.attribute}" if setting.secret else setting.default
        lines += ["", f"# {setting.meaning}", f"{'' if setting.secret else '# '}{setting.name}={value}"]
    return "\n".join(lines) + "\n"


_current: ContextVar[Settings | None] = ContextVar("tapelab_settings", default=None)


def current() -> Settings:
    """The settings of this context: those given to `use`, otherwise read afresh."""
    return _current.get() or Settings.load()


@contextmanager
def use(settings: Settings) -> Iterator[Settings]:
    """Everything in this context works with `settings`."""
    token = _current.set(settings)
    try:
        yield settings
    finally:
        _current.reset(token)


def get_api_key(name: str = "massive") -> str:
    """Your key for `name` ("massive"). Raises `SettingError` that says how to set it."""
    if name != "massive":
        raise UnknownName.among("key", name, ["massive"])
    return current().need_api_key()


def get_massive_s3_credentials() -> dict[str, str]:
    """What an S3 client needs for the vendor's flat files: access key id, secret, endpoint, bucket."""
    settings = current()
    key_id, secret = settings.need_s3()
    return {
        "access_key_id": key_id,
        "secret_access_key": secret,
        "endpoint": settings.s3_endpoint,
        "bucket": settings.s3_bucket,
    }
