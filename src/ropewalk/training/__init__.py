"""Training with an encoding: what the Hugging Face Trainer needs beyond itself."""
