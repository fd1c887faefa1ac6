"""Formats, keys, errors and decisions of FSPF: bytes and values in, bytes and values out.

No I/O, clock or randomness here: `fspf.volume` reads the files, `fspf.cas` keeps the records.
"""
