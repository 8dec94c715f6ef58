"""Names and refs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetbox.errors import UsageError
from fleetbox.names import Ref, check_label, is_id_prefix, new_id, parse_ref

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


def test_ids_are_fresh_and_their_prefixes_are_known() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    for text in ids:
        assert re.fullmatch("[0-9a-f]{16}", text)
        assert is_id_prefix(text)
        assert is_id_prefix(text[:4])
        assert not is_id_prefix(text[:3])
        assert not is_id_prefix(text + "0")
    assert not is_id_prefix("node")
    assert not is_id_prefix("ABCD")
