"""What is done to a model: its state, its trainable weights, their displacement."""
