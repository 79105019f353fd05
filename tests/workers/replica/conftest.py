"""For tests that start Ray."""

import secrets

from cluster.ray_cluster import use_token

# Here, since Ray reads it when a test module imports it.
use_token(secrets.token_hex(32))
