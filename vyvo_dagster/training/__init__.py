"""Training code of the models that ship with this project; no framework beyond numpy."""
