"""Checks of what clients send. Every failure is a RequestError that names the field by its path."""
