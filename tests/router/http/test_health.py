"""Machines can ask how the router is."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.router.http.fake_service import FakeService


@pytest.mark.parametrize(("is_ready", "status"), [(True, 200), (False, 503)])
def test_readiness_is_the_services_and_liveness_is_not(
    http: httpx.Client, service: FakeService, is_ready: bool, status: int
) -> None:
    service.is_ready = is_ready
    assert http.get("/readyz").status_code == status
    assert http.get("/healthz").status_code == 200


def test_metrics_can_be_scraped(http: httpx.Client) -> None:
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert "trunkline:time_to_first_token_seconds" in names
