"""What operators use: the `trunkline` command, benchmarks, the demo models."""
