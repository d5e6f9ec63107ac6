"""Data: readers of data sets, and the sources, batches and arrays made of them.

A reader is one module named after its format.  It checks values as they enter, and raises
`InputError` naming the file, the row, what was found and what was expected; a single invalid row is
left out and described by a note.  Order and padding of batches are decided by `sampler`.
"""
