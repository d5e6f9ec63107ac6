"""Where samples come from: sources, one reader a format.

A source is random access and nothing more: `len(source)` counts its records, and `source[i]` is
record `i`, a dict of NumPy values, the same each time it is asked for.  A reader is one file named
after its format; it checks values as they enter and raises `InputError` naming the file, the row,
what was found and what is wanted.  Order, batches and padding are drawn over indices, elsewhere.
"""
