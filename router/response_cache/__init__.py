"""Answers that were given before, for requests that would get the same again."""
