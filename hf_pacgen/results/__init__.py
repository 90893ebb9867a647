"""What the measures return: one record a file."""
