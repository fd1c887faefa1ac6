"""The volume engine: an encrypted, authenticated, fresh file system in a directory.

It leaves mounting to `fspf.mount` and the keeping of keys and anchors to `fspf.cas`.
"""
