"""Merging the pod overlay into the pod template."""

from typing import Any

import pytest

from cpmbee_job.errors import SpecError
from cpmbee_job.launch.manifest.overlay import merge


def test_mappings_are_merged_by_key() -> None:
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3, "d": 4}}, "x") == {"a": {"b": 1, "c": 3, "d": 4}}


def test_null_removes_a_key_at_any_depth() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": None}, "d": None, "e": None}, "x") == {"a": {"c": 2}}


def test_null_in_a_new_value_is_dropped() -> None:
    assert merge({}, {"a": {"b": None, "c": [{"name": "n", "d": None}]}}, "x") == {"a": {"c": [{"name": "n"}]}}


def test_lists_of_named_items_are_merged_by_name() -> None:
    base = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}
    overlay = {"env": [{"name": "C", "value": "3"}, {"name": "A", "value": "4"}]}
    assert merge(base, overlay, "x")["env"] == [
        {"name": "A", "value": "4"},
        {"name": "B", "value": "2"},
        {"name": "C", "value": "3"},
    ]


@pytest.mark.parametrize(
    ("key", "base", "overlay", "merged"),
    [
        (
            "volumeMounts",
            [{"name": "tmp", "mountPath": "/tmp"}],
            [{"name": "tmp", "mountPath": "/x"}],
            [{"name": "tmp", "mountPath": "/tmp"}, {"name": "tmp", "mountPath": "/x"}],
        ),
        (
            "tolerations",
            [{"key": "a", "effect": "NoSchedule"}],
            [{"key": "a", "effect": "NoExecute"}],
            [{"key": "a", "effect": "NoExecute"}],
        ),
        ("ports", [{"containerPort": 1, "name": "a"}], [{"containerPort": 1}], [{"containerPort": 1, "name": "a"}]),
    ],
)
def test_some_lists_have_another_key(key: str, base: Any, overlay: Any, merged: Any) -> None:
    assert merge({key: base}, {key: overlay}, "x") == {key: merged}


@pytest.mark.parametrize(
    ("base", "overlay"),
    [
        (["a", "b"], ["c"]),
        ([{"name": "a"}], ["c"]),
        ([{"operator": "Exists"}], [{"name": "c"}]),
        ([{"name": "a"}], [{"name": "c"}, {"name": "c"}]),
    ],
)
def test_a_list_without_unique_names_is_replaced(base: Any, overlay: Any) -> None:
    assert merge({"x": base}, {"x": overlay}, "x") == {"x": overlay}


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ({"spec": {"containers": {"pytorch": {}}}}, r"x.spec.containers: must be a list \(got a mapping\)"),
        ({"spec": []}, r"x.spec: must be a mapping \(got a list\)"),
        ({"spec": 3}, r"x.spec: must be a mapping \(got 3\)"),
        (
            {"spec": {"containers": [{"name": "a", "image": []}]}},
            r"x.spec.containers\[a\].image: must be a scalar",
        ),
    ],
)
def test_a_value_of_another_type_is_rejected_with_its_path(overlay: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        merge({"spec": {"containers": [{"name": "a", "image": "i"}]}}, overlay, "x")


def test_the_arguments_are_not_changed() -> None:
    base, overlay = {"a": [{"name": "n", "v": 1}]}, {"a": [{"name": "n", "v": None}]}
    merge(base, overlay, "x")
    assert (base, overlay) == ({"a": [{"name": "n", "v": 1}]}, {"a": [{"name": "n", "v": None}]})
