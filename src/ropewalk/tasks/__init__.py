"""Tasks that tell how far a model reads, one file each."""
