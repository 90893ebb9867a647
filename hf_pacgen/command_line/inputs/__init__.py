"""What a user names on the command line, made into a model and its data.

Whatever cannot be used raises an :class:`~hf_pacgen.errors.InputError`, so the docstrings here do not repeat it.
"""
