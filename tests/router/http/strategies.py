"""Bodies of every kind, sensible and not."""

from typing import Any

from hypothesis import strategies as st

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["text", "user", "auto", "none", "tiny"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("role", "content", "name", "audio"), json_values),
    ),
    max_size=3,
)


def bodies(least: dict[str, Any], fields: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Few fields at a time, so that what is wrong with one does not hide the others."""
    names = st.sampled_from([name for name in fields if name != "model"])
    return st.dictionaries(names, json_values, max_size=3).map(lambda chosen: least | chosen)
