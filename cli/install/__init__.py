"""airmesh in a real cluster: installed, upgraded, checked, taken away.

Unlike the rest of `cli/` this writes: to the Kubernetes API alone, with the rights of the person's own kubeconfig.
"""
