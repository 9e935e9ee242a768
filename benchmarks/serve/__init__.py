"""Speed and memory of the scorer, compared with other ways to run the same model."""
