"""Routing and the experts' products, on every build: what plain torch says."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.kernels.cpu_experts import CpuExperts, ExpertTable, PackedExpert
from workers.kernels.cpu_gemm import ARITHMETICS, Arithmetic, CpuGemm, PackedSpec, PackedWeight
from workers.kernels.library import Library
from workers.kernels.routing_reference import route

EXAMPLES = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WIDTH, INNER = 96, 64


class Routed:
    """Buffers of one routing, and a table in which experts have one to three copies."""

    def __init__(self, logits: torch.Tensor, top_k: int, real: int) -> None:
        num_rows, num_experts = logits.shape
        generator = torch.Generator().manual_seed(num_experts)
        self.logits = logits
        self.num_real = torch.tensor([real])
        self.copies = torch.randint(1, 4, (num_experts,), dtype=torch.int32, generator=generator)
        self.places = torch.randperm(num_experts * 3, generator=generator).view(-1, 3).int()
        self.load = torch.arange(num_experts)
        self.slots = torch.full((num_rows, top_k), 77, dtype=torch.int32)
        self.weights = torch.full((num_rows, top_k), torch.nan)

    def arguments(self) -> tuple[torch.Tensor, ...]:
        return (
            self.logits,
            self.num_real,
            self.copies,
            self.places,
            self.load,
            self.slots,
            self.weights,
        )


ROUTINGS = {
    "num_rows": st.integers(0, 30) | st.just(700),
    "num_experts": st.integers(1, 40) | st.just(128),
    "top_k": st.integers(1, 8),
    "padding": st.integers(0, 3),
    "first_row": st.sampled_from([0, 5]),
    "renormalises": st.booleans(),
    "threads": st.sampled_from([1, 2]),
}


@EXAMPLES
@given(**ROUTINGS, scale=st.sampled_from([1.0, 30.0]))
def test_routing_is_that_of_torch(
    library: Library,
    num_rows: int,
    num_experts: int,
    top_k: int,
    padding: int,
    first_row: int,
    renormalises: bool,
    threads: int,
    scale: float,
) -> None:
    """Slots, weights and load; padding goes nowhere and counts nowhere."""
    library.set_num_threads(threads)
    logits, top_k = torch.randn(num_rows, num_experts) * scale, min(top_k, num_experts)
    real = max(first_row + num_rows - padding, 0)
    found, expected = (Routed(logits, top_k, real) for _ in range(2))
    for function, routed in ((CpuExperts(library).route, found), (route, expected)):
        function(*routed.arguments(), renormalises=renormalises, first_row=first_row)
    assert (found.slots[: max(num_rows - padding, 0)] >= 0).all()
    assert (found.slots[max(num_rows - padding, 0) :] == -1).all()
    assert torch.equal(found.slots, expected.slots)
    assert torch.equal(found.load, expected.load)
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-5, atol=1e-7)


@EXAMPLES
@given(**ROUTINGS)
def test_weights_are_shares(
    library: Library,
    num_rows: int,
    num_experts: int,
    top_k: int,
    padding: int,
    first_row: int,
    renormalises: bool,
    threads: int,
) -> None:
    """They fall from expert to expert, sum to 1 if renormalised, and to no more if not."""
    routed = Routed(torch.randn(num_rows, num_experts), min(top_k, num_experts), num_rows)
    CpuExperts(library).route(*routed.arguments(), renormalises=renormalises)
    totals = routed.weights.sum(dim=1)
    assert (routed.weights.diff(dim=1) <= 0).all()
    assert (totals <= 1 + 1e-5).all()
    if renormalises or top_k >= num_experts:
        torch.testing.assert_close(totals, torch.ones(num_rows))
    assert routed.load.sum() == num_rows * routed.slots.shape[1] + sum(range(num_experts))


@pytest.mark.parametrize("top_k", [1, 3, 6])
def test_of_equal_logits_the_first_win(library: Library, top_k: int) -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 2.0, 1.0], [5.0] * 6])
    for function in (CpuExperts(library).route, route):
        routed = Routed(logits, top_k, 2)
        routed.copies.fill_(1)
        routed.places[:, 0] = torch.arange(6, dtype=torch.int32)
        function(*routed.arguments(), renormalises=True)
        assert routed.slots.tolist() == [[1, 3, 4, 2, 5, 0][:top_k], list(range(top_k))]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_make_their_rows_weights_nan(
    library: Library, bad: float
) -> None:
    """And no slot that is not there."""
    logits = torch.randn(3, 20)
    logits[1, 7] = bad
    for function in (CpuExperts(library).route, route):
        routed = Routed(logits, 4, 3)
        function(*routed.arguments(), renormalises=False)
        assert routed.weights[1].isnan().all()
        assert routed.weights[::2].isfinite().all()
        assert ((routed.slots >= 0) & (routed.slots < 60)).all()


def _packed(gemm: CpuGemm, arithmetic: Arithmetic, inputs: int, outputs: int) -> PackedWeight:
    is_gated = outputs == 2 * INNER
    group = 32 if arithmetic.startswith("int4") else 0
    spec = PackedSpec(arithmetic, inputs, outputs, is_gated, group)
    if arithmetic in ("float32", "bfloat16"):
        dtype = torch.float32 if arithmetic == "float32" else torch.bfloat16
        return gemm.pack(spec, torch.randn(outputs, inputs).to(dtype) / inputs**0.5)
    codes = torch.randint(0, 16, (outputs, inputs))
    codes = codes.to(torch.uint8) if group else (codes - 8).to(torch.int8)
    return gemm.pack(spec, codes, scales=torch.rand(outputs, spec.num_groups) / inputs**0.5 / 4)


def _expert(gemm: CpuGemm, gated: Arithmetic, down: Arithmetic) -> PackedExpert:
    return PackedExpert(_packed(gemm, gated, WIDTH, 2 * INNER), _packed(gemm, down, INNER, WIDTH))


def _expected(
    gemm: CpuGemm,
    x: torch.Tensor,
    slots: torch.Tensor,
    weights: torch.Tensor,
    experts: dict[int, PackedExpert],
) -> torch.Tensor:
    """Row by row and expert by expert, with the products of single rows."""
    total = torch.zeros(len(x), WIDTH)
    for row, (chosen, shares) in enumerate(zip(slots.tolist(), weights.tolist(), strict=True)):
        for slot, share in zip(chosen, shares, strict=True):
            if slot not in experts:
                continue
            activated, result = x.new_empty(1, INNER), torch.empty(1, WIDTH)
            gemm.multiply(x[row : row + 1], experts[slot].gated, activated)
            gemm.multiply(activated, experts[slot].down, result)
            total[row] += share * result[0]
    return total


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@EXAMPLES
@given(
    num_rows=st.integers(1, 40) | st.just(150), top_k=st.integers(1, 4), shared=st.booleans(),
    wide=st.booleans(), threads=st.sampled_from([1, 2]), first=st.integers(0, 6),
)  # fmt: skip
def test_products_of_experts(
    library: Library,
    arithmetic: Arithmetic,
    num_rows: int,
    top_k: int,
    shared: bool,
    wide: bool,
    threads: int,
    first: int,
) -> None:
    """Weighted and summed, those of other slots left out; the shared rows added by their gate."""
    library.set_num_threads(threads)
    gemm = CpuGemm(library)
    dtype = torch.float32 if wide else torch.bfloat16
    if arithmetic in ("float32", "bfloat16"):
        dtype = torch.float32 if arithmetic == "float32" else torch.bfloat16
    held = {first + slot: _expert(gemm, arithmetic, arithmetic) for slot in range(5)}
    x = torch.randn(num_rows, WIDTH).to(dtype)
    slots = torch.rand(num_rows, 8).argsort(dim=1)[:, :top_k].to(torch.int32)
    slots[-1, 0] = -1
    weights = torch.rand(num_rows, top_k)
    expected = _expected(gemm, x, slots, weights, held)
    others, gate = None, None
    if shared:
        others, gate = torch.randn(num_rows, WIDTH).to(dtype), torch.randn(num_rows, 1)
        expected += others * gate.sigmoid()
    out = torch.full((num_rows, WIDTH), torch.nan, dtype=dtype)
    table = ExpertTable(list(held.values()))
    CpuExperts(library).multiply(
        x, slots, weights, table, first, out, shared=others, shared_gate=gate
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


def test_experts_may_be_stored_differently(library: Library) -> None:
    """Each by its own arithmetic, and the two products of one too."""
    gemm = CpuGemm(library)
    kinds: list[tuple[Arithmetic, Arithmetic]] = [
        ("bfloat16", "int8_int8"),
        ("int4_int8", "int8"),
        ("int8_int8", "int4"),
    ]
    experts = [_expert(gemm, *kind) for kind in kinds]
    x = torch.randn(20, WIDTH).bfloat16()
    slots = torch.rand(20, 3).argsort(dim=1)[:, :2].to(torch.int32)
    weights, out = torch.rand(20, 2), torch.empty_like(x)
    CpuExperts(library).multiply(x, slots, weights, ExpertTable(experts), 0, out)
    expected = _expected(gemm, x, slots, weights, dict(enumerate(experts)))
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("arithmetic", ["bfloat16", "int8_int8", "int4_int8"])
def test_a_row_does_not_depend_on_the_batch(library: Library, arithmetic: Arithmetic) -> None:
    """Bit for bit."""
    gemm, kernels = CpuGemm(library), CpuExperts(library)
    table = ExpertTable([_expert(gemm, arithmetic, arithmetic) for _ in range(4)])
    x = torch.randn(150, WIDTH).bfloat16()
    slots = torch.rand(150, 4).argsort(dim=1)[:, :2].to(torch.int32)
    weights = torch.rand(150, 2)
    whole = torch.empty_like(x)
    kernels.multiply(x, slots, weights, table, 0, whole)
    for rows in (1, 3, 20, 64):
        part = torch.empty_like(x[:rows])
        kernels.multiply(x[:rows], slots[:rows], weights[:rows], table, 0, part)
        assert torch.equal(part, whole[:rows])


def test_recorded_calls_play_with_other_rows_routes_and_experts(library: Library) -> None:
    """Of the same memory."""
    gemm, kernels = CpuGemm(library), CpuExperts(library)
    table = ExpertTable([_expert(gemm, "float32", "float32") for _ in range(6)])
    x, out = torch.randn(5, WIDTH), torch.empty(5, WIDTH)
    routed = Routed(torch.randn(5, 6), 2, 5)
    routed.copies.fill_(1)
    routed.places[:, 0] = torch.arange(6, dtype=torch.int32)

    def step() -> None:
        kernels.route(*routed.arguments(), renormalises=True)
        kernels.multiply(x, routed.slots, routed.weights, table, 0, out)

    with library.recording() as program:
        step()
    x.copy_(torch.randn(5, WIDTH))
    routed.logits.copy_(torch.randn(5, 6))
    routed.num_real.fill_(4)
    table.put(3, _expert(gemm, "float32", "float32"))
    program.play()
    played = out.clone()
    step()
    assert torch.equal(played, out)
    assert not out[4].any()


def test_what_does_not_fit_is_refused(library: Library) -> None:
    """By the name of the argument."""
    gemm, kernels = CpuGemm(library), CpuExperts(library)
    expert = _expert(gemm, "float32", "float32")
    table = ExpertTable([expert])
    x, slots, weights = torch.randn(2, WIDTH), torch.zeros(2, 1).int(), torch.ones(2, 1)
    with pytest.raises(TypeError, match=r"slots: torch\.int64"):
        kernels.multiply(x, slots.long(), weights, table, 0, x.clone())
    with pytest.raises(ValueError, match="weights"):
        kernels.multiply(x, slots, weights[:1], table, 0, x.clone())
    with pytest.raises(ValueError, match="shared, shared_gate: got one of them"):
        kernels.multiply(x, slots, weights, table, 0, x.clone(), shared=x)
    with pytest.raises(ValueError, match="expert of slot 0: got sizes"):
        table.put(0, PackedExpert(expert.down, expert.gated))
    routed = Routed(torch.randn(2, 3), 4, 2)
    with pytest.raises(ValueError, match="slots: got 4 for a row, expected 1 to 3"):
        kernels.route(*routed.arguments(), renormalises=True)
