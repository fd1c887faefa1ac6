"""Policies: the documents, who may change them, what they ask for and what they inject.

Nothing here does I/O, looks at a clock or draws random numbers; storing and issuing is left to `fspf.cas`.
"""
