"""Daily files from a real S3 server that checks signatures (rclone), and from one that breaks on the way."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from s3 import KEY_ID, SECRET, serving_folder, settings_for
from tapelab import errors
from tapelab.budget import Budget
from tapelab.exchange import serve
from tapelab.massive.flatfiles import FlatFiles, Listed
from tapelab.settings import Settings
from test_rest import Reply, Vendor, serving

MINUTES = "us_stocks_sip/minute_aggs_v1"
FIRST, LAST = date(2013, 10, 7), date(2013, 10, 11)


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory, real_day: Path) -> Iterator[Path]:
    """The real bars of five days in a bucket named flatfiles; its endpoint is in the file `url` beside it."""
    root = tmp_path_factory.mktemp("s3")
    for product in ("minute_aggs_v1", "day_aggs_v1"):
        shutil.copytree(real_day / "us_stocks_sip" / product, root / "flatfiles/us_stocks_sip" / product)
    with serving_folder(root) as url:
        (root / "url").write_text(url)
        yield root


@pytest.fixture
def settings(bucket: Path, tmp_path: Path) -> Settings:
    return settings_for((bucket / "url").read_text(), tmp_path / "home", flat_file_gb_per_month=1)


def doors(settings: Settings) -> FlatFiles:
    return FlatFiles(settings, Budget(settings))


def spent(settings: Settings) -> int:
    return Budget(settings).left().bytes_this_month


def test_the_list_names_each_days_file_and_leaves_out_days_without(
    settings: Settings, real_day: Path
) -> None:
    listed = doors(settings).list(MINUTES, date(2013, 10, 5), date(2013, 10, 9))
    assert list(listed) == [date(2013, 10, 7), date(2013, 10, 8), date(2013, 10, 9)]
    file = listed[date(2013, 10, 9)]
    assert file.key == f"{MINUTES}/2013/10/2013-10-09.csv.gz"
    assert file.size == (real_day / file.key).stat().st_size
    assert len(file.etag) == 32
    assert spent(settings) == 0


def test_a_list_over_a_turn_of_the_year_asks_for_both_years(settings: Settings) -> None:
    assert list(doors(settings).list(MINUTES, date(2012, 12, 1), LAST))[-1] == LAST
    assert doors(settings).list(MINUTES, date(2014, 1, 1), date(2014, 1, 31)) == {}


def test_a_download_is_the_vendors_file_to_the_byte_and_its_bytes_are_counted(
    settings: Settings, real_day: Path, tmp_path: Path
) -> None:
    door = doors(settings)
    listed = door.list(MINUTES, FIRST, LAST)[date(2013, 10, 9)]
    path = door.download(listed, tmp_path / "day.csv.gz")
    assert path.read_bytes() == (real_day / listed.key).read_bytes()
    assert spent(settings) == listed.size
    assert Budget(settings).left().calls_today == 0


def test_a_full_budget_refuses_before_the_file_comes(settings: Settings, tmp_path: Path) -> None:
    tight = settings.with_(flat_file_gb_per_month=0.00002)
    door = doors(tight)
    listed = door.list(MINUTES, FIRST, LAST)[FIRST]
    with pytest.raises(errors.BudgetExceeded, match="TAPELAB_FLAT_FILE_GB_PER_MONTH"):
        door.download(listed, tmp_path / "day.csv.gz")
    assert not list(tmp_path.glob("*.csv.gz*"))
    assert spent(tight) == 0


@pytest.mark.parametrize("wrong", [{"s3_secret_access_key": "no"}, {"s3_access_key_id": "no"}])
def test_wrong_keys_say_which_settings_to_check(
    settings: Settings, wrong: dict[str, str], tmp_path: Path
) -> None:
    door = doors(settings.with_(**wrong))
    with pytest.raises(errors.NotAuthorized, match="MASSIVE_S3_SECRET_ACCESS_KEY"):
        door.list(MINUTES, FIRST, LAST)
    listed = doors(settings).list(MINUTES, FIRST, LAST)[FIRST]
    with pytest.raises(errors.NotAuthorized) as caught:
        door.download(listed, tmp_path / "x")
    assert SECRET not in f"{caught.value} {caught.value.facts} {caught.value.__cause__}"


def test_a_wrong_bucket_is_named(settings: Settings) -> None:
    with pytest.raises(errors.NotFound, match=r"'attic'.*MASSIVE_S3_BUCKET"):
        doors(settings.with_(s3_bucket="attic")).list(MINUTES, FIRST, LAST)


def test_an_unknown_product_names_the_nearest(settings: Settings) -> None:
    with pytest.raises(errors.UnknownName, match=r"minute_aggs_v1"):
        doors(settings).list("us_stocks_sip/minute_agg", FIRST, LAST)


def test_nobody_there_names_the_host(settings: Settings) -> None:
    with pytest.raises(errors.Unreachable, match=r"127\.0\.0\.1:1.*MASSIVE_S3_ENDPOINT"):
        doors(settings.with_(s3_endpoint="http://127.0.0.1:1")).list(MINUTES, FIRST, LAST)


def test_without_keys_the_error_says_which_setting(settings: Settings) -> None:
    with pytest.raises(errors.SettingError, match="MASSIVE_S3_ACCESS_KEY_ID"):
        doors(settings.with_(s3_access_key_id=""))


BODY = gzip.compress(b"ticker,volume\n" + b"AAPL,1\n" * 50_000)
ETAG = {"ETag": '"0123456789abcdef0123456789abcdef"', "Last-Modified": "Mon, 21 Sep 2026 12:00:00 GMT"}
LISTED = Listed(MINUTES, FIRST, f"{MINUTES}/2013/10/2013-10-07.csv.gz", ETAG["ETag"].strip('"'), len(BODY), 0)


@pytest.fixture
def broken(settings: Settings) -> Iterator[tuple[Vendor, Settings]]:
    """A server that does what a test says, in the place of the store."""
    with serving() as vendor:
        yield vendor, settings.with_(s3_endpoint=vendor.url)


def refused(code: str, status: int = 403) -> Reply:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>" if code else ""
    return Reply(body.encode(), status)


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (refused(""), errors.NotInPlan, r"us_stocks_sip/minute_aggs_v1 for 2013-10-07 is not in your plan"),
        (refused("AccessDenied"), errors.NotInPlan, r"minute_aggs_v1"),
        (refused("RequestTimeTooSkewed"), errors.NotAuthorized, r"clock"),
        (
            refused("NoSuchKey", 404),
            errors.NotFound,
            r"no file of us_stocks_sip/minute_aggs_v1 for 2013-10-07",
        ),
        (refused("InternalError", 500), errors.ServerTrouble, r"500"),
        (Reply(BODY, headers={**ETAG, "ETag": '"another"'}), errors.SourceError, r"replaced"),
        (Reply(BODY[:-9], headers=ETAG), errors.SourceError, r"replaced"),
        (Reply(BODY[:9000], headers=ETAG, cut=len(BODY) - 9000), errors.Unreachable, r"broke"),
    ],
)
def test_what_goes_wrong_on_the_way_is_its_own_error_and_leaves_nothing(
    broken: tuple[Vendor, Settings], tmp_path: Path, reply: Reply, error: type[Exception], says: str
) -> None:
    vendor, settings = broken
    vendor.answer = lambda asked: reply
    with pytest.raises(error, match=says):
        doors(settings).download(LISTED, tmp_path / "day.csv.gz")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_the_store_is_asked_again_after_a_failure(broken: tuple[Vendor, Settings], tmp_path: Path) -> None:
    vendor, settings = broken
    vendor.script(refused("SlowDown", 503), Reply(BODY, headers=ETAG))
    assert doors(settings).download(LISTED, tmp_path / "day.csv.gz").read_bytes() == BODY


def test_a_store_that_quotes_the_key_does_not_get_it_printed(
    broken: tuple[Vendor, Settings], tmp_path: Path
) -> None:
    vendor, settings = broken
    said = f"<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId></Error>"
    vendor.answer = lambda asked: Reply(said.encode(), 403)
    with pytest.raises(errors.NotAuthorized) as caught:
        doors(settings).download(LISTED, tmp_path / "day.csv.gz")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert KEY_ID not in f"{caught.value} {caught.value.facts}"


def test_the_stand_in_exchange_says_what_its_tape_is(broken: tuple[Vendor, Settings], tmp_path: Path) -> None:
    vendor, settings = broken
    vendor.script(Reply(BODY, headers={**ETAG, "x-amz-meta-tapelab-tape": "simulated seed=7"}))
    door = doors(settings)
    door.download(LISTED, tmp_path / "day.csv.gz")
    assert door.tape == "simulated seed=7"


def test_a_large_file_comes_in_ranges_and_is_counted_once(
    real_day: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapelab.massive.flatfiles.RANGE", 1_000)
    with serve(flat_files=real_day) as exchange, exchange.use() as here:
        listed = doors(here).list(MINUTES, FIRST, LAST)[FIRST]
        came: list[int] = []
        door = FlatFiles(here, Budget(here), came=came.append)
        path = door.download(listed, tmp_path / "day.csv.gz")
        assert path.read_bytes() == (real_day / listed.key).read_bytes()
        assert door.tape.startswith("flat-files")
        assert max(came) <= 1_000
        assert sum(came) == listed.size == spent(here)


def test_a_server_without_ranges_gives_a_large_file_whole(
    settings: Settings, real_day: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapelab.massive.flatfiles.RANGE", 1_000)
    listed = doors(settings).list(MINUTES, FIRST, LAST)[FIRST]
    path = doors(settings).download(listed, tmp_path / "day.csv.gz")
    assert path.read_bytes() == (real_day / listed.key).read_bytes()
    assert spent(settings) == listed.size


def test_a_file_that_is_replaced_between_two_of_its_ranges_leaves_nothing(
    broken: tuple[Vendor, Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapelab.massive.flatfiles.RANGE", len(BODY) // 2 + 1)
    vendor, settings = broken
    half = len(BODY) // 2 + 1

    def part(begin: int, end: int, etag: str) -> Reply:
        says = f"bytes {begin}-{end - 1}/{len(BODY)}"
        return Reply(BODY[begin:end], 206, headers={**ETAG, "ETag": etag, "Content-Range": says})

    vendor.script(part(0, half, ETAG["ETag"]), part(half, len(BODY), '"another"'))
    with pytest.raises(errors.SourceError, match="replaced"):
        doors(settings).download(LISTED, tmp_path / "day.csv.gz")
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_files_of_every_market_are_listed_by_their_own_names(settings: Settings) -> None:
    for product in ("us_options_opra/trades_v1", "us_indices/values_v1", "us_futures_cme/session_aggs_v1"):
        assert doors(settings).list(product, FIRST, LAST) == {}
    with pytest.raises(errors.UnknownName, match="us_indices/values_v1"):
        doors(settings).list("indices/values_v1", FIRST, LAST)
