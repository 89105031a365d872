"""What a user sets is found, in order; what is secret never shows."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
from pathlib import Path

import pytest

import tapelab as tl
from tapelab import settings
from tapelab.errors import SettingError, TapelabError, UnknownName

ROOT = Path(__file__).parents[1]
KEY = "a-key-that-nobody-may-see"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for setting in settings.TABLE:
        monkeypatch.delenv(setting.name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / settings.FILE
    path.write_text(text)
    path.chmod(0o600)


def test_the_order_is_argument_environment_working_directory_configuration_folder_default(monkeypatch):
    assert tl.Settings.load().s3_bucket == "flatfiles"
    write(settings.config_folder(), "MASSIVE_S3_BUCKET=from-config")
    assert tl.Settings.load().s3_bucket == "from-config"
    write(Path.cwd(), "MASSIVE_S3_BUCKET = from-here")
    assert tl.Settings.load().s3_bucket == "from-here"
    monkeypatch.setenv("MASSIVE_S3_BUCKET", "from-environment")
    assert tl.Settings.load().s3_bucket == "from-environment"
    assert tl.Settings.load(s3_bucket="from-argument").s3_bucket == "from-argument"


def test_a_placeholder_counts_as_not_set():
    write(Path.cwd(), (ROOT / "api_keys.properties.example").read_text())
    with pytest.raises(SettingError, match=r"api_keys\.properties"):
        tl.get_api_key("massive")
    with pytest.raises(SettingError, match="MASSIVE_S3_ACCESS_KEY_ID"):
        tl.get_massive_s3_credentials()


def test_the_example_file_is_the_table():
    assert (ROOT / "api_keys.properties.example").read_text() == settings.example()


def test_a_file_that_others_can_read_is_warned_about():
    write(Path.cwd(), "")
    (Path.cwd() / settings.FILE).chmod(0o644)
    with pytest.warns(UserWarning, match="chmod 600"):
        tl.Settings.load()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TAPELAB_REST_CALLS_PER_DAY", "many", "not a number"),
        ("TAPELAB_REST_CALLS_PER_DAY", "-1", "0 means no limit"),
        ("TAPELAB_FLAT_FILE_GB_PER_MONTH", "nan", "makes no sense"),
        ("TAPELAB_PLAN", "gold", "basic, starter, developer, advanced"),
        ("MASSIVE_REST_URL", "api.massive.com", "not an address"),
        ("MASSIVE_WS_URL", "https://socket.massive.com", "wss://socket.massive.com"),
        ("MASSIVE_REST_URL", "https://user:word@host", "carries a user"),
    ],
)
def test_a_senseless_value_is_refused_by_name(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match=says) as caught:
        tl.Settings.load()
    assert name in str(caught.value)


def test_a_misspelt_setting_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'rest_url'"):
        tl.Settings.load(rest_ulr="http://127.0.0.1")


def test_a_plan_changes_defaults_and_not_what_was_set(monkeypatch):
    monkeypatch.setenv("TAPELAB_PLAN", "developer")
    monkeypatch.setenv("TAPELAB_REST_CALLS_PER_DAY", "7")
    loaded = tl.Settings.load()
    assert loaded.rest_calls_per_minute == 0
    assert loaded.ws_url == "wss://delayed.massive.com"
    assert loaded.rest_calls_per_day == 7


def test_a_secret_never_shows(monkeypatch, caplog):
    monkeypatch.setenv("MASSIVE_API_KEY", KEY)
    loaded = tl.Settings.load()
    assert loaded.need_api_key() == KEY
    shown = [repr(loaded), str(loaded), f"{loaded.api_key}", repr(vars(loaded)), loaded.endpoint]
    logging.getLogger("tapelab").warning("%s %r", loaded, loaded.api_key)
    try:
        loaded.with_(rest_url="nowhere")
    except TapelabError:
        shown.append(traceback.format_exc())
    assert KEY not in "\n".join([*shown, caplog.text])
    with pytest.raises(TypeError):
        pickle.dumps(loaded.api_key)
    with pytest.raises(TypeError):
        copy.deepcopy(loaded)


def test_two_settings_live_in_one_process(tmp_path):
    one = tl.Settings.load(home=tmp_path / "one", api_key=KEY)
    two = one.with_(home=tmp_path / "two")
    with settings.use(one):
        with settings.use(two):
            assert settings.current().home == tmp_path / "two"
        assert settings.current().home == tmp_path / "one"
    assert settings.current().api_key is None


def test_endpoints_never_share_a_folder():
    vendor = tl.Settings.load()
    stand_in = {"rest_url": "http://127.0.0.1:8000", "ws_url": "ws://127.0.0.1:8001"}
    local = vendor.with_(**stand_in, s3_endpoint="http://127.0.0.1:8002", api_key="one")
    assert vendor.endpoint == "massive"
    assert vendor.with_(api_key=KEY).endpoint == "massive"
    assert vendor.with_(rest_url="https://api.polygon.io").endpoint == "massive"
    others = [
        local,
        local.with_(api_key="two"),
        local.with_(rest_url="http://127.0.0.1:9000"),
        vendor.with_(rest_url="http://127.0.0.1:8000"),
        vendor.with_(rest_url="https://massive.com.example.org"),
        vendor.with_(s3_endpoint="https://notmassive.com"),
    ]
    assert len({s.endpoint for s in [vendor, *others]}) == len(others) + 1
    assert all("/" not in s.endpoint and s.root.parent == s.home for s in others)
