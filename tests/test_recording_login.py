"""What the vendor says at the door, and what it means: judged by its own recorded frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tapelab.errors import NotAuthorized, NotInPlan, RecordingError, TapelabError
from tapelab.massive.feed import Login, refusal, statuses, topics_of

KEY = "throw-away-key-of-a-test"


def frame(*events: dict[str, str]) -> bytes:
    return json.dumps(events).encode()


def said(status: str, message: str) -> dict[str, str]:
    return {"ev": "status", "status": status, "message": message}


@pytest.fixture(scope="module")
def handshake(shared: Path) -> list[dict[str, object]]:
    lines = (shared / "payloads" / "ws" / "handshake.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_recorded_handshake_is_spoken_word_for_word(handshake: list[dict[str, object]]) -> None:
    login = Login("<API KEY>", ["T.AAPL", "A.AAPL"])
    answers: list[bytes] = []
    for line in handshake[:5]:
        if line["dir"] == "server":
            answers += [say.payload for say in login.hear(json.dumps(line["frame"]).encode())]
        else:
            assert json.loads(answers.pop(0)) == line["frame"]
    assert answers == []
    assert login.settled
    assert login.confirmed == ["T.AAPL", "A.AAPL"]
    assert [json.loads(say.payload) for say in login.unsubscribe(["T.AAPL"])] == [handshake[5]["frame"]]


@pytest.mark.parametrize(
    ("note", "kind"),
    [
        ("bad key", NotAuthorized),
        ("plan without streaming", NotInPlan),
        ("channel the plan", NotInPlan),
        ("sent to the OLDER", RecordingError),
    ],
)
def test_every_recorded_refusal_is_the_right_error(
    handshake: list[dict[str, object]], note: str, kind: type[TapelabError]
) -> None:
    line = next(line for line in handshake if str(line.get("note", "")).startswith(note))
    login = Login(KEY, ["Q.AAPL"])
    login.hear(frame(said("connected", "Connected Successfully")))
    if note != "bad key" and note != "plan without streaming":
        login.hear(frame(said("auth_success", "authenticated")))
    login.hear(json.dumps(line["frame"]).encode())
    assert type(login.refusal) is kind
    assert login.refusal is not None
    assert login.refusal.remedy
    assert KEY not in str(login.refusal)


def test_the_key_is_sent_once_and_never_shown() -> None:
    login = Login(KEY, ["Q.AAPL"])
    (auth,) = login.hear(frame(said("success", "Connected Successfully")))  # as an older paper has it
    assert json.loads(auth.payload) == {"action": "auth", "params": KEY}
    assert KEY not in json.dumps(auth.shown)
    assert login.hear(frame(said("connected", "again"))) == []


def test_one_channel_refused_beside_others_confirmed_names_the_refused_one() -> None:
    login = Login(KEY, ["Q.AAPL", "T.AAPL"])
    login.hear(frame(said("connected", "")))
    login.hear(frame(said("auth_success", "authenticated")))
    login.hear(frame(said("error", "not authorized"), said("success", "subscribed to: T.AAPL")))
    assert isinstance(login.refusal, NotInPlan)
    assert login.refusal.facts["topics"] == ["Q.AAPL"]


def test_silence_about_a_topic_is_no_error_once_the_time_is_over() -> None:
    login = Login(KEY, ["Q.AAPL", "T.AAPL"])
    login.hear(frame(said("connected", ""), said("auth_success", "authenticated")))
    login.hear(frame(said("success", "subscribed to: T.AAPL")))
    login.give_up()
    assert login.refusal is None
    assert login.unconfirmed == ["Q.AAPL"]


def test_prices_are_no_statuses() -> None:
    assert statuses(b'[{"ev":"T","sym":"AAPL","p":1}]') == []
    assert statuses(b'[{"ev":"T","sym":"status"}]') == []
    assert statuses(b"status") == []
    assert refusal("success", "subscribed to: T.AAPL") is None


def test_topics_are_the_vendors() -> None:
    assert topics_of(["quotes", "trades", "bars"], ["AAPL"]) == ["Q.AAPL", "T.AAPL", "AM.AAPL"]
