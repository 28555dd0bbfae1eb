"""The ``routing`` service, one copy on each node: it owns the kernel routes to other nodes' pods.

``core`` decides which routes there should be, ``kernel`` reads and writes them, the modules beside them act.
"""
