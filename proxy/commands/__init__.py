"""The subcommands of ``ackgate``, one file each.

What lives here: reading options, saying what happens, and calling the rooms that do the work. What may not: the work.
"""
