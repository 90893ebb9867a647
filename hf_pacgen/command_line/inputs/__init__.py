"""What a user names on the command line, made into a model and its data."""
