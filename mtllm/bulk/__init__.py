"""Files of many texts in, the same rows with answers out; `bulk.py` is its front door.

tables      CSV and JSON lines: reading rows as they are, writing them with answers
journal     the answers on disk, so that none is bought twice
run         rows to the service, several at once, in order to the output
command     the command line
"""
