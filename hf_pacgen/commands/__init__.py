"""The subcommands of ``hf-pacgen``: one module each, with a function ``run(argv)``."""
