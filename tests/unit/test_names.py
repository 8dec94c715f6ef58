"""Names and refs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetbox.errors import UsageError
from fleetbox.names import Ref, check_label, matching, new_id, parse_ref

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@given(LABEL)
def test_labels_are_accepted_as_they_are(name: str) -> None:
    assert check_label(name, "member name") == name


@pytest.mark.parametrize("name", ["a", "0", "node-1", "a" * 63, "x--y", "1node"])
def test_edges_of_a_label_are_accepted(name: str) -> None:
    assert check_label(name, "member name") == name


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "a" * 64, "Node", "a_b", "a.b", "a b", "a/b", "..", "--json", "é", "a\n", "\n", "a\0"],
)
def test_other_names_are_refused_with_what_they_should_have_been(name: str) -> None:
    with pytest.raises(UsageError) as error:
        check_label(name, "cluster name")
    assert "cluster name" in error.value.message
    assert error.value.hint


@given(st.text(max_size=100))
def test_a_suggestion_is_a_label_itself(name: str) -> None:
    try:
        check_label(name, "cluster name")
    except UsageError as error:
        suggested = re.fullmatch("try '(.*)'", error.hint)
        if suggested:
            check_label(suggested[1], "cluster name")


def test_suggestion_keeps_what_it_can() -> None:
    with pytest.raises(UsageError) as error:
        check_label("My Cluster_1!", "cluster name")
    assert error.value.hint == "try 'my-cluster-1'"


@given(LABEL, LABEL)
def test_refs_survive_a_round_trip(cluster: str, member: str) -> None:
    assert parse_ref(f"{cluster}/{member}") == Ref(cluster, member)
    assert str(parse_ref(f"{cluster}/{member}")) == f"{cluster}/{member}"
    assert parse_ref(member) == Ref(None, member)
    assert str(parse_ref(member)) == member


@pytest.mark.parametrize("text", ["", "/", "/node-1", "c/", "a/b/c", "C/node-1", "c/Node-1", "../node-1"])
def test_what_is_no_ref_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ref(text)


def test_ids_are_fresh() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{16}", text) for text in ids)


def test_what_a_user_means_is_an_id_a_name_or_the_beginning_of_an_id() -> None:
    things = [("abcd1111", "one"), ("abcd2222", "two"), ("ef001111", "abcd1111x"), ("99990000", "ef00")]

    def meant(text: str, digits: int = 4) -> list[str]:
        return [name for _, name in matching(text, things, lambda t: t[0], lambda t: (t[1],), digits)]

    assert meant("two") == ["two"]
    assert meant("abcd1111") == ["one"]
    assert meant("abcd") == ["one", "two"]
    assert meant("abcd2") == ["two"]
    assert meant("ef00") == ["ef00"], "a name comes before the beginning of an id"
    assert meant("abc") == []
    assert meant("abcd2", digits=6) == []
    assert meant("ABCD") == []
    assert meant("") == []
