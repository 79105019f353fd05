"""What is expected of replicas is what a table of all their blocks would say."""

from hashlib import blake2b
from itertools import accumulate

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from cluster.prefix.directory import PrefixDirectory
from cluster.prefix.events import joined
from cluster.prefix.speculation import VALID_S

PROMPTS = st.text("ab", max_size=8).map(
    lambda text: [blake2b(t.encode(), digest_size=16).digest() for t in accumulate(text)]
)
MEMBERS = st.sampled_from(["a@1", "b@2"])


class SpeculationMachine(RuleBasedStateMachine):
    """Prompts that share beginnings are sent, computed in part, and forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.directory = PrefixDirectory(4096, lambda: self.now)
        self.held: dict[str, set[bytes]] = {"a@1": set(), "b@2": set()}
        self.ends: dict[str, dict[bytes, float]] = {"a@1": {}, "b@2": {}}

    @rule(hashes=PROMPTS, member=MEMBERS, is_depth_known=st.booleans())
    def send(self, hashes: list[bytes], member: str, is_depth_known: bool) -> None:
        depth = self.depth(hashes, member, self.ends[member] if is_depth_known else {})
        self.directory.expect(hashes, member, depth if is_depth_known else None)
        self.ends[member] |= dict.fromkeys(hashes[depth:], self.now + VALID_S)

    @rule(hashes=PROMPTS, member=MEMBERS)
    def compute(self, hashes: list[bytes], member: str) -> None:
        self.directory.store(member, joined(hashes))
        self.held[member] |= set(hashes)
        for block in hashes:
            self.ends[member].pop(block, None)

    @rule(member=MEMBERS)
    def clear(self, member: str) -> None:
        self.directory.clear(member)
        self.held[member], self.ends[member] = set(), {}

    @rule(seconds=st.sampled_from([0.5, 1.0, 1.5]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(hashes=PROMPTS)
    def ask(self, hashes: list[bytes]) -> None:
        depths = {member: self.depth(hashes, member, self.ends[member]) for member in self.held}
        found = self.directory.held(hashes).depths
        assert found == {member: depth for member, depth in depths.items() if depth}

    def depth(self, hashes: list[bytes], member: str, ends: dict[bytes, float]) -> int:
        held = self.held[member]
        is_there = [block in held or ends.get(block, 0.0) > self.now for block in hashes]
        return [*is_there, False].index(False)


TestSpeculation = SpeculationMachine.TestCase
TestSpeculation.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
