"""A layout that a model cannot be divided by is refused before anything is read or started."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.models.parsed_config import mixtral, parsed
from tests.workers.parallel.thread_group import make_ranks
from workers.models.config import ModelConfig
from workers.models.errors import UnsupportedLayoutError
from workers.models.fit import check_layout
from workers.models.loader import load_model
from workers.models.rank_shape import RankShape, rank_shape
from workers.parallel.layout import ParallelLayout


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        (
            parsed(),
            ParallelLayout(pipeline=5),
            r"engine\.parallel\.pipeline: got 5, expected at most 4, the model's layers",
        ),
        (
            parsed(),
            ParallelLayout(tensor=3),
            r"engine\.parallel\.tensor: got 3, expected one of 1, 2, 4, 8: .* the 8 query heads",
        ),
        (
            parsed(num_attention_heads=12, num_key_value_heads=4, hidden_size=96),
            ParallelLayout(tensor=6),
            r"tensor: got 6, expected one of 1, 2, 4, 12: .* the 4 key/value heads, or be a mult",
        ),
        (
            parsed(intermediate_size=100),
            ParallelLayout(tensor=8),
            r"tensor: got 8, expected one of 1, 2, 4: it must divide the intermediate size 100",
        ),
        (
            parsed(vocab_size=9),
            ParallelLayout(tensor=8),
            r"tensor: got 8, expected one of 1, 2: it would leave a rank without a part",
        ),
        (
            parsed(),
            ParallelLayout(expert=2),
            r"engine\.parallel\.expert: got 2, expected 1: LlamaForCausalLM has no experts",
        ),
        (
            mixtral(),
            ParallelLayout(expert=4),
            r"engine\.parallel\.expert: got 4, expected a divisor of 6 experts",
        ),
        (
            mixtral(intermediate_size=98),
            ParallelLayout(tensor=4),
            r"engine\.parallel\.tensor: got 4, expected a divisor of .* intermediate size 98",
        ),
        (
            mixtral(),
            ParallelLayout(expert=3),
            r"engine\.parallel\.tensor \* engine\.parallel\.expert: got 3, expected one of 1, 2, 4",
        ),
    ],
)
def test_what_would_fit_is_named(config: ModelConfig, layout: ParallelLayout, message: str) -> None:
    with pytest.raises(UnsupportedLayoutError, match=message):
        check_layout(config, layout)


def test_loading_refuses_before_it_reads_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 4,'
        '"num_attention_heads": 8, "intermediate_size": 96, "vocab_size": 199,'
        '"max_position_embeddings": 64}'
    )
    ranks = make_ranks(ParallelLayout(tensor=3))[0]
    with pytest.raises(UnsupportedLayoutError, match="got 3, expected one of 1, 2, 4, 8"):
        load_model(tmp_path, None, "cpu", "auto", ranks=ranks)


@given(
    tensor=st.integers(1, 16),
    pipeline=st.integers(1, 5),
    group=st.integers(1, 4),
    kv_heads=st.integers(1, 6),
    vocab_size=st.integers(1, 300),
)
def test_shares_of_a_layout_that_fits_cover_the_model(
    tensor: int, pipeline: int, group: int, kv_heads: int, vocab_size: int
) -> None:
    """Each rank has the key/value heads of its query heads, and every id is one rank's."""
    heads = group * kv_heads
    config = parsed(
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        intermediate_size=720720,
        vocab_size=vocab_size,
    )
    layout = ParallelLayout(tensor=tensor, pipeline=pipeline)
    try:
        check_layout(config, layout)
    except UnsupportedLayoutError:
        return
    for stage in range(pipeline):
        members = layout.dense_group(layout.place(layout.rank(stage, 0, 0, 0)))
        shapes = [rank_shape(config, layout, layout.place(rank)) for rank in members]
        assert sum(shape.num_heads for shape in shapes) == heads
        assert [_kv_heads_needed(rank, shape, group) for rank, shape in enumerate(shapes)] == [
            set(range(shape.kv_heads.start, shape.kv_heads.stop)) for shape in shapes
        ]
        ids = [token for shape in shapes for token in range(vocab_size)[shape.vocab]]
        assert ids == list(range(vocab_size))
        assert all(shape.num_vocab for shape in shapes)


def _kv_heads_needed(rank: int, shape: RankShape, group: int) -> set[int]:
    first = rank * shape.num_heads
    return {head // group for head in range(first, first + shape.num_heads)}
