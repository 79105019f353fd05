"""Names that clients may ask for and that stand for one or several models."""
