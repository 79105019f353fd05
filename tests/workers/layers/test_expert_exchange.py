"""Both ways to bring rows to experts on other ranks: what each row's experts give, summed."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from tests.workers.parallel.thread_group import run_ranks
from workers.kernels.library import load_library
from workers.layers.expert_buffers import ExpertBuffers, ExpertShape
from workers.layers.expert_exchange import AllRows, Dispatch, ExpertExchange
from workers.layers.expert_load import ExpertLoad
from workers.layers.expert_placement import ExpertPlacement, SlotTable, place_experts
from workers.layers.experts import ExpertLayers, SharedRows, make_experts
from workers.layers.linear import make_gated_linear, make_linear
from workers.layers.router import Router
from workers.parallel.group import Ranks
from workers.parallel.layout import ParallelLayout

HIDDEN, INNER, NUM_EXPERTS, TOP_K = 48, 32, 8, 2
CPU = torch.device("cpu")


class Layer(NamedTuple):
    """A whole sparse layer's weights."""

    gate: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor

    def result(self, x: torch.Tensor) -> torch.Tensor:
        """float64 [T, HIDDEN], row by row."""
        probabilities = (x.double() @ self.gate.double().T).softmax(dim=-1)
        out = torch.zeros(x.shape, dtype=torch.float64)
        for row in range(len(x)):
            shares, experts = probabilities[row].topk(TOP_K)
            for share, expert in zip(shares / shares.sum(), experts, strict=True):
                gate, up = (self.gate_up[expert].double() @ x[row].double()).chunk(2)
                out[row] += share * (self.down[expert].double() @ (F.silu(gate) * up))
        return out


def assert_close(found: torch.Tensor, exact: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.fixture
def layer() -> Layer:
    return Layer(
        torch.randn(NUM_EXPERTS, HIDDEN) / 4,
        torch.randn(NUM_EXPERTS, 2 * INNER, HIDDEN) / 7,
        torch.randn(NUM_EXPERTS, HIDDEN, INNER) / 6,
    )


def run(
    layer: Layer, x: torch.Tensor, real: int, placement: ExpertPlacement, *, dispatches: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer on a rank for each of the placement's: its result, and the load counted."""
    size = len(placement.experts)

    def body(ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor]:
        held = placement.experts[ranks.place.expert]
        library, load = load_library(), ExpertLoad.allocate(2, NUM_EXPERTS)
        load.num_real.fill_(real)
        experts = make_experts(
            [
                ExpertLayers(make_gated_linear(layer.gate_up[e]), make_linear(layer.down[e]))
                for e in held
            ],
            ranks.place.expert * placement.slots_per_rank,
            library,
        )
        table = SlotTable(placement, NUM_EXPERTS, CPU)
        router = Router(make_linear(layer.gate), table, library, renormalises=True)
        shape = ExpertShape(NUM_EXPERTS, TOP_K, 0)
        buffers = ExpertBuffers.allocate(shape, HIDDEN, len(x), x.dtype, CPU)
        exchange: ExpertExchange = AllRows(load, 1)
        if dispatches:
            exchange = Dispatch(ranks.experts, placement.slots_per_rank, load, 1)
        out = torch.full_like(x, torch.nan)
        exchange(x, router, experts, None, buffers, out)
        if not exchange.is_whole:
            ranks.dense.all_reduce(out)
        return out, load.rows

    found = run_ranks(ParallelLayout(expert=size), body)
    for out, rows in found[1:]:
        assert torch.equal(out, found[0][0])
        assert torch.equal(rows, found[0][1])
    return found[0]


PLACEMENTS = {
    "one rank": ExpertPlacement.even(NUM_EXPERTS, 1),
    "two ranks": ExpertPlacement.even(NUM_EXPERTS, 2),
    "uneven": ExpertPlacement.even(NUM_EXPERTS, 3),
    "copies": place_experts([50, 1, 1, 30, 1, 1, 1, 1], 4, 4),
    "everything everywhere": place_experts([1] * NUM_EXPERTS, 2, NUM_EXPERTS),
}


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 33])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dispatches", [False, True], ids=["all-rows", "dispatch"])
def test_every_row_meets_each_of_its_experts_once(
    dispatches: bool, placement: str, num_rows: int, padding: int, layer: Layer
) -> None:
    """Wherever these are, in one place or several; padding is zero and is not counted."""
    x = torch.randn(num_rows + padding, HIDDEN)
    out, rows = run(layer, x, num_rows, PLACEMENTS[placement], dispatches=dispatches)
    assert_close(out[:num_rows], layer.result(x[:num_rows]))
    assert not out[num_rows:].any()
    assert rows.sum(dim=1).tolist() == [0, num_rows * TOP_K]


def test_both_count_the_same_load(layer: Layer) -> None:
    x = torch.randn(40, HIDDEN)
    chosen = (x.double() @ layer.gate.double().T).topk(TOP_K).indices
    expected = chosen.flatten().bincount(minlength=NUM_EXPERTS)
    for dispatches in (False, True):
        _, rows = run(layer, x, 40, PLACEMENTS["copies"], dispatches=dispatches)
        assert torch.equal(rows[1], expected)


@pytest.mark.parametrize("native", [False, True])
def test_shared_rows_are_added_by_their_gate(
    native: bool, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native and load_library() is None:
        pytest.skip("needs the CPU kernels")
    if not native:
        monkeypatch.setattr("workers.kernels.library._machine_library", lambda: None)
    library, load = load_library(), ExpertLoad.allocate(1, NUM_EXPERTS)
    load.num_real.fill_(5)
    layers = [
        ExpertLayers(make_gated_linear(layer.gate_up[e]), make_linear(layer.down[e]))
        for e in range(NUM_EXPERTS)
    ]
    experts = make_experts(layers, 0, library)
    assert experts.is_native == native
    table = SlotTable(PLACEMENTS["one rank"], NUM_EXPERTS, CPU)
    router = Router(make_linear(layer.gate), table, library, renormalises=True)
    buffers = ExpertBuffers.allocate(
        ExpertShape(NUM_EXPERTS, TOP_K, 0), HIDDEN, 5, torch.float32, CPU
    )
    x, shared = torch.randn(5, HIDDEN), SharedRows(torch.randn(5, HIDDEN), torch.randn(5, 1))
    out = torch.empty_like(x)
    AllRows(load, 0)(x, router, experts, shared, buffers, out)
    expected = layer.result(x) + (shared.rows * shared.gate.sigmoid()).double()
    assert_close(out, expected)
