"""Fault scripts: what they may say, when they strike, and what becomes of the stream's messages."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapelab.errors import UnknownName, UsageError
from tapelab.exchange import faults
from tapelab.exchange.faults import NO_FAULTS, Faults, When
from tapelab.exchange.faults import stream as stream_faults
from tapelab.exchange.faults.stream import Cut, Send, Stall

Event = dict[str, object]


def event(number: int, symbol: str = "AAPL", channel: str = "Q") -> Event:
    return {"ev": channel, "sym": symbol, "q": number}


def frame(*events: Event) -> bytes:
    return json.dumps(events, separators=(",", ":")).encode()


def stream(*rules: Event, connection: int = 1, seed: int = 0) -> stream_faults.StreamFaults:
    return Faults.load({"stream": list(rules)}, seed=seed).stream(connection)


def told(acts: list[faults.Act]) -> list[object]:
    """What a client is told: events, and between them what is no event."""
    heard: list[object] = []
    for act in acts:
        try:
            heard += json.loads(act.frame) if isinstance(act, Send) else [act]
        except json.JSONDecodeError:
            heard.append(act)
    return heard


def numbers(acts: list[faults.Act]) -> list[object]:
    return [each["q"] for each in told(acts) if isinstance(each, dict)]


# What a script may say.


def test_the_script_in_the_docstring_is_one(tmp_path: Path) -> None:
    text = "\n".join(
        line[4:] for line in (faults.__doc__ or "").splitlines() if not line or line.startswith("    ")
    )
    path = tmp_path / "faults.toml"
    path.write_text(text)
    loaded = Faults.load(path)
    assert repr(loaded) == "<Faults rest: status, broken_page; s3: cut; stream: cut, duplicate>"


def test_every_fault_is_named_in_the_docstring_and_explains_itself() -> None:
    for door, kinds in faults.KINDS.items():
        for name, kind in kinds.items():
            assert f"`{name}`" in (faults.__doc__ or ""), (door, name)
            assert (kind.__doc__ or "").splitlines()[0].endswith((".", ":", ";")), (door, name)
            assert not (kind.__doc__ or "").startswith(f"{kind.__name__}("), "only dataclasses do that"


def test_toml_json_and_a_mapping_say_the_same(tmp_path: Path) -> None:
    script = {"seed": 5, "stream": [{"fault": "duplicate", "chance": 0.5, "topic": "Q.*"}]}
    (tmp_path / "faults.json").write_text(json.dumps(script))
    (tmp_path / "faults.toml").write_text(
        'seed = 5\n[[stream]]\nfault = "duplicate"\nchance = 0.5\ntopic = "Q.*"\n'
    )
    sources = [script, tmp_path / "faults.json", str(tmp_path / "faults.toml")]
    message = frame(*(event(n) for n in range(200)))
    heard = [Faults.load(source, seed=1).stream(1).through(message) for source in sources]
    assert heard[0] == heard[1] == heard[2]
    assert 250 < len(numbers(heard[0])) < 350


def test_no_script_means_no_faults_and_the_very_same_app() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    assert Faults.load(None) is NO_FAULTS
    assert NO_FAULTS.asgi(app, "rest") is app
    assert Faults.load({"stream": [{"fault": "cut"}]}).asgi(app, "s3") is app
    message = frame(event(1))
    for nothing in (NO_FAULTS, Faults.load({}), Faults.load({"rest": [{"fault": "cut"}]})):
        assert nothing.stream(1).through(message) == [Send(message)]
        assert nothing.stream(1).rest() == []


@pytest.mark.parametrize(
    ("script", "nearest"),
    [
        ({"streams": []}, "stream"),
        ({"rest": [{"fault": "statu", "code": 500}]}, "status"),
        ({"rest": [{"fault": "duplicate"}]}, "Known: broken_page, cut"),
        ({"s3": [{"fault": "cut", "paths": "*"}]}, "path"),
        ({"s3": [{"fault": "truncated", "where": 0.5}]}, "no s3 truncated key 'where'. Known: at, chance"),
        ({"stream": [{"fault": "stall", "second": 1}]}, "seconds"),
        ({"stream": [{"fault": "cut", "pth": "*"}]}, "no stream cut key 'pth'. Known: chance, clean"),
    ],
)
def test_a_misspelt_name_is_an_error_that_names_the_nearest(script: dict[str, Any], nearest: str) -> None:
    with pytest.raises(UnknownName, match=nearest):
        Faults.load(script)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ({"seed": "x"}, "seed of the fault script"),
        ({"rest": {"fault": "cut"}}, "list of rules for rest"),
        ({"rest": ["cut"]}, "list of rules for rest"),
        ({"rest": [{}]}, "Rule 1 for rest names no fault"),
        ({"rest": [{"fault": 3}]}, "Rule 1 for rest names no fault"),
        ({"rest": [{"fault": "status"}]}, "Rule 1 for rest .*missing required field `code`"),
        ({"rest": [{"fault": "cut"}, {"fault": "status", "code": 200}]}, "Rule 2 for rest .*>= 400.*code"),
        ({"rest": [{"fault": "status", "code": 429, "retry_after": -1}]}, "retry_after"),
        ({"rest": [{"fault": "cut", "at": 1}]}, "< 1.0.*at"),
        ({"rest": [{"fault": "stall", "seconds": 1e9}]}, "<= 3600.*seconds"),
        ({"rest": [{"fault": "broken_page", "how": "torn"}]}, "how"),
        ({"s3": [{"fault": "cut", "first": 0}]}, ">= 1.*first"),
        ({"s3": [{"fault": "cut", "times": 0}]}, "times"),
        ({"s3": [{"fault": "cut", "every": True}]}, "every"),
        ({"s3": [{"fault": "cut", "chance": 0}]}, "chance"),
        ({"s3": [{"fault": "cut", "chance": 1.5}]}, "chance"),
        ({"s3": [{"fault": "cut", "method": "PUT"}]}, "method"),
        ({"s3": [{"fault": "replaced", "file": "nowhere.csv.gz"}]}, "nowhere.csv.gz, which is not there"),
        ({"stream": [{"fault": "cut", "clean": "yes"}]}, "clean"),
        ({"stream": [{"fault": "reorder", "by": 0}]}, "by"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_rule_and_the_key(script: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Faults.load(script)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.toml", "[[rest]"), ("a.json", "{"), ("a.json", "[]"), ("a.toml", "\udcff"), ("a.yaml", "rest: []")],
)
def test_a_file_that_is_no_script_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError, match=str(tmp_path / name)):
        Faults.load(tmp_path / name)
    with pytest.raises(UsageError, match="cannot be read"):
        Faults.load(tmp_path / "missing.toml")


# When a rule strikes.


def struck(when: When, count: int = 12, draws: list[float] | None = None) -> list[int]:
    """Which of so many requests are struck."""
    found: list[int] = []
    dice = iter(draws or [])
    for number in range(1, count + 1):
        if when.strikes(number, len(found), lambda: next(dice)):
            found.append(number)
    return found


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (When(), list(range(1, 13))),
        (When(times=1), [1]),
        (When(first=3, times=1), [3]),
        (When(first=10), [10, 11, 12]),
        (When(every=5), [1, 6, 11]),
        (When(first=2, every=4), [2, 6, 10]),
        (When(first=2, every=4, times=2), [2, 6]),
    ],
)
def test_rules_count_from_one(when: When, expected: list[int]) -> None:
    assert struck(when) == expected


def test_chance_is_drawn_only_where_the_rule_is_due_and_misses_do_not_use_up_its_times() -> None:
    draws = [0.9, 0.1, 0.5, 0.2]
    assert struck(When(first=2, every=3, times=2, chance=0.5), draws=draws) == [5, 11]


@given(st.integers(), st.floats(0.01, 0.99))
def test_a_seed_gives_the_same_every_time(seed: int, chance: float) -> None:
    message = frame(*(event(n) for n in range(100)))
    rule: Event = {"fault": "garbage", "chance": chance}
    first, again = (stream(rule, seed=seed).through(message) for _ in range(2))
    assert first == again


def test_another_seed_another_rule_and_another_connection_have_another_fate() -> None:
    message = frame(*(event(n) for n in range(300)))
    rule: Event = {"fault": "duplicate", "chance": 0.5, "each": True}
    fates = [
        stream(rule, seed=1).through(message),
        stream(rule, seed=2).through(message),
        stream({"fault": "cut", "topic": "none"}, rule, seed=1).through(message),
        stream(rule, connection=2, seed=1).through(message),
    ]
    assert len({tuple(numbers(fate)) for fate in fates}) == 4


# What becomes of the stream.


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(0, 3))
def test_a_script_does_the_same_however_the_events_are_put_into_messages(sizes: list[int], seed: int) -> None:
    rules: list[Event] = [
        {"fault": "duplicate", "every": 3},
        {"fault": "reorder", "topic": "Q.IBM", "by": 2, "chance": 0.4},
        {"fault": "unknown", "first": 4, "every": 6},
        {"fault": "stall", "seconds": 0.5, "first": 7, "times": 1},
        {"fault": "cut", "first": 60},
    ]
    events = [event(n, ("AAPL", "IBM")[n % 2]) for n in range(sum(sizes))]
    one, many = stream(*rules, seed=seed), stream(*rules, seed=seed)
    at_once = told(one.through(frame(*events))) if events else []
    split: list[object] = []
    for size in sizes:
        split += told(many.through(frame(*events[:size])))
        events = events[size:]
        if any(isinstance(act, Cut) for act in split):
            break
    assert split == at_once
    assert told(one.rest()) == told(many.rest())


def test_what_no_rule_is_about_goes_through_untouched() -> None:
    message = frame(event(1), event(2, "IBM"), event(3, channel="T"))
    assert stream({"fault": "cut", "topic": "Q.MSFT"}).through(message) == [Send(message)]
    assert stream({"fault": "cut", "connection": 2}).through(message) == [Send(message)]
    assert stream({"fault": "cut", "connection": 2}, connection=2).through(message) == [Cut()]


def test_rules_find_every_channel_by_its_symbol() -> None:
    halted = {"ev": "LULD", "T": "AAPL", "h": 1, "q": 7}
    message = frame(event(1), halted)
    assert numbers(stream({"fault": "duplicate", "topic": "LULD.AAPL"}).through(message)) == [1, 7, 7]


@pytest.mark.parametrize("clean", [True, False])
def test_a_cut_comes_before_its_event_and_after_the_ones_before(clean: bool) -> None:
    faulty = stream({"fault": "cut", "first": 3, "clean": clean})
    assert faulty.through(frame(*map(event, range(1, 6)))) == [Send(frame(event(1), event(2))), Cut(clean)]


def test_cuts_are_counted_over_all_connections_or_for_each() -> None:
    message = frame(*map(event, range(10)))

    def lost(rule: Event) -> list[bool]:
        script = Faults.load({"stream": [{"fault": "cut", "first": 5, "times": 1, **rule}]})
        return [script.stream(n).through(message)[-1] == Cut() for n in (1, 2, 3)]

    assert lost({}) == [True, False, False]
    assert lost({"each": True}) == [True, True, True]
    assert lost({"connection": 2}) == [False, True, False]


def test_a_stall_comes_before_its_event_and_loses_nothing() -> None:
    acts = stream({"fault": "stall", "seconds": 2, "first": 2, "times": 1}).through(
        frame(*map(event, (1, 2)))
    )
    assert acts == [Send(frame(event(1))), Stall(2), Send(frame(event(2)))]


def test_duplicates_follow_each_other() -> None:
    acts = stream({"fault": "duplicate", "copies": 2, "every": 2}).through(frame(*map(event, (1, 2, 3))))
    assert numbers(acts) == [1, 1, 1, 2, 3, 3, 3]


def test_many_duplicates_do_not_make_a_message_that_clients_cannot_read() -> None:
    acts = stream({"fault": "duplicate", "copies": 1000}).through(frame(*map(event, range(100))))
    assert Counter(numbers(acts)) == dict.fromkeys(range(100), 1001)
    assert all(isinstance(act, Send) and len(act.frame) < 1_000_000 for act in acts)


def test_a_late_event_is_overtaken_by_those_of_its_topic_only() -> None:
    faulty = stream({"fault": "reorder", "by": 2, "first": 1, "times": 1, "topic": "Q.AAPL"})
    events = [event(1), event(2, "IBM"), event(3), event(4, channel="T"), event(5), event(6)]
    assert numbers(faulty.through(frame(*events))) == [2, 3, 4, 5, 1, 6]


def test_late_events_cross_messages_and_none_is_lost() -> None:
    faulty = stream({"fault": "reorder", "every": 2})
    assert faulty.through(frame(event(1))) == []
    assert numbers(faulty.through(frame(event(2)))) == [2, 1]
    assert faulty.through(frame(event(3))) == []
    assert numbers(faulty.rest()) == [3]
    assert faulty.rest() == []


@given(st.lists(st.sampled_from(["AAPL", "IBM"]), max_size=30), st.integers(1, 4), st.integers(1, 5))
def test_reordering_neither_loses_nor_makes_events(symbols: list[str], every: int, by: int) -> None:
    faulty = stream({"fault": "reorder", "every": every, "by": by})
    heard: list[object] = []
    for number, symbol in enumerate(symbols):
        heard += numbers(faulty.through(frame(event(number, symbol))))
    heard += numbers(faulty.rest())
    assert sorted(heard, key=str) == sorted(range(len(symbols)), key=str)


@pytest.mark.parametrize("how", ["text", "half"])
def test_garbage_is_no_json_is_utf8_and_costs_no_event(how: str) -> None:
    acts = stream({"fault": "garbage", "how": how}).through(frame(*map(event, range(50))))
    garbage = [act.frame for act in acts if isinstance(act, Send) and b"}" not in act.frame[-3:]]
    for text in garbage:
        text.decode()
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)
    assert len(set(garbage)) > 5
    assert numbers(acts) == list(range(50))


def test_unknown_events_and_statuses_come_beside_the_known() -> None:
    message = frame(event(1))
    assert told(stream({"fault": "unknown", "event": {"ev": "NEW"}}).through(message)) == [
        {"ev": "NEW"},
        event(1),
    ]
    status: Event = {"fault": "status", "status": "force_disconnect", "message": "bye"}
    assert told(stream(status, {"fault": "cut"}).through(message)) == [
        {"ev": "status", "status": "force_disconnect", "message": "bye"},
        Cut(),
    ]


def test_a_slow_client_is_told_so_and_cut() -> None:
    acts = stream({"fault": "slow_client", "first": 2}).through(frame(*map(event, (1, 2, 3))))
    assert told(acts) == [
        event(1),
        {"ev": "status", "status": "slow_consumer", "message": "slow consumer"},
        Cut(clean=True),
    ]
