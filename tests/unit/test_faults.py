"""The grammar of the fake backend's faults."""

from __future__ import annotations

import pytest

from fleetbox.backends.fake.faults import STEPS, Fault, Faults, parse
from fleetbox.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" , \n", []),
        ("start:node-2=fail", [Fault("start", "node-2", "fail")]),
        ("network=fail", [Fault("network", "*", "fail")]),
        ("boot:*=slow:2.5", [Fault("boot", "*", "slow", 2.5)]),
        ("boot:a/node-?=die-after:3", [Fault("boot", "a/node-?", "die-after", 3.0)]),
        (
            "stop=hang, adopt=die\nstart=slow:0",
            [Fault("stop", "*", "hang"), Fault("adopt", "*", "die"), Fault("start", "*", "slow")],
        ),
    ],
)
def test_rules_are_understood(text: str, expected: list[Fault]) -> None:
    assert list(parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("bogus", "STEP"),
        ("start", "STEP"),
        ("start:=fail", "STEP"),
        ("start=slow:-1", "STEP"),
        ("start=slow:inf", "STEP"),
        ("fly:node-1=fail", "the steps are network"),
        ("start=explode", "the step 'start' can"),
        ("network=die", "the step 'network' can"),
        ("stop=die-after:1", "the step 'stop' can"),
        ("start=slow", "needs seconds"),
        ("start=fail:3", "takes no seconds"),
        ("start=fail,nonsense", "STEP"),
    ],
)
def test_unknown_fault_is_a_usage_error_that_says_why(text: str, why: str) -> None:
    with pytest.raises(UsageError) as error:
        Faults(text)
    assert why in error.value.why
    assert "FLEETBOX_FAKE_FAULTS" in error.value.hint


def test_every_step_takes_every_action_that_it_lists() -> None:
    for step, actions in STEPS.items():
        for action in actions:
            [fault] = parse(f"{step}:x={action}" + (":1" if action in ("slow", "die-after") else ""))
            assert parse(str(fault)) == (fault,)


def test_first_rule_that_matches_counts() -> None:
    faults = Faults("start:node-2=hang,start:big/node-?=fail,start=die")
    assert [getattr(faults.find("start", name), "action", None) for name in ("a/node-2", "big/node-1", "a/node-3")] == [
        "hang",
        "fail",
        "die",
    ]
    assert faults.find("stop", "a/node-2") is None


def test_rules_can_be_changed_and_a_bad_change_changes_nothing() -> None:
    faults = Faults("start=fail")
    with pytest.raises(UsageError):
        faults.text = "start=never"
    assert faults.text == "start=fail"
    assert faults.find("start", "a/b") is not None
    faults.text = ""
    assert faults.find("start", "a/b") is None
