"""`make demo`: the main job on one machine, on real input, with what it did at the end."""
