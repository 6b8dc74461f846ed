"""Layouts: a rule's weights by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from elalora import UserError
from elalora.layouts import read_file, read_rule, weights_of

KINDS = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
NAMES = [f"bert.encoder.layer.{i}.{kind}" for i in range(3) for kind in KINDS]


def weights(rule, start=None):
    """Weights by (layer, index in KINDS)."""
    given = weights_of(read_rule(rule), NAMES, start)
    return np.array([float(given[name]) for name in NAMES]).reshape(3, 4)


def test_terms_multiply_the_weights_of_the_matrices_that_they_name():
    expected = np.ones((3, 4))
    expected[:, 2:] = 3
    assert np.array_equal(weights("ffn:3"), expected)
    expected[:, 0] = 0.5
    expected[1] *= 4
    assert np.array_equal(weights("query:0.5 layer1:4 ffn:3"), expected)
    assert np.array_equal(weights("attention:2"), np.array([[2, 2, 1, 1]] * 3))
    assert np.array_equal(weights("layer0-1:5"), np.array([[5] * 4, [5] * 4, [1] * 4]))


def test_a_ramp_rises_linearly_over_depth_in_either_direction():
    assert np.array_equal(weights("top:3")[:, 0], [1, 2, 3])
    assert np.array_equal(weights("bottom:3")[:, 0], [3, 2, 1])


def test_rest_is_the_weight_of_all_matrices_that_no_term_names():
    expected = np.zeros((3, 4))
    expected[:, 0] = 1
    assert np.array_equal(weights("query:1 rest:0"), expected)
    assert np.array_equal(weights("query:1 rest:0 top:3")[:, 0], [1, 2, 3])  # a ramp names nothing


def test_an_inverted_layout_has_its_weights_where_the_other_had_none():
    planted = weights("layer.1.output.dense:12 rest:0")
    assert np.array_equal(weights("layer.1.output.dense:12 rest:0 inverted"), 12 - planted)
    ranks = dict(zip(NAMES, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], strict=True))
    assert np.array_equal(weights("inverted", ranks).ravel(), np.arange(12, 0, -1))


def test_rules_of_the_same_terms_have_one_spelling():
    assert str(read_rule("top:2.0  ffn:3 query:1")) == str(read_rule("ffn:3.0 top:2")) == "ffn:3 top:2"
    assert str(read_rule("rest:0 query:1.0")) == "query:1 rest:0"  # the weight 1 keeps query out of the rest
    assert str(read_rule("top:1 ffn:1")) == ""
    assert str(read_rule("inverted ffn:0.5")) == "ffn:0.5 inverted"
    assert (
        weights(str(read_rule("query:0.3333 layer1:2 inverted"))).tolist()
        == weights("inverted layer1:2 query:0.3333").tolist()
    )


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("ffn", "'ffn' cannot be read"),
        ("ffn:x", "'ffn:x' cannot be read"),
        ("ffn:1/0", "'ffn:1/0' cannot be read"),
        ("ffn:nan", "'ffn:nan' cannot be read"),
        ("ffn:-1", "the weight of 'ffn' must not be negative"),
        ("ffn:1 ffn:2", "'ffn' is there twice"),
        ("inverted inverted", "'inverted' is there twice"),
        (" ", "method.pattern is empty"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused_in_one_line(rule, line):
    with pytest.raises(UserError, match=line) as error:
        read_rule(rule)
    assert "\n" not in str(error.value)


def test_a_term_that_names_no_matrix_and_a_rule_without_weight_are_refused():
    with pytest.raises(UserError, match="'valu:2' names none of the 12 adapted matrices"):
        weights("valu:2")
    with pytest.raises(UserError, match="'layer7:2' names none"):
        weights("layer7:2")
    with pytest.raises(UserError, match="gives every matrix the weight 0"):
        weights("ffn:0 attention:0")


def test_a_file_of_weights_is_the_rule_with_its_names_and_nothing_else(tmp_path):
    path = tmp_path / "layout.json"
    path.write_text(json.dumps({"query": 2, "layer.1.output.dense": 1.5}))
    assert read_file(str(path)) == "query:2 layer.1.output.dense:1.5 rest:0"
    path.write_text(json.dumps({"ffn": 3, "rest": 1}))
    assert read_file(str(path)) == "ffn:3 rest:1"
    for content in ("[1]", "{}", '{"query": "2"}', '{"query": true}', "not json"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"method\.pattern=.*layout\.json"):
            read_file(str(path))
    with pytest.raises(UserError, match="cannot be read as a JSON file"):
        read_file(str(tmp_path / "missing.json"))
