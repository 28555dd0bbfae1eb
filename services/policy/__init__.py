"""The ``policy`` service: it owns identities and compiled rules, and explains every verdict.

``core`` decides, the modules beside it act: they feed it from ``objects`` and publish to ``identities`` and ``rules``.
"""
