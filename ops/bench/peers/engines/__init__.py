"""Programs that each run one engine in its own virtual environment, which lacks our packages.

They import nothing but the standard library, that engine, and `ops.bench.peers.child`.
"""
