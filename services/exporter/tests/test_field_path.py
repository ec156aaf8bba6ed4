"""The path of a text: through objects, and through lists where a separator is set."""

import pytest

from gpt2_exporter.corpus.field_path import FieldPath
from gpt2_exporter.rejects.reasons import IN_LIST

SECTIONS = {"sections": [{"body": "a"}, {"title": "no body"}, {"body": None}, {"body": ""}, {"body": ["b", "c"]}]}


@pytest.mark.parametrize(
    ("document", "path", "expected"),
    [
        ({"paragraphs": ["a", "b"]}, "paragraphs", ("a|b", "")),
        ({"paragraphs": [["a", ["b"]], [], "c"]}, "paragraphs", ("a|b|c", "")),
        ({"paragraphs": ["a", None, "", "b"]}, "paragraphs", ("a|b", "")),
        (SECTIONS, "sections.body", ("a|b|c", "")),
        ({"a": [[{"b": {"c": ["x"]}}], {"b": [{"c": "y"}]}]}, "a.b.c", ("x|y", "")),
        ({"a": {"b": "as it is"}}, "a.b", ("as it is", "")),
        ({"a": ["x", 5]}, "a", ("", "text not a string")),
        ({"a": ["x", {"b": "y"}]}, "a", ("", "text not a string")),
        ({"a": [{"b": "x"}, {"b": False}]}, "a.b", ("", "text not a string")),
        ({"a": []}, "a", ("", "text empty")),
        ({"a": [None]}, "a", ("", "text null")),
        ({"a": [None, ""]}, "a", ("", "text empty")),
        ({"a": [{"c": "x"}]}, "a.b", ("", "text missing")),
        ({"a": ["x"]}, "a.b", ("", "text missing")),
    ],
)
def test_a_list_of_texts_is_joined_where_a_separator_is_set(document, path, expected):
    assert FieldPath.of(path, "|").read(document) == expected


@pytest.mark.parametrize("document", [{"a": ["x"]}, {"a": []}, {"a": [{"b": "x"}]}])
def test_a_list_without_a_separator_is_refused_by_the_name_of_the_option(document):
    path = "a.b" if document["a"] == [{"b": "x"}] else "a"
    assert FieldPath.of(path).read(document) == ("", IN_LIST)
    assert "list_separator" in IN_LIST


def test_a_separator_can_be_empty():
    assert FieldPath.of("a", "").read({"a": ["x", "y"]}) == ("xy", "")
