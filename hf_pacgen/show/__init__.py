"""Results for people: words, tables, pictures, model cards."""
