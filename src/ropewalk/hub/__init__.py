"""Models and plans on disk and on the Hugging Face Hub."""
