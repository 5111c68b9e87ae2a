"""What a host keeps on its disk of models and data sets: what is there, who uses it, and what goes first."""
