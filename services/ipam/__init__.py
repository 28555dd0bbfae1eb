"""The ``ipam`` service: it owns which node holds which address block, and which owner keeps which address.

``core`` decides, the modules beside it act: they read ``objects`` and change ``blocks``, ``owners`` and ``claims`` by
compare-and-set, one key for each decision, so any number of copies may run.
"""
