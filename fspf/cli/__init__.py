"""The `fspf` command: one file per command, `main` for the parser tree, `console` for the rules of output.

Decides nothing about volumes: `fspf.volume`, `fspf.cas` and `fspf.mount` do. docs/CLI.md is the interface that scripts rely on.
"""
