"""Topology: which nodes there are, which of them serve what, and the lanes to them.

What lives here: watching the nodes, choosing the slot map, keeping a lane to every primary for each
identity, leased lanes, following MOVED, ASK and TRYAGAIN, and holding commands while their slots have
no primary.  What may not: what a command means (routing), what a session is (sessions).

Order is the rule of the room.  Whatever is sent again is sent in the order it was sent before, and a
session whose way changed is fenced: its next command waits until its earlier ones are answered.
"""
