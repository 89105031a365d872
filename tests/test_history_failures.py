"""When a fetch fails: the other route, or one clear sentence; never half an answer, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tapelab import errors
from tapelab.history import download_flat_file
from tapelab.market import clock
from tapelab.market.clock import SECOND, FixedClock
from tapelab.massive import rest, wire
from tapelab.settings import Settings, use
from test_flatfiles import bucket  # noqa: F401
from test_history_fetch import (
    ALL,
    DAY_BARS,
    DAYS,
    about,
    fetch,
    files_of,
    here,  # noqa: F401
    settings,  # noqa: F401
    spent,
    vendor,  # noqa: F401
)
from test_rest import Reply, Vendor, serving

# ruff: noqa: F811


def test_flat_files_step_in_when_rest_fails(here: Settings, vendor: Vendor) -> None:
    vendor.answer = lambda asked: Reply(b'{"status":"NOT_AUTHORIZED","message":"not entitled"}', 403)
    found = fetch(ALL, interval="1m")
    lines = about(found)["lines"]
    assert lines[0] == "Auto-selected REST API (small query: 4 symbols, 5 days)"  # type: ignore[index]
    assert lines[1].startswith("Fell back to Flat Files (REST API failed: This data is not in the plan")  # type: ignore[index]
    assert len(found) > 10_000
    assert len(vendor.asked) == 1, "a refusal costs one request, not one a symbol"


def test_rest_steps_in_when_flat_files_fail(settings: Settings, vendor: Vendor) -> None:
    with use(settings.with_(s3_secret_access_key="wrong")):
        found = fetch(ALL, interval="1m", method="flat_file")
    assert about(found)["route"] == "rest"
    assert "refused the keys" in str(about(found)["reason"])
    assert len(found) > 10_000


def test_a_route_that_fails_in_the_middle_is_finished_by_the_other(
    here: Settings, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "FIRST_BACK_OFF", 0.001)
    whole = vendor.answer
    vendor.answer = lambda asked: Reply(status=500) if "/IBM/" in asked.path else whole(asked)
    found = fetch(ALL, interval="1m")
    assert about(found)["routes"] == {"flat_file": 20}
    assert found["symbol"].nunique() == 4


def test_without_fallback_the_error_stands(here: Settings, vendor: Vendor) -> None:
    vendor.answer = lambda asked: Reply(b'{"status":"NOT_AUTHORIZED","message":"not entitled"}', 403)
    with pytest.raises(errors.NotInPlan):
        fetch(ALL, fallback=False)
    assert files_of(here) == []


def test_when_both_routes_fail_the_first_error_names_the_other(
    settings: Settings, vendor: Vendor, tmp_path: Path
) -> None:
    with serving() as store:
        store.answer = lambda asked: Reply(b"<Error><Code>AccessDenied</Code></Error>", 403)
        vendor.answer = lambda asked: Reply(status=401)
        with use(settings.with_(s3_endpoint=store.url)), pytest.raises(errors.NotAuthorized) as caught:
            fetch(interval="1m")
    assert "MASSIVE_API_KEY" in str(caught.value)


@pytest.mark.parametrize(
    "trouble",
    [
        lambda body: Reply(body[: len(body) // 2], cut=len(body) - len(body) // 2),
        lambda body: Reply(body[: len(body) // 2]),
        lambda body: Reply(status=500),
        lambda body: Reply(body.replace(b'"resultsCount":', b'"resultsCount":1')),
    ],
    ids=["connection cut", "body cut", "500", "fewer rows than announced"],
)
def test_a_broken_page_two_gives_an_error_and_the_whole_days_before_it_are_kept(
    settings: Settings,
    vendor: Vendor,
    trouble: Callable[[bytes], Reply],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rest, "FIRST_BACK_OFF", 0.001)
    whole = vendor.answer
    vendor.answer = lambda asked: trouble(whole(asked).body) if "cursor" in asked.query else whole(asked)
    with use(settings), pytest.raises(errors.SourceError):
        fetch(interval="1m", fallback=False)
    vendor.answer = whole
    vendor.asked.clear()
    with use(settings):
        found = fetch(interval="1m")
    assert about(found)["routes"] == {"cache": 1, "rest": 4}, "one whole day lay on the first page"
    assert vendor.asked[0].path.split("/")[8] == "2013-10-08"
    with use(settings.with_(home=settings.home / "elsewhere")):
        pd.testing.assert_frame_equal(found, fetch(interval="1m"))


def test_a_file_that_is_not_what_it_was_is_an_error_and_nothing_half_written(
    settings: Settings, real_day: Path
) -> None:
    key = wire.file_key(DAY_BARS, DAYS[0])
    content = (real_day / key).read_bytes()[:-20]
    etag = '"0123456789abcdef0123456789abcdef"'
    listing = (
        "<ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Name>flatfiles</Name><KeyCount>1</KeyCount>"
        f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated><Contents><Key>{key}</Key>"
        f"<LastModified>2023-09-02T17:44:38.050Z</LastModified><ETag>{etag}</ETag><Size>{len(content)}</Size>"
        "</Contents></ListBucketResult>"
    )
    headers = {"ETag": etag, "Last-Modified": "Mon, 21 Sep 2026 12:00:00 GMT"}
    with serving() as store:
        store.answer = lambda asked: (
            Reply(listing.encode()) if "list-type" in asked.query else Reply(content, headers=headers)
        )
        with use(settings.with_(s3_endpoint=store.url)) as broken:
            with pytest.raises(errors.MalformedAnswer, match="came damaged"):
                fetch(span=("2013-10-07", "2013-10-07"), method="flat_file", fallback=False)
            with pytest.raises(errors.MalformedAnswer, match="came damaged"):
                download_flat_file(DAY_BARS, DAYS[0])
            assert files_of(broken) == []
            assert len(fetch(span=("2013-10-07", "2013-10-07"), method="flat_file")) == 1


def test_a_rate_limit_is_waited_for(here: Settings, vendor: Vendor) -> None:
    whole, refusals = vendor.answer, [Reply(status=429, headers={"Retry-After": "30"}), Reply(status=429)]
    vendor.answer = lambda asked: refusals.pop() if refusals else whole(asked)
    still = FixedClock(clock.now())
    with clock.use(still):
        begun = still.now()
        assert len(fetch(ALL)) == 20
        assert still.now() - begun > 30 * SECOND


def test_a_budget_of_one_call_refuses_before_the_first_request(settings: Settings, vendor: Vendor) -> None:
    tight = settings.with_(rest_calls_per_day=1, s3_access_key_id="")
    with use(tight):
        with pytest.raises(errors.BudgetExceeded, match="4 REST calls needed, 1 left today"):
            fetch(ALL)
        assert vendor.asked == []
        assert len(fetch("SPY")) == 5
        with pytest.raises(errors.BudgetExceeded):
            fetch("AIG")
    assert len(vendor.asked) == 1


def test_a_budget_that_would_break_turns_to_flat_files(settings: Settings, vendor: Vendor) -> None:
    with use(settings.with_(rest_calls_per_day=1)):
        known = about(fetch(ALL))
    assert known["reason"] == "Auto-selected Flat Files (4 REST calls needed, 1 left today)"
    assert vendor.asked == []


def test_a_damaged_lake_file_is_named(here: Settings) -> None:
    fetch("SPY")
    [path] = (here.root / "lake").rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(errors.Damaged, match=rf"{path.name} is not what was written\. Delete it"):
        fetch("SPY")
    path.unlink()
    assert len(fetch("SPY")) == 5


# Bad input: one clear sentence, nothing sent.


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"span": ("2013-10-11", "2013-10-07")}, errors.BadRange, "Swap start and end"),
        ({"span": ("2099-01-05", "2099-01-06")}, errors.BadRange, "future"),
        ({"span": ("2013-10-12", "2013-10-13")}, errors.NoData, "no trading session"),
        ({"span": ("yesterday", "2013-10-13")}, errors.BadRange, "is not a date"),
        ({"interval": "7m"}, errors.UnknownInterval, "Known: 1s 1m 5m"),
        ({"method": "flatfile"}, errors.UnknownName, "Did you mean 'flat_file'"),
        ({"hours": "extended"}, errors.UnknownName, "all, regular"),
        ({"adjust": "split"}, errors.UnknownName, "Did you mean 'splits'"),
        ({"frame": "panda"}, errors.UsageError, "'pandas', 'polars' or 'arrow'"),
        ({"symbols": "spy"}, errors.UnknownSymbol, "Did you mean 'SPY'"),
        ({"symbols": []}, errors.UsageError, "No symbol was given"),
        ({"symbols": ["SPY", "X:BTC-USD"]}, errors.UsageError, "different markets"),
        ({"interval": "1w", "hours": "regular"}, errors.UsageError, "no 1w bars"),
    ],
)
def test_bad_input_is_one_clear_sentence_and_sends_nothing(
    here: Settings, vendor: Vendor, changes: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        fetch(**changes)  # type: ignore[arg-type]
    assert vendor.asked == []


def test_no_keys_at_all_says_which_to_set(settings: Settings) -> None:
    with use(settings.with_(api_key="", s3_access_key_id="")), pytest.raises(errors.SettingError) as caught:
        fetch()
    assert "MASSIVE_API_KEY" in str(caught.value)


def test_a_wrong_key_says_so(settings: Settings) -> None:
    with use(settings.with_(api_key="wrong", s3_access_key_id="")):
        with pytest.raises(errors.NotAuthorized, match="MASSIVE_API_KEY"):
            fetch()
        with pytest.raises(errors.NotAuthorized, match=r'adjust="none"'):
            fetch(adjust="splits")


def test_a_misspelt_symbol_is_named_with_the_nearest_of_the_days_file(here: Settings) -> None:
    with pytest.raises(errors.UnknownSymbol, match=r"SPYY has no bars.*Did you mean SPY\?"):
        fetch(["SPYY", "AIG"], method="flat_file")


def test_an_unknown_symbol_beside_a_known_one_is_an_error_not_half_an_answer(here: Settings) -> None:
    with pytest.raises(errors.UnknownSymbol, match="ZZZZQ has no bars"):
        fetch(["SPY", "ZZZZQ"])


def test_an_empty_answer_is_an_error_that_says_what_was_asked(here: Settings) -> None:
    with pytest.raises(errors.NoData, match=r"no 1d bars of ZZZZQ from 2013-10-07 to 2013-10-11"):
        fetch("ZZZZQ")
    assert files_of(here) == [], "an empty answer may be what the plan leaves, so it is not kept"


def test_bars_that_begin_after_the_range_are_reported(here: Settings) -> None:
    lines = about(fetch(span=("2013-10-03", "2013-10-08")))["lines"]
    assert "No bars before 2013-10-07 (asked from 2013-10-03): SPY." in lines[-1]  # type: ignore[index]


def test_a_host_that_cannot_be_reached_is_one_sentence_and_loses_nothing(here: Settings) -> None:
    fetch("SPY", span=("2013-10-07", "2013-10-09"))
    away = {"rest_url": "http://127.0.0.1:1", "s3_endpoint": "http://127.0.0.1:1"}
    before = files_of(here)
    with (
        use(here.with_(**away)),
        pytest.raises(errors.Unreachable, match=r"127\.0\.0\.1:1 cannot be reached"),
    ):
        fetch(ALL)
    assert files_of(here) == before
    assert about(fetch("SPY", span=("2013-10-07", "2013-10-09")))["route"] == "cache"


def test_another_endpoint_finds_nothing_in_the_cache_and_an_untouched_budget(here: Settings) -> None:
    fetch(ALL)
    away = here.with_(rest_url="http://127.0.0.1:1", s3_endpoint="http://127.0.0.1:1")
    with use(away), pytest.raises(errors.Unreachable):
        fetch(ALL)
    assert spent(away) == (0, 0)
