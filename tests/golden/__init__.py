"""Golden numbers: what every public measure gave when it was recorded, to be compared while the package moves.

The cases use public names of ``hf_pacgen`` only, so that they outlive every move inside the package.
``record.py`` writes ``golden.json``, and ``test_golden.py`` compares with it.
"""
