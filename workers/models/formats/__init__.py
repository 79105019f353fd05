"""How checkpoints store weights that are quantized already, one file for each format."""
