"""From prompts to answers, to records on disk, to figures with intervals."""
