"""The command ``hf-pacgen``: one module a subcommand."""
