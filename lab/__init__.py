"""A Kubernetes cluster in network namespaces, every part of it the real one: what `python -m lab` starts and
removes.
"""
