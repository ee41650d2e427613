"""Made from `proto/` by `proto/generate.py`; written by hand is only this line."""
