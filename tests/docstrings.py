"""The docstrings of the settings are parsed once per process, not once per stack: most of the time that reading takes.

What jsonargparse finds in them stays the same; a command reads one stack and need not care.
"""

import functools

import docstring_parser

docstring_parser.parse_from_object = functools.cache(docstring_parser.parse_from_object)
