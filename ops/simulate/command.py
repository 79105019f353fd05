"""`trunkline simulate`."""

from pathlib import Path

from ops.bench.report import write_rows
from ops.bench.workloads.chosen import choose
from ops.failure import UsageError
from ops.simulate.profile import DEFAULT, EngineProfile, ProfileError
from ops.simulate.report import at_rate, print_side_by_side, simulated_rows
from ops.simulate.simulation import Cluster


def run_simulation(
    *,
    profile: Path | None,
    num_blocks: int | None,
    policies: str,
    workload: str | None,
    trace: Path | None,
    requests: int,
    scale: float,
    rate: float,
    replicas: int,
    routers: int,
    event_delay_ms: float,
    seed: int,
    runs: int,
    json: Path | None,
) -> None:
    """Show what each policy makes of a workload. Raises UsageError."""
    chosen = choose(workload, trace, requests, scale)
    try:
        engine = DEFAULT if profile is None else EngineProfile.load(profile)
        if num_blocks is not None:
            engine = engine.model_copy(update={"num_blocks": num_blocks})
        cluster = Cluster(
            profile=engine,
            replicas=replicas,
            routers=routers,
            event_delay_s=event_delay_ms / 1e3,
        )
        rows = simulated_rows(
            cluster,
            [name.strip() for name in policies.split(",") if name.strip()],
            {s: at_rate(chosen.sessions(str(s)), rate) for s in range(seed, seed + runs)},
            f"{chosen.name}, rate {rate:g}, {replicas} replicas, {routers} routers",
        )
    except (ProfileError, OSError) as error:
        raise UsageError(f"--profile: {error}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    print_side_by_side(rows)
    if json is not None:
        write_rows(rows, json)


def measure_profile(model: str, profile: Path) -> None:
    """Write the profile of a real engine. Raises UsageError if the file cannot be written."""
    from ops.simulate.measure import measure

    found = measure(model)
    try:
        found.save(profile)
    except OSError as error:
        raise UsageError(f"--profile: {error}") from error
    print(f"{profile}: {found.model_dump_json()}")
