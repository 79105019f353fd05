"""Experts move to where the load is shared best, and nothing that is computed changes."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig

from tests.golden.models import Case, save_random
from tests.workers.models.rank_driver import SIZES, Fed, RankDriver, feed
from tests.workers.parallel.thread_group import run_ranks
from workers.kernels.library import load_library
from workers.layers.expert_placement import EMPTY
from workers.layers.moe import SparseMlp
from workers.models import expert_rebalancer
from workers.models.causal_lm import CausalLM
from workers.models.errors import UnsupportedLayoutError
from workers.models.expert_rebalancer import ExpertRebalancer
from workers.models.loader import load_model
from workers.models.moe_weights import ExpertReader
from workers.models.recorder import Recorder
from workers.parallel.group import Ranks
from workers.parallel.layout import ParallelLayout
from workers.quantization.plan import QuantizationPlan

NUM_EXPERTS, SPARE = 8, 2
LAYOUTS = {
    "ep2": ParallelLayout(expert=2),
    "ep4": ParallelLayout(expert=4),
    "tp2-ep2": ParallelLayout(tensor=2, expert=2),
    "ep2-pp2": ParallelLayout(expert=2, pipeline=2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixtral")
    config = MixtralConfig(**SIZES, num_local_experts=NUM_EXPERTS, num_experts_per_tok=1)
    save_random(Case("mixtral", lambda: config), path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> Fed:
    return feed(folder)


@pytest.fixture(autouse=True)
def few_rows_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_rebalancer, "LEAST_ROWS", 1)


def load(folder: Path, ranks: Ranks, **arguments: Any) -> tuple[CausalLM, ExpertRebalancer]:
    arguments = {"spare_experts": SPARE, **arguments}
    model = load_model(folder, torch.float32, "cpu", "auto", ranks=ranks, **arguments)
    assert model.rebalancer is not None
    return model, model.rebalancer


def sparse_layers(model: CausalLM) -> list[SparseMlp]:
    return [layer.mlp for layer in model.layers if isinstance(layer.mlp, SparseMlp)]


def rest_long(rebalancer: ExpertRebalancer) -> None:
    while rebalancer.has_work:
        rebalancer.rest()


def heat(model: CausalLM) -> None:
    """As if experts 2 and 3, of which few ranks hold one, had got nearly all rows lately."""
    assert model.expert_load is not None
    rows = torch.tensor([10, 10, 600, 300, *[10] * (NUM_EXPERTS - 4)])
    model.expert_load.rows.add_(rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_stay_the_same_and_loads_become_equal(
    layout: str, folder: Path, alone: Fed
) -> None:
    """In recorded steps too."""

    def body(ranks: Ranks) -> tuple[list[Fed | None], list[Any]]:
        model, rebalancer = load(folder, ranks)
        assert model.expert_load is not None
        driver = RankDriver(model, ranks, Recorder(model.library))
        fed = [driver.feed()]
        heat(model)
        rest_long(rebalancer)
        assert rebalancer.num_moves == model.shape.num_layers
        fed.append(driver.feed())
        return fed, [mlp.slots.placement for mlp in sparse_layers(model)]

    found = run_ranks(LAYOUTS[layout], body)
    last = [found[rank][0] for rank in LAYOUTS[layout].dense_group(LAYOUTS[layout].place(0))]
    for turn in (0, 1):
        parts = [fed[turn] for fed in last]
        logits = torch.cat([part.logits for part in parts if part is not None], dim=1)
        torch.testing.assert_close(logits, alone.logits, atol=1e-4, rtol=1e-4)
    for rank, (_, placements) in enumerate(found):
        stage_mate = LAYOUTS[layout].rank(LAYOUTS[layout].place(rank).stage, 0, 0, 0)
        assert placements == found[stage_mate][1]
        for placement in placements:
            assert all(held.count(2) == 1 for held in placement.experts)  # it is everywhere
            assert all(len(held) <= NUM_EXPERTS for held in placement.experts)


def test_balanced_loads_move_nothing(folder: Path) -> None:
    def body(ranks: Ranks) -> int:
        model, rebalancer = load(folder, ranks)
        assert model.expert_load is not None
        model.expert_load.rows.add_(100)
        assert rebalancer.has_work
        rest_long(rebalancer)
        return rebalancer.num_moves

    assert run_ranks(LAYOUTS["ep2"], body) == [0, 0]


def test_a_layer_is_looked_at_by_the_rows_since_the_last_time(folder: Path) -> None:
    def body(ranks: Ranks) -> list[int]:
        model, rebalancer = load(folder, ranks)
        assert model.expert_load is not None
        heat(model)
        rest_long(rebalancer)
        moves = [rebalancer.num_moves]
        assert not rebalancer.has_work
        heat(model)  # which is shared now
        rest_long(rebalancer)
        moves.append(rebalancer.num_moves)
        model.expert_load.rows[:, -1] += 5000  # more than all until now
        rest_long(rebalancer)
        moves.append(rebalancer.num_moves)
        return moves

    assert run_ranks(LAYOUTS["ep2"], body) == [[3, 3, 6]] * 2


def test_what_one_rank_cannot_read_no_rank_uses(
    folder: Path, alone: Fed, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, is_loaded, failures = ExpertReader.read, threading.Event(), []

    def failing(self: ExpertReader, index: int, expert: int) -> Any:
        if is_loaded.is_set() and (index, expert) == (1, 2):
            failures.append(expert)
            raise OSError("no such file")
        return read(self, index, expert)

    def body(ranks: Ranks) -> tuple[int, tuple[int, ...], Fed | None]:
        model, rebalancer = load(folder, ranks)
        ranks.dense.all_reduce(torch.zeros(1))  # all ranks are here
        is_loaded.set()
        heat(model)
        rest_long(rebalancer)
        held = sparse_layers(model)[1].slots.placement.experts[ranks.place.expert]
        return rebalancer.num_moves, held, RankDriver(model, ranks).feed()

    monkeypatch.setattr(ExpertReader, "read", failing)
    found = run_ranks(LAYOUTS["ep4"], body)
    assert failures
    assert [moves for moves, _, _ in found] == [2] * 4
    assert [held for _, held, _ in found] == [
        (0, 1, 2, 3),
        (2, 3, 4, 5),
        (4, 5, 6, 7),
        (6, 7, 0, 1),
    ]
    logits = torch.cat([fed.logits for _, _, fed in found if fed is not None], dim=1)
    torch.testing.assert_close(logits, alone.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", ["int8_weight_only", "int4"])
def test_quantized_experts_come_with_the_same_codes(folder: Path, scheme: Any) -> None:
    """A moved expert computes what it did where it was."""

    def body(ranks: Ranks) -> list[Fed | None]:
        model, rebalancer = load(folder, ranks, plan=QuantizationPlan(scheme))
        driver = RankDriver(model, ranks)
        fed = [driver.feed()]
        heat(model)
        rest_long(rebalancer)
        assert rebalancer.num_moves == 3
        return [*fed, driver.feed()]

    for before, after in run_ranks(LAYOUTS["ep2"], body):
        assert before is not None
        assert after is not None
        torch.testing.assert_close(after.logits, before.logits, atol=1e-4, rtol=1e-4)


def test_spare_slots_count_as_weights(folder: Path) -> None:
    def body(ranks: Ranks) -> int:
        plain = load_model(folder, torch.float32, "cpu", "auto", ranks=ranks)
        return load(folder, ranks)[0].weight_bytes - plain.weight_bytes

    expert = 3 * 96 * 128 * 4
    assert run_ranks(LAYOUTS["ep2"], body) == [3 * SPARE * expert] * 2


def test_more_spare_slots_than_other_experts_are_left_out(folder: Path) -> None:
    def body(ranks: Ranks) -> set[tuple[int, ...]]:
        model, _ = load(folder, ranks, spare_experts=100)
        placement = sparse_layers(model)[0].slots.placement
        assert placement.slots_per_rank == NUM_EXPERTS
        return {tuple(sorted(held)) for held in placement.experts} - {(EMPTY,)}

    assert run_ranks(LAYOUTS["ep2"], body) == [{tuple(range(NUM_EXPERTS))}] * 2


def test_where_they_make_no_sense_spare_experts_are_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedLayoutError, match=r"engine\.spare_experts: got 1, expected 0"):
        load_model(folder, None, "cpu", "auto", spare_experts=1)
    if load_library() is None:
        pytest.skip("needs the CPU kernels")

    def body(ranks: Ranks) -> None:
        load(folder, ranks, deterministic=True)

    with pytest.raises(UnsupportedLayoutError, match=r"spare_experts: .* engine\.deterministic"):
        run_ranks(LAYOUTS["ep2"], body)
