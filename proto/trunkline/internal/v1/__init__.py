"""Version 1 of the contract between components."""
