"""Cuts: how original tensors fall apart into native ones."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.models.layouts import WHOLE, EqualRows, GroupedRows, Pair, same


def test_grouped_rows_take_the_queries_of_each_key_value_head():
    # Two key-value heads of two queries, head dim 1: q0 q1 k v | q2 q3 k v.
    wqkv = torch.tensor([[0.0], [1.0], [10.0], [20.0], [2.0], [3.0], [11.0], [21.0]])
    queries, keys, values = GroupedRows(kv_heads=2, queries=2, head_dim=1).split(wqkv)
    assert queries.tolist() == [[0.0], [1.0], [2.0], [3.0]]
    assert keys.tolist() == [[10.0], [11.0]]
    assert values.tolist() == [[20.0], [21.0]]


def test_grouped_rows_keep_the_dims_of_a_head_together():
    wqkv = torch.arange(6.0)  # one head of dim 2: q, k, v
    parts = GroupedRows(kv_heads=1, queries=1, head_dim=2).split(wqkv)
    assert [part.tolist() for part in parts] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


@settings(deadline=None, max_examples=50)
@given(
    kv_heads=st.integers(1, 4),
    queries=st.integers(1, 4),
    head_dim=st.integers(1, 4),
    inner=st.sampled_from([(), (3,)]),
)
def test_grouped_rows_join_to_what_was_split(kv_heads, queries, head_dim, inner):
    cut = GroupedRows(kv_heads, queries, head_dim)
    rows = kv_heads * (queries + 2) * head_dim
    original = torch.randn(rows, *inner)
    parts = cut.split(original)
    assert [len(part) for part in parts] == [
        kv_heads * queries * head_dim,
        kv_heads * head_dim,
        kv_heads * head_dim,
    ]
    assert cut.join(parts).equal(original)
    assert cut.joined_shape([tuple(part.shape) for part in parts]) == tuple(original.shape)


def test_equal_rows_join_to_what_was_split():
    original = torch.randn(6, 3)
    parts = EqualRows(3).split(original)
    assert [part.tolist() for part in parts] == [original[i : i + 2].tolist() for i in (0, 2, 4)]
    assert EqualRows(3).join(parts).equal(original)
    assert EqualRows(3).joined_shape([(2, 3)] * 3) == (6, 3)


def test_whole_changes_nothing():
    tensor = torch.randn(2, 2)
    assert WHOLE.split(tensor) == [tensor]
    assert WHOLE.join([tensor]) is tensor
    assert WHOLE.joined_shape([(2, 2)]) == (2, 2)


def test_same_gives_a_pair_for_each_leaf():
    assert list(same("a", "b", ("weight", "bias"))) == [
        Pair("a.weight", ("b.weight",)),
        Pair("a.bias", ("b.bias",)),
    ]
