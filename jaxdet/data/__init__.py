"""Data: readers of data sets, and their sources and batches.

A reader is one module, named after its format.  It checks values as they enter, and raises
`InputError` with file, row, the value found and the value required; a single invalid row is left
out and described by a note.  `sampler` decides the order and padding of batches.
"""
