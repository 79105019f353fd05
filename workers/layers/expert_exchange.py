"""How rows and experts come together where ranks hold different experts.

Of each row, with E expert ranks and k experts for a row, a rank sends and receives in bytes of a
hidden state

    AllRows    about 2, in the sum over the dense group that ends the layer in any case;
    Dispatch   about 2 k / E, there and back, and 1 to gather all rows again.

So Dispatch moves less where E > 2 k. It also needs a second round of messages, and ends with whole
rows: what tensor ranks or a shared expert would have to add needs the sum over the dense group
again. Then AllRows is taken.
"""

from typing import Protocol

import torch

from workers.layers.expert_buffers import ExpertBuffers
from workers.layers.expert_load import ExpertLoad
from workers.layers.experts import Experts, SharedRows
from workers.layers.router import Router, Routing
from workers.parallel.group import Group, Ranks


class ExpertExchange(Protocol):
    """Routes rows and brings them to the experts of all ranks."""

    @property
    def is_native(self) -> bool:
        """Whether it leaves no work to torch."""

    @property
    def is_whole(self) -> bool:
        """Whether `out` is the layer's result, and not this rank's summand of it."""

    def __call__(
        self,
        x: torch.Tensor,
        router: Router,
        experts: Experts,
        shared: SharedRows | None,
        buffers: ExpertBuffers,
        out: torch.Tensor,
    ) -> None:
        """Compute a sparse layer.

        Args:
            x: [T, hidden_size], the same on all ranks of the dense group.
            router: Of the layer, the same on all ranks.
            experts: Those of this rank.
            shared: This rank's part of the shared expert's rows, if there is one.
            buffers: Of T rows.
            out: [T, hidden_size], filled.
        """


class AllRows:
    """Each rank routes all rows, and computes what its experts add to each of them."""

    is_native = True
    is_whole = False

    def __init__(self, load: ExpertLoad, layer: int) -> None:
        self._load = load
        self._rows = load.rows[layer]

    def __call__(
        self,
        x: torch.Tensor,
        router: Router,
        experts: Experts,
        shared: SharedRows | None,
        buffers: ExpertBuffers,
        out: torch.Tensor,
    ) -> None:
        """See ExpertExchange."""
        first_row = self._load.first_row(len(x))
        experts(x, router(x, buffers, self._load.num_real, self._rows, first_row), shared, out)


class Dispatch:
    """Each rank routes a part of the rows, sends them to their experts' ranks, takes back what
    these made of them, and shares its rows' sums with all (GShard, Lepikhin et al., 2020)."""

    is_native = False
    is_whole = True

    def __init__(self, group: Group, slots_per_rank: int, load: ExpertLoad, layer: int) -> None:
        """`group` is of ranks with different experts, all of them whole."""
        self._group = group
        self._slots_per_rank = slots_per_rank
        self._load = load
        self._rows = load.rows[layer]

    def __call__(
        self,
        x: torch.Tensor,
        router: Router,
        experts: Experts,
        shared: SharedRows | None,
        buffers: ExpertBuffers,
        out: torch.Tensor,
    ) -> None:
        """See ExpertExchange."""
        assert shared is None, "the shared expert's parts would have to be summed"
        size, length = self._group.size, -(-len(x) // self._group.size)
        begin = min(self._group.rank * length, len(x))
        mine = x[begin : begin + length]
        load = torch.zeros_like(self._rows)
        first_row = self._load.first_row(len(x)) + begin
        part = buffers.first(len(mine))
        routing = router(mine, part, self._load.num_real, load, first_row)
        sums = x.new_zeros(length, x.shape[1])
        sums[: len(mine)] = self._routed(mine, routing, load, experts)
        everyone = x.new_empty(size, length, x.shape[1])
        self._group.all_gather(sums, everyone)
        out.copy_(everyone.flatten(0, 1)[: len(x)])

    def _routed(
        self, x: torch.Tensor, routing: Routing, load: torch.Tensor, experts: Experts
    ) -> torch.Tensor:
        """float32 [t, hidden_size]: rows [t, hidden_size] through the experts of all ranks."""
        pairs = routing.slots.flatten()
        order = pairs.argsort(stable=True)[int((pairs < 0).sum()) :]
        rows = order // routing.slots.shape[1]
        sent, arriving = self._exchange_counts(pairs, load)
        counts, out_counts = sent.sum(dim=1).tolist(), arriving.sum(dim=1).tolist()
        received = x.new_empty(sum(out_counts), x.shape[1])
        self._group.all_to_all(x[rows], counts, received, out_counts)
        results = torch.empty_like(received)
        experts(received, self._routing_of(arriving), None, results)
        returned = x.new_empty(len(rows), x.shape[1])
        self._group.all_to_all(results, out_counts, returned, counts)
        weights = routing.weights.flatten()[order].unsqueeze(1)
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        return total.index_add_(0, rows, returned.float() * weights)

    def _exchange_counts(
        self, pairs: torch.Tensor, load: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows for each slot of each rank, and from each rank for each slot here.

        Both are int64 [ranks, slots_per_rank]. Adds all ranks' load to that of the layer.
        """
        size = self._group.size
        counts = pairs[pairs >= 0].bincount(minlength=size * self._slots_per_rank)
        news = torch.cat((load.to(counts.device), counts))
        everyone = news.new_empty(size, len(news))
        self._group.all_gather(news, everyone)
        loads, all_counts = everyone.split_with_sizes((len(load), len(counts)), dim=1)
        self._rows.add_(loads.sum(dim=0).to(load.device))
        arriving = all_counts.view(size, size, -1)[:, self._group.rank]
        return counts.view(size, -1), arriving

    def _routing_of(self, arriving: torch.Tensor) -> Routing:
        """Of the rows that arrived, each for one expert, whose weight is applied where it came
        from."""
        first = self._group.rank * self._slots_per_rank
        slots = torch.arange(first, first + self._slots_per_rank, device=arriving.device)
        each = slots.repeat(len(arriving)).repeat_interleave(arriving.flatten())
        column = each.to(torch.int32).unsqueeze(1)
        return Routing(column, torch.ones_like(column, dtype=torch.float32))


def expert_exchange(
    ranks: Ranks,
    experts_per_token: int,
    slots_per_rank: int,
    load: ExpertLoad,
    layer: int,
    *,
    has_shared: bool,
) -> ExpertExchange:
    """The one that moves fewer bytes; `layer` is counted among this rank's."""
    is_less = ranks.layout.expert > 2 * experts_per_token
    if is_less and ranks.layout.tensor == 1 and not has_shared:
        return Dispatch(ranks.experts, slots_per_rank, load, layer)
    return AllRows(load, layer)
