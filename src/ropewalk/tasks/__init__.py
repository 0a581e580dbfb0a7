"""Reading tasks: prompts of a known length with questions whose answers are known, one file a task."""
