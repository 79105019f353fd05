"""How long a tenant's answers are."""

from collections import OrderedDict

_WEIGHT = 0.1
_AT_FIRST = 256.0
"""Tokens taken for the mean until one answer is known."""
_MAX_KEPT = 4096


class MeanOutput:
    """Tokens of a tenant's samples, as a moving average; remembers the tenants seen last."""

    def __init__(self) -> None:
        self._means: OrderedDict[str, float] = OrderedDict()

    def learn(self, tenant: str, tokens: float) -> None:
        """A sample of so many tokens has ended."""
        mean = self._means.pop(tenant, None)
        self._means[tenant] = tokens if mean is None else mean + _WEIGHT * (tokens - mean)
        if len(self._means) > _MAX_KEPT:
            self._means.popitem(last=False)

    def of(self, tenant: str) -> float:
        """The tokens that a sample is expected to have."""
        return self._means.get(tenant, _AT_FIRST)
