"""The mount: a `Volume` as a kernel file system, through pyfuse3 on trio.

Deciding which volume and which CAS is left to the command line; the package itself loads neither trio nor pyfuse3.
"""
