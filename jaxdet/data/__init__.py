"""Data: readers of data sets, and their sources and batches.

A reader is one module, named after its format.  It checks values as they enter, and raises
`InputError` with the file, the row, the value found and the value required.  Most readers leave out
a single invalid row or image and describe it in a note.  `sampler` decides which records are in
which batch.
"""
