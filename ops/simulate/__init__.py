"""A cluster in virtual time: real routing, simulated engines."""
