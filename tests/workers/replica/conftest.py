"""For tests that start Ray."""

import secrets

from cluster.ray_environment import use_token

# Here, since Ray reads it when a test module imports it.
use_token(secrets.token_hex(32))
