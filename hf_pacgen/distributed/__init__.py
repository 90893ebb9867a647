"""The only rooms that talk to accelerate and torch.distributed."""
