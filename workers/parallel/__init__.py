"""What the ranks of one replica share: their layout, and how they speak while they compute."""
