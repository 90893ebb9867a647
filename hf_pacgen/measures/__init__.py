"""What a person calls: one file a measure."""
