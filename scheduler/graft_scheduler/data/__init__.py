"""Data sets: read in any form, checked row by row, turned into what is trained on, and named in the fleet.

What a row means to a model (tokens, masks) is in `rendering`.
"""
