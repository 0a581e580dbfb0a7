"""What a model's heads do with position: streamed statistics and scores."""
