"""Text and data sets: where they come from, how they are cut, split, tokenized and cached."""
