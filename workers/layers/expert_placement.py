"""Which rank holds which experts."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import pairwise

import torch

EMPTY = -1
"""A slot that rows are not sent to."""


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """The experts of one layer, dealt out to the slots of expert ranks.

    Slots are numbered through, rank by rank.
    """

    slots_per_rank: int
    experts: tuple[tuple[int, ...], ...]
    """For each rank, those in its slots, or EMPTY; none twice. Slots left out at the end are empty
    too."""

    def __post_init__(self) -> None:
        for rank, slots in enumerate(self.experts):
            held = [expert for expert in slots if expert != EMPTY]
            if len(slots) > self.slots_per_rank or len(set(held)) < len(held):
                raise ValueError(
                    f"experts of rank {rank}: got {slots}, expected up to {self.slots_per_rank}, "
                    "none twice"
                )

    @classmethod
    def even(cls, num_experts: int, num_ranks: int, num_spare: int = 0) -> "ExpertPlacement":
        """Consecutive experts to each rank, as many to one as to another, or one more.

        A rank's spare slots hold copies of those that follow its own, the first after the last.
        """
        starts = [num_experts * rank // num_ranks for rank in range(num_ranks + 1)]
        spans = [range(start, end) for start, end in pairwise(starts)]
        counts = [min(len(span) + num_spare, num_experts) for span in spans]
        return cls(
            max(counts),
            tuple(
                tuple((span.start + slot) % num_experts for slot in range(count))
                for span, count in zip(spans, counts, strict=True)
            ),
        )

    def places(self, num_experts: int) -> list[list[int]]:
        """For each expert, the slots that hold it.

        Raises ValueError if there is none for one of them.
        """
        places: list[list[int]] = [[] for _ in range(num_experts)]
        for rank, held in enumerate(self.experts):
            for slot, expert in enumerate(held):
                if expert != EMPTY:
                    places[expert].append(rank * self.slots_per_rank + slot)
        if missing := [expert for expert, slots in enumerate(places) if not slots]:
            raise ValueError(f"experts: got none of {missing}, expected each at least once")
        return places

    def rank_loads(self, load: Sequence[float]) -> list[float]:
        """What each rank gets of its experts' load, where an expert's copies get equal shares."""
        copies = [len(slots) for slots in self.places(len(load))]
        return [
            sum(load[expert] / copies[expert] for expert in held if expert != EMPTY)
            for held in self.experts
        ]

    def arranged_after(self, before: "ExpertPlacement") -> "ExpertPlacement":
        """The same experts on each rank, those that were there `before` in the same slots."""
        return ExpertPlacement(
            self.slots_per_rank,
            tuple(
                _arranged(set(wanted) - {EMPTY}, held, self.slots_per_rank)
                for wanted, held in zip(self.experts, before.experts, strict=True)
            ),
        )


class SlotTable:
    """A placement as routing reads it: the slots of each expert, in memory that does not move."""

    def __init__(self, placement: ExpertPlacement, num_experts: int, device: torch.device) -> None:
        num_ranks = len(placement.experts)
        self.copies = torch.empty(num_experts, dtype=torch.int32, device=device)
        """[num_experts]: how many slots hold an expert."""
        self.places = torch.empty(num_experts, num_ranks, dtype=torch.int32, device=device)
        """[num_experts, num_ranks]: those slots, in the first copies[e] columns."""
        self.placement = placement
        self.set(placement)

    def set(self, placement: ExpertPlacement) -> None:
        """Route by another placement from the next step on."""
        self.placement = placement
        num_experts, num_ranks = self.places.shape
        places = placement.places(num_experts)
        self.copies.copy_(torch.tensor([len(slots) for slots in places], dtype=torch.int32))
        padded = [slots + [-1] * (num_ranks - len(slots)) for slots in places]
        self.places.copy_(torch.tensor(padded, dtype=torch.int32))


def _arranged(wanted: set[int], before: Sequence[int], num_slots: int) -> tuple[int, ...]:
    kept = [expert if expert in wanted else EMPTY for expert in before]
    kept += [EMPTY] * (num_slots - len(kept))
    new = iter(sorted(wanted - set(kept)))
    return tuple(next(new, EMPTY) if expert == EMPTY else expert for expert in kept)


def place_experts(load: Sequence[float], num_ranks: int, slots_per_rank: int) -> ExpertPlacement:
    """Deal out experts so that the rank with the most load gets little.

    Spare slots go, one by one, to the expert with the highest load per copy; then experts, the
    heaviest copies first, go to the ranks that have least so far (longest processing time first,
    Graham, 1969; the replication is that of DeepSeek-V3's expert load balancer). Of all numbers of
    slots up to those given, and of ExpertPlacement.even, the best is taken: more slots are never
    worse.

    Args:
        load: Of each expert, such as the rows that were routed to it.
        num_ranks: Expert ranks.
        slots_per_rank: Experts that each can hold.

    Raises ValueError if there are fewer slots than experts.
    """
    num_experts = len(load)
    least = -(-num_experts // num_ranks)
    if slots_per_rank < least:
        raise ValueError(
            f"slots_per_rank: got {slots_per_rank}, expected at least {least} "
            f"for {num_experts} experts on {num_ranks} ranks"
        )
    found = [ExpertPlacement.even(num_experts, num_ranks).experts]
    for slots in range(least, min(slots_per_rank, num_experts) + 1):
        copies = _copies(load, num_ranks, num_ranks * slots - num_experts)
        found.append(_packed(load, copies, num_ranks, slots))
    placements = [ExpertPlacement(slots_per_rank, experts) for experts in found]
    return min(placements, key=lambda placement: max(placement.rank_loads(load)))


def _copies(load: Sequence[float], num_ranks: int, num_spare: int) -> list[int]:
    """How many copies each expert gets of `num_spare` beyond one; at most one for each rank."""
    copies = [1] * len(load)
    heaviest = [(-share, expert) for expert, share in enumerate(load)]
    heapify(heaviest)
    for _ in range(num_spare if num_ranks > 1 else 0):
        expert = heaviest[0][1]
        copies[expert] += 1
        is_everywhere = copies[expert] == num_ranks
        share = 1.0 if is_everywhere else -load[expert] / copies[expert]
        heapreplace(heaviest, (share, expert))
        if heaviest[0][0] > 0:
            break
    return copies


def _packed(
    load: Sequence[float], copies: Sequence[int], num_ranks: int, slots_per_rank: int
) -> tuple[tuple[int, ...], ...]:
    """An expert that finds fewer ranks with a free slot than it has copies gets fewer of them."""
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    totals = [0.0] * num_ranks
    shares = [load[expert] / copies[expert] for expert in range(len(load))]
    for expert in sorted(range(len(load)), key=lambda expert: -shares[expert]):
        free = [rank for rank in range(num_ranks) if len(ranks[rank]) < slots_per_rank]
        chosen = sorted(free, key=lambda rank: totals[rank])[: copies[expert]]
        for rank in chosen:
            ranks[rank].append(expert)
            totals[rank] += load[expert] / len(chosen)
    return tuple(tuple(sorted(held)) for held in ranks)
