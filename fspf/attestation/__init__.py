"""Evidence of who a client is, parsed and verified as pure functions.

Challenges, tokens and what a policy grants are left to `fspf.cas`; the `make_*` modules produce evidence where it can be had.
"""
