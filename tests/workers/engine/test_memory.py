"""Memory for the KV cache: a container's limit counts, what its page cache holds does not."""

from pathlib import Path

import pytest

from workers.engine.memory import cgroup_free_bytes


@pytest.mark.parametrize(
    ("limit", "free"), [("max", float("inf")), ("1000", 1000 - 700 + 450), ("100", 0)]
)
def test_files_in_the_page_cache_make_way(tmp_path: Path, limit: str, free: float) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 200\ninactive_file 400\nactive_file 50\n")
    assert cgroup_free_bytes(tmp_path) == free


def test_without_a_container_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_free_bytes(tmp_path) == float("inf")
